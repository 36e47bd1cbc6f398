"""Rate of the native backward pass against the best float32 matrix product here, one thread each.

    python benchmarks/micro/backward_rate.py [--rows 2048] [--repeats 15]

Rows of the output go down to the input of random networks with every rounding term, as subdomains do
(csrc/cpu/simd/columns.h, default slopes). Only useful multiply-adds count: weights between neurons that
are not fixed at 0 on the box. Passes and products alternate in one process and are timed by CPU seconds,
so that other processes do not count; the share is the median over the repeats.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import torch
from random_networks import convolutional_network, dense_network, residual_network

from verifier.bounds.native_engine import NativeEngine
from verifier.graph.ir import Graph
from verifier.kernels.build import build_info
from verifier.kernels.stages import Stager


def useful_products(graph: Graph, core: object) -> int:
    """Multiply-adds of one row on its way from the output to the input."""
    stages = Stager(graph, rounded=True).run()
    alive = [np.ones(graph.input_size, dtype=bool)]
    for number, stage in enumerate(stages, 1):
        upper = core.stage_bounds(number)[1]  # type: ignore[attr-defined]
        alive.append(upper > 0 if stage.activation == "relu" else np.ones(stage.size, dtype=bool))
    total = 0
    for number, stage in enumerate(stages, 1):
        for part in stage.maps:
            if part.kind == "diagonal":
                continue  # a sum, no product
            if part.kind == "dense":
                total += int(alive[number].sum()) * int(alive[part.source].sum())
                continue
            matrix = part.sparse()
            outputs = np.repeat(np.arange(matrix.rows), np.diff(matrix.row_start))
            total += int((alive[number][outputs] & alive[part.source][matrix.columns]).sum())
    return total


def library_products(size: int = 1024) -> dict[str, Callable[[], object]]:
    """Square float32 products, 2 size^3 operations each."""
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=(size, size)).astype(np.float32) for _ in range(2))
    first, second = torch.from_numpy(left), torch.from_numpy(right)
    return {"numpy": lambda: left @ right, "torch": lambda: first @ second}


def rate(work: float, run: Callable[[], object]) -> float:
    """Gflop per CPU second."""
    start = time.process_time()
    run()
    return work / (time.process_time() - start) / 1e9


def backward_pass(engine: NativeEngine, radius: float, count: int) -> tuple[Callable[[], object], int]:
    """A pass of `count` rows, and its useful multiply-adds."""
    graph, rng = engine.graph, np.random.default_rng(1)
    center = rng.random(graph.input_size)
    core = engine.domains(center - radius, center + radius, 1e6)
    job = {
        "stage": 0,
        "rows": rng.normal(size=(count, graph.output_size)),
        "spec": np.arange(count, dtype=np.int32),
        "limit": np.zeros(count),
        "slope_row": np.zeros(count, np.int32),
        "domain": np.zeros(count, np.int32),
        "slopes": None,
        "split": np.full((1, 1), -1, np.int32),
        "sign": np.zeros((1, 1), np.int8),
        "multiplier": np.zeros((1, 1), np.float32),
        "extra": None,
        "extra_sign": None,
        "pace": 1.0,
        "seconds": 1e6,
        "iterations": 0,
        "rigorous": True,
        "outputs": False,
    }
    assert np.isfinite(core.bound(job)["value"]).all(), "no bound: the network overflows"
    return lambda: core.bound(job), count * useful_products(graph, core)


def main() -> None:
    """Print one line a network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    products = library_products()
    work = 2.0 * 1024**3
    for run in products.values():
        run()  # the first call sets the library up
    cases = {
        "dense 8x1024": (dense_network(1024, [1024] * 8, 10), 0.002),
        "dense 6x256": (dense_network(784, [256] * 6, 10), 0.01),
        "convolutional": (convolutional_network(), 0.02),
        "residual": (residual_network(), 0.02),
    }
    print(f"{build_info()['simd_level']}; library: the faster of {' and '.join(products)}, each time")
    print("network        Mmul-adds/row  Gflop/s  library  share")
    for name, (graph, radius) in cases.items():
        passed, useful = backward_pass(NativeEngine(graph, threads=1), radius, args.rows)
        pairs = [
            (rate(2.0 * useful, passed), max(rate(work, run) for run in products.values())) for _ in range(args.repeats)
        ]
        ours, theirs = np.median(pairs, axis=0)
        share = np.median([a / b for a, b in pairs])
        print(f"{name:14} {useful / args.rows / 1e6:13.3f} {ours:8.1f} {theirs:8.1f} {share:6.1%}", flush=True)


if __name__ == "__main__":
    main()
