"""Lower bounds of a property's rows by every relaxation method, side by side.

  verifier bounds net.onnx property.vnnlib --method all --timeout 30
  verifier bounds net.onnx property.vnnlib --method crown,lp,milp --json bounds.json --plot bounds.pdf
  verifier bounds net.onnx image.npy:0.5 --norm l2 --method alpha-crown,sdp-crown

With CENTRE.npy:EPS the property is "every input within EPS keeps the class the network gives CENTRE".
A row is refuted where its bound is positive, a clause where one of its rows is; the property holds
when every clause is refuted. "attack" is the smallest margin that projected gradient descent
attains: the true minimum lies between a bound and it. Every bound is rigorous, whatever the solver did.

Methods: {methods}

Exit code: 0 at least one method gave bounds, 2 bad input or no method can bound this network.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import TYPE_CHECKING, Any

from verifier.cli.answer import check_writable, interruptible
from verifier.cli.input_set import NORMS, is_ball, read_ball
from verifier.cli.parser import seconds
from verifier.errors import SpecError, VerifierError

if TYPE_CHECKING:
    from verifier.spec.problem import Problem
    from verifier.tighten.attained import Attained
    from verifier.tighten.methods import MethodResult

NAMES = (
    "ibp", "fast-lin", "cnn-cert", "deeppoly", "crown", "alpha-crown", "wong-kolter", "lagrangian", "lp", "planes",
    "milp", "sdp", "sdp-dual", "sdp-crown",
)  # fmt: skip
__doc__ = (__doc__ or "").replace("{methods}", ", ".join(NAMES))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The network, the property, the methods and where the table goes."""
    parser.add_argument("network", metavar="NET")
    parser.add_argument("spec", metavar="SPEC", help="a VNN-LIB file, or CENTRE.npy:EPS")
    parser.add_argument("--method", default="all", metavar="NAMES", help="all, or names with commas (default: all)")
    parser.add_argument("--norm", choices=tuple(NORMS), default="linf", help="of CENTRE.npy:EPS (default: linf)")
    parser.add_argument(
        "--timeout", type=seconds, default=60.0, metavar="S", help="seconds for each method (default: 60)"
    )
    parser.add_argument("--soundness", choices=("float32", "real"), default="float32",
                        help="what the bounds hold for (default: float32, which implies real)")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write every row's bounds to FILE as JSON")
    parser.add_argument("--plot", metavar="FILE", help="draw the table (.png, .pdf, .svg)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the attack (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Bound by each method and print the table."""
    names = _chosen(args.method)
    check_writable(args.json)
    check_writable(args.plot)
    if args.plot is not None:
        _check_plot(args.plot)
    with interruptible() as pressed:
        from verifier.outcome import Soundness
        from verifier.tighten.methods import BoundSession, MethodSettings

        graph, problem = _read(args)
        level = Soundness.IEEE_FLOAT if args.soundness == "float32" else Soundness.REAL_ARITHMETIC
        settings = MethodSettings(timeout_s=args.timeout, soundness=level, cancelled=pressed)
        session = BoundSession(graph, problem, settings)
        coeffs, limits, case, _ = session.rows()
        if not len(limits):
            raise SpecError(f"{args.spec}: the property has no rows to bound")
        print(f"verifier: {len(limits)} rows in {len(problem.cases)} cases; attacking", file=sys.stderr)
        reached = _attack(session, coeffs, case, args)
        results: list[MethodResult] = []
        failures: dict[str, str] = {}
        for name in names:
            if pressed():
                break
            print(f"verifier: {name}", file=sys.stderr)
            try:
                results.append(session.bound(name))
            except VerifierError as error:
                failures[name] = str(error)
        if not results and failures and not pressed():
            raise SpecError("; ".join(f"{name}: {why}" for name, why in failures.items()))
        _print_table(results, failures, reached - limits, session.soundness)
        if args.json is not None:
            _write_json(args, results, failures, reached - limits)
        if args.plot is not None and results:
            _draw(args, results, reached - limits)
        return 130 if pressed() else 0


def _chosen(text: str) -> list[str]:
    from difflib import get_close_matches

    if text == "all":
        return list(NAMES)
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in NAMES:
            near = get_close_matches(name, NAMES, 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise SpecError(f"--method: expected all or names of {', '.join(NAMES)}, got '{name}'{hint}")
    if not names:
        raise SpecError("--method: expected all or at least one name")
    return list(dict.fromkeys(names))


def _read(args: argparse.Namespace) -> tuple[Any, Problem]:
    from verifier.api import load

    if not is_ball(args.spec):
        if args.norm != "linf":
            raise SpecError(f"--norm {args.norm}: expected CENTRE.npy:EPS as SPEC, got '{args.spec}'")
        query, _ = load(args.network, args.spec)
        return query.graph, query.problem
    from verifier.graph.evaluate import evaluate
    from verifier.graph.load import load_network
    from verifier.spec.problem import Case, Problem, misclassified

    graph = load_network(args.network)
    if graph.output_size < 2:
        raise SpecError(f"{args.spec}: a ball is about the class, but the network has one output; use a VNN-LIB file")
    inputs = read_ball(args.spec, graph, args.norm)
    center = inputs.ball.center if inputs.ball is not None else 0.5 * (inputs.lower + inputs.upper)
    label = int(evaluate(graph, center)[0].argmax())
    print(f"verifier: the network gives the centre class {label}", file=sys.stderr)
    return graph, Problem((Case(inputs, misclassified(label, graph.output_size)),), graph.output_size)


def _attack(session: Any, coeffs: Any, case: Any, args: argparse.Namespace) -> Any:
    import numpy as np

    from verifier.tighten.attained import attained

    found = np.full(len(coeffs), np.inf)
    for index, member in enumerate(session.problem.cases):
        here = case == index
        if np.any(here) and not member.inputs.is_empty_box and not session.settings.cancelled():
            reached: Attained = attained(
                session.state(index).engine, member.inputs, coeffs[here], seed=args.seed,
                time_limit_s=args.timeout / len(session.problem.cases), cancelled=session.settings.cancelled,
            )  # fmt: skip
            found[here] = reached.values
    return found


def _print_table(results: list[MethodResult], failures: dict[str, str], reached: Any, soundness: Any) -> None:
    print(f"{'method':<12} {'worst bound':>13} {'mean gap':>11} {'refuted':>9} {'seconds':>8} {'MiB':>6}  notes")
    for r in results:
        gap = _mean_gap(r, reached)
        refuted = f"{int(r.refuted.sum())}/{r.refuted.size}"
        print(
            f"{r.method:<12} {r.margins.min():>13.6g} {gap:>11.4g} {refuted:>9} {r.seconds:>8.2f} "
            f"{r.peak_memory_bytes / 2**20:>6.0f}  {'; '.join(r.notes)}".rstrip()
        )
    print(f"{'attack':<12} {reached.min():>13.6g}")
    for name, why in failures.items():
        print(f"{name:<12} no bound: {why}")
    print(f"bounds: {soundness.message}")


def _mean_gap(result: MethodResult, reached: Any) -> float:
    """Mean over the rows of attained minus bound; nan where either is infinite throughout."""
    import numpy as np

    with np.errstate(invalid="ignore"):
        gaps = reached - result.margins
    gaps = gaps[np.isfinite(gaps)]
    return float(gaps.mean()) if gaps.size else math.nan


def _number(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))


def _write_json(args: argparse.Namespace, results: list[MethodResult], failures: dict[str, str], reached: Any) -> None:
    content = {
        "network": args.network,
        "spec": args.spec,
        "attack": [_number(v) for v in reached],
        "methods": {
            r.method: {
                "margins": [_number(v) for v in r.margins],
                "case": r.case.tolist(),
                "clause": r.clause.tolist(),
                "refuted": r.refuted.tolist(),
                "seconds": r.seconds,
                "peak_memory_bytes": r.peak_memory_bytes,
                "soundness": r.soundness.name.lower(),
                "notes": list(r.notes),
            }
            for r in results
        },
        "failures": failures,
    }
    with open(args.json, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.write("\n")


def _check_plot(path: str) -> None:
    if not path.endswith((".png", ".pdf", ".svg")):
        raise SpecError(f"--plot: expected a file ending in .png, .pdf or .svg, got '{path}'")
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise SpecError("--plot needs matplotlib: pip install matplotlib")


def _draw(args: argparse.Namespace, results: list[MethodResult], reached: Any) -> None:
    from verifier.report.bound_plot import BoundBars, draw_bounds

    bars = [BoundBars(r.method, r.margins[abs(r.margins) < math.inf], r.seconds, r.peak_memory_bytes) for r in results]
    draw_bounds(bars, reached[abs(reached) < math.inf], args.plot)
