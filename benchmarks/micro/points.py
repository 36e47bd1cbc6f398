"""Values and gradients at points: the native engine against torch, and against the best matrix product, one thread.

    python benchmarks/micro/points.py [NET ...] [--points 50] [--repeats 9]

Without networks the shipped digit networks. Both take the same float32 points; a gradient is that of the sum of the
outputs, the value included, and Gflop/s are its. Runs alternate in one process and are timed by CPU seconds; medians
over the repeats.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from torch import Tensor

from verifier.attack.onnx_victim import graph_module
from verifier.bounds.native_engine import NativeEngine

SPECS = Path(__file__).resolve().parents[2] / "specs" / "onnx"
#: CPU seconds that a run is repeated for, at least.
LONG_ENOUGH_S = 0.02


def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    began, calls = time.process_time(), 0
    while calls == 0 or time.process_time() - began < LONG_ENOUGH_S:
        run()
        calls += 1
    return (time.process_time() - began) / calls


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=[str(SPECS / "fc.onnx"), str(SPECS / "conv.onnx")])
    parser.add_argument("--points", type=int, default=50, metavar="N")
    parser.add_argument("--repeats", type=int, default=9, metavar="N")
    args = parser.parse_args()
    torch.set_num_threads(1)
    left = torch.rand(1024, 1024)
    print("| Network | Mmul-adds a point | Value, native / torch | Gradient, native / torch | Gflop/s | Library |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in args.networks:
        module = graph_module(name)
        engine = NativeEngine(module.network.source, threads=1)
        x = torch.rand(args.points, engine.graph.input_size)
        runs = _runs(module, engine, x) | {"library": lambda: left @ left}
        taken: dict[str, list[float]] = {key: [] for key in runs}
        for _ in range(args.repeats):
            for key, run in runs.items():
                taken[key].append(seconds(run))
        t = {key: median(values) for key, values in taken.items()}
        work = 4 * engine.network.weights * args.points / t["gradient"]
        print(
            f"| {Path(name).name} | {engine.network.weights / 1e6:.3f} | {t['value'] / t['torch value']:.2f} "
            f"| {t['gradient'] / t['torch gradient']:.2f} | {work / 1e9:.1f} | {2 * 1024**3 / t['library'] / 1e9:.1f} |"
        )


def _runs(module: torch.nn.Module, engine: NativeEngine, x: Tensor) -> dict[str, Callable[[], object]]:
    points = x.numpy()
    ones = np.ones((len(points), engine.graph.output_size), dtype=np.float32)

    def value() -> Tensor:
        with torch.no_grad():
            return module(x)

    def gradient() -> Tensor:
        leaf = x.clone().requires_grad_(True)
        return torch.autograd.grad(module(leaf).sum(), leaf)[0]

    return {
        "torch value": value,
        "torch gradient": gradient,
        "value": lambda: engine.evaluate(points),
        "gradient": lambda: engine.pull_back(engine.record(points)[1], ones),
    }


if __name__ == "__main__":
    main()
