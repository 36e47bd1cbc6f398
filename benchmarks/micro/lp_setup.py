"""Time to set up and solve the triangle LP: HiGHS directly against the same model through cvxpy.

    python benchmarks/micro/lp_setup.py [--widths 50 100] [--rows 5] [--repeats 3] [--solvers CLARABEL HIGHS]

Prints processor seconds per row, set-up and solves together, for HiGHS directly and for each solver through cvxpy:
once with the program compiled once and the row as its parameter, once with a program a row, as a model with the
row in its objective has it. Then the ratio of each to ours and the largest difference of the rigorous bounds.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise

import numpy as np

from verifier.graph.ir import Graph, GraphBuilder
from verifier.spec.problem import InputSet, lp_ball
from verifier.tighten.build import build_model
from verifier.tighten.lp import LpSession
from verifier.tighten.model import LinearModel


def random_net(inputs: int, width: int, outputs: int, seed: int) -> Graph:
    """Two hidden relu layers with He-scaled weights."""
    rng = np.random.default_rng(seed)
    builder = GraphBuilder()
    last = builder.add("Input", (), (1, inputs), "x")
    sizes = [inputs, width, width, outputs]
    for k, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        weight = rng.normal(size=(fan_in, fan_out)) * np.sqrt(2.0 / fan_in)
        last = builder.add("Dense", (last,), (1, fan_out), f"z{k}", weight=weight, bias=0.1 * rng.normal(size=fan_out))
        if k < 2:
            last = builder.add("Relu", (last,), (1, fan_out), f"h{k}")
    return builder.finish(("x",), (last,), dtype="float64")


def timed(model: LinearModel, inputs: InputSet, rows: np.ndarray, solver: str, repeats: int, *, anew: bool = False):
    """Best processor seconds a row, set-up included, and the bounds [S]; `anew`: a program for every row."""
    best, bounds = np.inf, np.zeros(len(rows))
    for _ in range(repeats):
        start = time.process_time()
        session = LpSession(model, inputs, solver)
        for s, row in enumerate(rows):
            if anew and s:
                session = LpSession(model, inputs, solver)
            bounds[s] = session.bound(model.cost(row)).bound
        best = min(best, time.process_time() - start)
    return best / len(rows), bounds


def main() -> None:
    """Parse arguments, run, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--rows", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--radius", type=float, default=0.05)
    parser.add_argument("--solvers", nargs="+", default=["CLARABEL", "HIGHS"], help="their names in cvxpy")
    args = parser.parse_args()
    print("| width | through | s a row | ours | ratio | a program a row | ratio | largest difference |")
    print("|--:|:--|--:|--:|--:|--:|--:|--:|")
    for width in args.widths:
        graph, inputs = random_net(64, width, 10, seed=width), lp_ball(np.zeros(64), args.radius)
        model = build_model(graph, inputs)
        if model is None:
            raise SystemExit("the random network has an empty model")
        rows = np.eye(10)[: args.rows]
        ours, bounds = timed(model, inputs, rows, "highs", args.repeats)
        for solver in args.solvers:
            once, other = timed(model, inputs, rows, solver, args.repeats)
            anew, _ = timed(model, inputs, rows, solver, args.repeats, anew=True)
            print(
                f"| {width} | {solver} | {once:.4f} | {ours:.4f} | {once / ours:.1f} | {anew:.4f} | "
                f"{anew / ours:.1f} | {np.abs(bounds - other).max():.1e} |", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
