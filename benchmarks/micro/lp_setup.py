"""Time to set up and solve the triangle LP: HiGHS directly against the same model through cvxpy.

    python benchmarks/micro/lp_setup.py [--widths 50 100] [--rows 5] [--repeats 3]

Prints processor seconds per row for building the model (shared), for each back end (set-up and solves), the
ratio, and the largest difference of the rigorous bounds.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise

import numpy as np

from verifier.graph.ir import Graph, GraphBuilder
from verifier.spec.problem import lp_ball
from verifier.tighten.build import build_model
from verifier.tighten.lp import LpSession


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


def timed(session_of, model, rows: np.ndarray, repeats: int) -> tuple[float, np.ndarray]:
    """Best processor time of set-up and all rows, and the bounds [S]."""
    best, bounds = np.inf, np.zeros(len(rows))
    for _ in range(repeats):
        start = time.process_time()
        session = session_of(model)
        bounds = np.array([session.bound(model.cost(row)).bound for row in rows])
        best = min(best, time.process_time() - start)
    return best, bounds


def main() -> None:
    """Parse arguments, run, print one line per width."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[20, 50, 100])
    parser.add_argument("--rows", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--radius", type=float, default=0.05)
    parser.add_argument("--solver", default="CLARABEL", help="cvxpy name of the solver compared with")
    args = parser.parse_args()
    print("width  build_s  highs_s  cvxpy_s  ratio  largest_difference   (s per row)")
    for width in args.widths:
        graph = random_net(64, width, 10, seed=width)
        inputs = lp_ball(np.zeros(64), args.radius)
        start = time.process_time()
        model = build_model(graph, inputs)
        build = time.process_time() - start
        if model is None:
            raise SystemExit("the random network has an empty model")
        rows = np.eye(10)[: args.rows]
        highs, first = timed(lambda m, i=inputs: LpSession(m, i), model, rows, args.repeats)
        other, second = timed(lambda m, i=inputs: LpSession(m, i, args.solver), model, rows, args.repeats)
        per_row = np.array([build, highs, other]) / len(rows)
        gap = float(np.abs(first - second).max())
        print(f"{width:5d}  {per_row[0]:7.4f}  {per_row[1]:7.4f}  {per_row[2]:7.4f}  {other / highs:5.1f}  {gap:.1e}")


if __name__ == "__main__":
    main()
