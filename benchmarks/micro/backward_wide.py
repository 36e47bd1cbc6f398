"""Backward pass of wide dense layers against the best matrix product here, as a share of its flop rate.

    python benchmarks/micro/backward_wide.py [width] [depth] [threads]

A random relu network whose every neuron stays unstable, so that the multiply-adds are known. Both are
timed in this process by CPU seconds, alternating, with all rounding terms included.
"""

from __future__ import annotations

import os
import sys
import time

threads = int(sys.argv[3]) if len(sys.argv) > 3 else 1
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(threads)

import numpy as np  # noqa: E402  the thread count is read when NumPy loads

from verifier.bounds.native_engine import NativeEngine  # noqa: E402
from verifier.graph.ir import GraphBuilder  # noqa: E402


def main() -> None:
    """Print one line a measurement and the ratio of the medians."""
    width = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    depth = int(sys.argv[2]) if len(sys.argv) > 2 else 4
    rng = np.random.default_rng(0)
    b = GraphBuilder()
    x, n = b.add("Input", (), (1, 64), "x"), 64
    for k in range(depth):
        weight = (rng.normal(size=(n, width)) / np.sqrt(n)).astype(np.float32)
        x = b.add("Dense", (x,), (1, width), f"d{k}", weight=weight, bias=np.zeros(width, np.float32))
        x, n = b.add("Relu", (x,), (1, width), f"r{k}"), width
    weight = rng.normal(size=(n, 1)).astype(np.float32)
    x = b.add("Dense", (x,), (1, 1), "out", weight=weight, bias=np.zeros(1, np.float32))
    engine = NativeEngine(b.finish(("x",), (x,)), threads=threads, forms=False)
    flops = sum(2 * 2 * width * ((k - 1) * width * width + 64 * width) for k in range(1, depth))
    lower, upper = -np.ones((1, 64)), np.ones((1, 64))
    left = rng.normal(size=(2 * width, width)).astype(np.float32)
    right = rng.normal(size=(width, width)).astype(np.float32)
    repeats = max(1, int(flops / (2 * left.shape[0] * width * width)))
    ours, best = [], []
    for _ in range(3):
        start = time.process_time()
        engine.bound_boxes(lower, upper, np.eye(1))
        ours.append(flops / (time.process_time() - start) / 1e9)
        start = time.process_time()
        for _ in range(repeats):
            left @ right
        best.append(repeats * 2 * left.shape[0] * width * width / (time.process_time() - start) / 1e9)
        print(f"backward pass {ours[-1]:7.1f} Gflop/s   matrix product {best[-1]:7.1f} Gflop/s   (per CPU second)")
    print(f"share of the matrix product's rate: {np.median(ours) / np.median(best):.2f}")


if __name__ == "__main__":
    main()
