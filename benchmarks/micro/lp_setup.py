"""Time to set up and solve the triangle LP: HiGHS directly against the same model through cvxpy.

    python benchmarks/micro/lp_setup.py [NET.onnx SPEC.vnnlib ...] [--random 20 50 100] [--repeats 3]

Without files, the largest properties of shipped networks. Bounds of hidden neurons are CROWN's, as they are for
`bounds --method lp`; --random adds networks of two hidden layers of so many neurons, all of them unstable, with
interval bounds. Prints processor seconds per row of the property, set-up and solves together, for HiGHS directly, and
how many times longer each solver takes through cvxpy: with a program a row, as a model with the row in its objective
has it, and with the program compiled once and the row as its parameter. Last, the largest difference of the rigorous
bounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from verifier import api
from verifier.graph.ir import Graph, GraphBuilder
from verifier.spec.groups import group_cases
from verifier.spec.problem import InputSet, lp_ball
from verifier.tighten.build import build_model
from verifier.tighten.lp import LpSession
from verifier.tighten.model import LinearModel
from verifier.tighten.propagated import Propagated

SPECS = Path(__file__).resolve().parents[2] / "specs"
SHIPPED = ("fc", "conv", "residual", "batchnorm", "leaky", "avgpool")


@dataclass(frozen=True)
class Task:
    """A model, its input set and rows [S, N_out] to bound."""

    name: str
    model: LinearModel | None
    inputs: InputSet
    rows: np.ndarray


def property_of(net: str, spec: str) -> Task:
    """The rows of a property's first case."""
    query, _ = api.load(net, spec)
    inputs, rows = query.problem.cases[0].inputs, group_cases(query.problem)[0].rows.distinct[0]
    known = Propagated(query.graph, inputs)
    crown = known.crown()
    model = build_model(known.graph, inputs, known.intermediate(crown), known.rounding_error(crown))
    return Task(f"{Path(net).name.split('.')[0]} {Path(spec).name.split('.')[0]}", model, inputs, rows)


def random_task(width: int) -> Task:
    """Five outputs of a random network with 64 inputs on a box of radius 0.05."""
    graph, inputs = random_net(64, width, 10, seed=width), lp_ball(np.zeros(64), 0.05)
    return Task(f"random 2x{width}", build_model(graph, inputs), inputs, np.eye(10)[:5])


def tasks(files: list[str], widths: list[int]) -> Iterator[Task]:
    """What the command line names, or the shipped properties."""
    if not files:
        files = [str(SPECS / f) for n in SHIPPED for f in (f"onnx/{n}.onnx", f"vnnlib/{n}_large.vnnlib")]
    for net, spec in zip(files[::2], files[1::2], strict=True):
        yield property_of(net, spec)
    for width in widths:
        yield random_task(width)


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


def timed(task: Task, solver: str, repeats: int, *, anew: bool = False) -> tuple[float, np.ndarray]:
    """Best processor seconds a row, set-up included, and the bounds [S]; `anew`: a program for every row."""
    assert task.model is not None
    best, bounds = np.inf, np.zeros(len(task.rows))
    for _ in range(repeats):
        start = time.process_time()
        session = LpSession(task.model, task.inputs, solver)
        for s, row in enumerate(task.rows):
            if anew and s:
                session = LpSession(task.model, task.inputs, solver)
            bounds[s] = session.bound(task.model.cost(row)).bound
        best = min(best, time.process_time() - start)
    return best / len(task.rows), bounds


def main() -> None:
    """Parse arguments, run, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="networks and properties in turn")
    parser.add_argument("--random", type=int, nargs="*", default=[], help="widths of random networks")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--solvers", nargs="+", default=["CLARABEL", "HIGHS"], help="their names in cvxpy")
    args = parser.parse_args()
    if len(args.files) % 2:
        parser.error(f"expected a property after each network, got {len(args.files)} files")
    print("| property | columns | unstable | rows | ms a row | through | a program a row | one program | differ |")
    print("|:--|--:|--:|--:|--:|:--|--:|--:|--:|")
    for task in tasks(args.files, args.random):
        if task.model is None:
            print(f"| {task.name} | interval bounds are empty |")
            continue
        ours, bounds = timed(task, "highs", args.repeats)
        unstable = sum(n.pre.size for n in task.model.neurons)
        start = f"| {task.name} | {task.model.column_count} | {unstable} | {len(task.rows)} | {1e3 * ours:.2f}"
        for solver in args.solvers:
            once, other = timed(task, solver, args.repeats)
            anew, _ = timed(task, solver, args.repeats, anew=True)
            difference = np.abs(bounds - other).max()
            print(f"{start} | {solver} | {anew / ours:.1f} | {once / ours:.1f} | {difference:.1e} |", flush=True)


if __name__ == "__main__":
    main()
