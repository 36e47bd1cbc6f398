"""Which instances that alpha-CROWN leaves open does exact branch and bound on activations close?

    python benchmarks/last_mile.py FOLDER --network 256x2 [--seconds 60] [--most 20]

FOLDER holds instances.csv with its onnx and vnnlib files (the layout of VNN-COMP benchmarks). Every
clause open after alpha-CROWN goes to `tighten.feed.LastMile`. Prints a line per instance and the counts.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import numpy as np

from verifier.graph.load import load_network
from verifier.spec.load import load_query
from verifier.tighten.attained import attained
from verifier.tighten.feed import Known, LastMile
from verifier.tighten.propagated import Propagated


def main() -> None:
    """Parse arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--network", default="256x2", help="part of the network's name")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all open clauses of an instance")
    parser.add_argument("--most", type=int, default=1000, help="open instances to try")
    args = parser.parse_args()
    with open(args.folder / "instances.csv", encoding="utf-8") as file:
        rows = [row for row in csv.reader(file) if args.network in row[0]]
    counts = {"crown": 0, "unsafe": 0, "closed": 0, "open": 0}
    subproblems, spent = 0, 0.0
    for network, spec, *_ in rows:
        query = load_query(args.folder / spec, load_network(args.folder / network))
        case = query.problem.cases[0]
        coeffs = np.concatenate([c.coeffs for c in case.clauses])
        state = Propagated(query.graph, case.inputs, time_limit_s=args.seconds)
        best = attained(state.engine, case.inputs, coeffs, time_limit_s=10.0).values
        limits = np.concatenate([c.limits for c in case.clauses])
        if np.any(best <= limits):
            counts["unsafe"] += 1
            continue
        lower = state.optimised_rows(state.alpha(), coeffs, 50)
        left = [c for c, value in zip(case.clauses, lower, strict=True) if not value > c.limits[0]]
        if not left:
            counts["crown"] += 1
            continue
        known = Known(state.intermediate(state.alpha()), state.rounding_error(state.alpha()))
        start = time.monotonic()
        programs, proofs = LastMile(state.graph, case.inputs, known), []
        for clause in left:
            proofs.append(programs.refute(clause, start + args.seconds))
            if not proofs[-1].refuted:
                break
        seconds, solved = time.monotonic() - start, sum(p.subproblems for p in proofs)
        subproblems, spent = subproblems + solved, spent + seconds
        points = [p.point for p in proofs if p.point is not None]
        if points and np.any(state.engine.evaluate(np.stack(points)) @ coeffs.T <= limits):
            counts["unsafe"] += 1
            print(f"{spec}: unsafe, by the point of a leaf after {solved} subproblems, {seconds:.1f} s", flush=True)
            continue
        done = len(proofs) == len(left) and all(p.refuted for p in proofs)
        counts["closed" if done else "open"] += 1
        print(f"{spec}: {len(left)} clauses open after alpha-CROWN (worst {lower.min():.4f}); "
              f"{'closed' if done else 'open'} after {solved} subproblems, {seconds:.1f} s", flush=True)  # fmt: skip
        if counts["closed"] + counts["open"] >= args.most:
            break
    print(
        f"{args.network}: {counts['crown']} closed by alpha-CROWN, {counts['unsafe']} unsafe, {counts['closed']} "
        f"closed by branch and bound, {counts['open']} open; "
        f"{subproblems / max(spent, 1e-9):.1f} subproblems/s"
    )


if __name__ == "__main__":
    main()
