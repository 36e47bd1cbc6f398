"""Native engine against torch engine: bounds per CPU second with equal work, one thread each.

    python benchmarks/micro/engines.py [--iterations 12] [--repeats 3]

Random relu networks, rounding terms included, both engines in float32 (torch's own choice for networks
of this size would be float64 for the smallest one). "split" is activation splitting: both engines split the
same root to the same depth, then bound the subdomains with the same number of slope and multiplier steps
and choose the next split for every second one; the limit is out of reach, so that no row stops early.
"boxes" is input splitting: whole boxes, each with backward passes for its unstable neurons. Runs alternate;
medians. CPU seconds, so that other processes do not count. Margins: mean over each engine's own subdomains.
"""

from __future__ import annotations

import argparse
import time
from types import ModuleType
from typing import Any

import numpy as np
from domains_per_second import measure  # sets the threads, so it comes before torch
from random_networks import convolutional_network, dense_network

from verifier.bounds import native_domains, torch_domains
from verifier.bounds.native_engine import NativeEngine
from verifier.bounds.torch_engine import TorchEngine
from verifier.graph.evaluate import evaluate
from verifier.graph.ir import Graph
from verifier.run import Run
from verifier.spec.groups import ClauseRows, Group
from verifier.spec.problem import Clause

#: Network, radius of its box, subdomains and boxes bounded.
CASES: dict[str, tuple[Graph, float, int, int]] = {
    "dense 5-6x50-5": (dense_network(5, [50] * 6, 5), 0.1, 1024, 128),
    "dense 784-4x256-10": (dense_network(784, [256] * 4, 10), 0.01, 256, 16),
    "convolutional": (convolutional_network(), 0.01, 128, 4),
}


def box_of(graph: Graph, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends [N_in] of a box around a random point."""
    center = np.random.default_rng(1).random(graph.input_size)
    return center - radius, center + radius


def hopeless(graph: Graph, lower: np.ndarray, upper: np.ndarray) -> Group:
    """One row over one box, with a limit above the row's value at the centre."""
    row = np.zeros(graph.output_size)
    row[:2] = 1, -1
    values: Any = evaluate(graph, ((lower + upper) / 2)[None])
    limit = float(np.asarray(values).reshape(-1) @ row) + 1.0
    clause = Clause(row[None], np.array([limit]), np.array([False]))
    return Group(ClauseRows((clause,)), lower[None], upper[None], np.array([[limit]]), np.array([0]))


def split_rate(engine: Any, module: ModuleType, group: Group, count: int, iterations: int) -> tuple[float, float]:
    """Subdomains per CPU second, and their mean margin."""
    domains, left = module.root_domains(engine, group, 0, Run())
    rate, mean, _ = measure(domains, left[:1], count, iterations)
    return rate, mean


def box_rate(engine: Any, lower: np.ndarray, upper: np.ndarray, rows: np.ndarray, count: int) -> tuple[float, float]:
    """Boxes per CPU second, and their mean bound: the box cut into slices along its first input."""
    ends = np.linspace(lower[0], upper[0], count + 1)
    low, high = np.tile(lower, (count, 1)), np.tile(upper, (count, 1))
    low[:, 0], high[:, 0] = ends[:-1], ends[1:]
    start = time.process_time()
    found = engine.bound_boxes(low, high, rows)
    return count / (time.process_time() - start), float(found.lower.mean())


def main() -> None:
    """Print one line a network and kind of splitting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    native_domains.INTERMEDIATE_SHARE = torch_domains.INTERMEDIATE_SHARE = 0.0
    print(f"{'network':20} {'kind':6} {'native/s':>9} {'torch/s':>9} {'ratio':>6}   margin native, torch")
    for name, (graph, radius, subdomains, boxes) in CASES.items():
        lower, upper = box_of(graph, radius)
        group = hopeless(graph, lower, upper)
        engines = [NativeEngine(graph, threads=1), TorchEngine(graph, dtype=torch.float32)]
        for kind in ("split", "boxes"):
            rounds = []
            for _ in range(args.repeats):
                if kind == "split":
                    pairs = zip(engines, (native_domains, torch_domains), strict=True)
                    rounds.append([split_rate(e, m, group, subdomains, args.iterations) for e, m in pairs])
                else:
                    rows = group.rows.coeffs
                    rounds.append([box_rate(e, lower, upper, rows, boxes) for e in engines])
            found = np.asarray(rounds)  # [repeats, engine, (rate, margin)]
            rates, margins = np.median(found[:, :, 0], axis=0), found[0, :, 1]
            ratio = np.median(found[:, 0, 0] / found[:, 1, 0])
            print(
                f"{name:20} {kind:6} {rates[0]:9.1f} {rates[1]:9.1f} {ratio:6.1f}   {margins[0]:.4g}, {margins[1]:.4g}",
                flush=True,
            )


if __name__ == "__main__":
    main()
