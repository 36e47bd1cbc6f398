"""What soundness for the deployed float32 program costs against real arithmetic: time and tightness.

    python benchmarks/micro/rounding_cost.py [--specs specs] [--repeats 5]

Every network in the folder (lines of two networks are left out) with the first box of each of its
properties, default slopes, one thread; the native engine where it covers the network, torch's otherwise.
Both levels charge the engine's own rounding; float32 adds the network's. Widening: how much lower a row's
bound is, as a share of the distance from the row's value at the centre of the box down to its bound in real
arithmetic. Time: CPU seconds, the two levels in alternation, median ratio.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

from verifier import api
from verifier.bounds.native_engine import NativeEngine, supports
from verifier.graph.ir import Graph
from verifier.outcome import Soundness
from verifier.spec.groups import Group, group_cases

LEVELS = (Soundness.REAL_ARITHMETIC, Soundness.IEEE_FLOAT)
#: CPU seconds that one measurement should take at least.
LEAST_SECONDS = 0.02


def engine_for(graph: Graph, soundness: Soundness) -> Any:
    """The engine that the search would use on a CPU."""
    if supports(graph):
        return NativeEngine(graph, threads=1, soundness=soundness)
    import torch

    from verifier.bounds.torch_engine import TorchEngine

    torch.set_num_threads(1)
    return TorchEngine(graph, soundness=soundness)


def widening(engines: list[Any], group: Group) -> np.ndarray:
    """Relative widening of each row [S] that both levels bound; boxes that are points have none."""
    rows = group.rows.coeffs
    real, deployed = (e.bound_boxes(group.lower, group.upper, rows).lower[0] for e in engines)
    centre = engines[0].evaluate((group.lower + group.upper) / 2)[0] @ rows.T
    known = np.isfinite(real) & np.isfinite(deployed) & (centre > real)
    if not (group.lower < group.upper).any():
        return np.zeros(0)
    return ((real - deployed) / np.where(known, centre - real, 1))[known]


def time_ratio(engines: list[Any], group: Group, repeats: int) -> float:
    """CPU time of the deployed program's bounds over that of real arithmetic's, median of alternating runs."""

    def seconds(engine: Any, count: int) -> float:
        start = time.process_time()
        for _ in range(count):
            engine.bound_boxes(group.lower, group.upper, group.rows.coeffs)
        return time.process_time() - start

    count = 1
    while seconds(engines[0], count) < LEAST_SECONDS:
        count *= 2
    found = [[seconds(e, count) for e in engines] for _ in range(repeats)]
    return float(np.median([deployed / real for real, deployed in found]))


def main() -> None:
    """Print one line a network, and the medians over all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--specs", type=Path, default=Path(__file__).parents[2] / "specs")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with (args.specs / "instances.csv").open() as file:
        instances = [(line["onnx"], line["vnnlib"]) for line in csv.DictReader(file) if line["onnx"].endswith(".onnx")]
    shares: list[np.ndarray] = []
    ratios: list[float] = []
    print(f"{'network':14} {'engine':7} {'rows':>5} {'median':>9} {'largest':>9} {'time':>6}")
    for net in dict.fromkeys(net for net, _ in instances):
        engines: list[Any] = []
        of_net: list[np.ndarray] = []
        of_time: list[float] = []
        for spec in (s for n, s in instances if n == net):
            query, _ = api.load(os.fspath(args.specs / net), os.fspath(args.specs / spec))
            engines = engines or [engine_for(query.graph, level) for level in LEVELS]
            groups = group_cases(query.problem)
            if not groups:
                continue  # an empty box
            of_net.append(widening(engines, groups[0].only(0)))
            of_time.append(time_ratio(engines, groups[0].only(0), args.repeats))
        found = np.concatenate(of_net)
        print(
            f"{Path(net).stem:14} {engines[0].name:7} {len(found):5} {np.median(found):9.1e} {found.max():9.1e} "
            f"{np.median(of_time):6.3f}",
            flush=True,
        )
        shares.append(found)
        ratios += of_time
    every = np.concatenate(shares)
    print(f"{'all':14} {'':7} {len(every):5} {np.median(every):9.1e} {every.max():9.1e} {np.median(ratios):6.3f}")


if __name__ == "__main__":
    main()
