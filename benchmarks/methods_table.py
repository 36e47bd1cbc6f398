"""Every method on the shipped networks: geometric mean of the gap to the best attack, time, rows refuted.

    python benchmarks/methods_table.py [--timeout 20] [--methods all] [--networks fc conv ...]

For each network its medium l-infinity property is bounded by every method. A row's gap is the value a
projected gradient attack attains minus the bound; the table gives its geometric mean over all rows that
every listed method could bound, relative to CROWN's. Prints Markdown.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from verifier.errors import VerifierError
from verifier.graph.load import load_network
from verifier.spec.load import load_query
from verifier.tighten.attained import attained
from verifier.tighten.methods import METHODS, BoundSession, MethodSettings

SPECS = Path(__file__).parent.parent / "specs"


def main() -> None:
    """Parse arguments, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds a method and network")
    parser.add_argument("--networks", nargs="+", default=["fc", "conv", "residual", "batchnorm", "maxpool", "avgpool"])
    parser.add_argument("--methods", nargs="+", default=[m for m in METHODS if m != "sdp-crown"])
    args = parser.parse_args()
    gaps: dict[str, list[np.ndarray]] = {m: [] for m in args.methods}
    seconds = dict.fromkeys(args.methods, 0.0)
    refuted, rows = dict.fromkeys(args.methods, 0), dict.fromkeys(args.methods, 0)
    for name in args.networks:
        query = load_query(SPECS / "vnnlib" / f"{name}_medium.vnnlib", load_network(SPECS / "onnx" / f"{name}.onnx"))
        session = BoundSession(query.graph, query.problem, MethodSettings(timeout_s=args.timeout))
        coeffs, limits, _, _ = session.rows()
        best = attained(session.state(0).engine, query.problem.cases[0].inputs, coeffs, time_limit_s=args.timeout)
        for method in args.methods:
            try:
                found = session.bound(method)
            except VerifierError:
                gaps[method].append(np.full(len(limits), np.nan))
                continue
            gaps[method].append(np.maximum(best.values - found.lower, 1e-6))
            seconds[method] += found.seconds
            refuted[method] += int((found.margins > 0).sum())
            rows[method] += len(limits)
    joined = {m: np.concatenate(g) for m, g in gaps.items()}
    base = joined["crown"]
    print(f"Networks: {', '.join(args.networks)}; {args.timeout:g} s a method and network.\n")
    print("| method | gap to attack, relative to CROWN's | rows | refuted | seconds in all |\n|:--|--:|--:|--:|--:|")
    for method in args.methods:
        usable = np.isfinite(joined[method])
        relative = np.exp(np.log(joined[method][usable] / base[usable]).mean()) if usable.any() else np.nan
        print(f"| {method} | {relative:.4f} | {rows[method]} | {refuted[method]} | {seconds[method]:.1f} |")


if __name__ == "__main__":
    main()
