"""How far one bound of a box gets by lines, by linear programs with cuts, and by ascents over planes, and in what time.

    python benchmarks/micro/planes.py NET SPEC [--rounds 5]

The worst clause that the compiled engine leaves open after optimising slopes; every bound uses the same bounds of
single neurons, in the deployed program's arithmetic. Seconds are of the processor, building the program left out.
Printed: the row's margin after each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from verifier.bounds.native_domains import NativeDomains
from verifier.bounds.native_engine import NativeEngine
from verifier.bounds.roots import root_domains
from verifier.graph.load import load_network
from verifier.run import Run
from verifier.spec.groups import group_cases
from verifier.spec.load import load_query
from verifier.spec.problem import Clause, InputSet
from verifier.tighten.build import build_model
from verifier.tighten.deployed import rounding_errors
from verifier.tighten.hot_model import HotModel
from verifier.tighten.model import LinearModel
from verifier.tighten.plane_ascent import covers
from verifier.tighten.plane_tree import plane_tree
from verifier.tighten.substitute import substituted


def shown(name: str, work: Callable[[], float]) -> None:
    """Time and print one line."""
    begin = time.process_time()
    margin = work()
    print(f"| {name} | {margin:.4f} | {time.process_time() - begin:.2f} |", flush=True)


def with_cuts(model: LinearModel, clause: Clause, rounds: int) -> None:
    """The linear program, and after some rounds of cuts."""
    program = HotModel(model, model.cost(clause.coeffs[0]))
    size = f"{model.row_count} rows, {model.matrix.nnz} coefficients"
    shown(f"linear program, {size}", lambda: program.bound(np.inf).bound - clause.limits[0])

    def cut() -> float:
        found = program.bound(np.inf)
        for _ in range(rounds):
            if found.point is None or not program.cut(found.point):
                break
            found = program.bound(np.inf)
        return float(found.bound - clause.limits[0])

    shown(f"and {rounds} rounds of cuts", cut)


def main() -> None:
    """Parse arguments, bound, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("spec")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    query = load_query(args.spec, load_network(args.network))
    (group,) = group_cases(query.problem)
    engine = NativeEngine(query.graph, threads=1)
    domains, left = root_domains(engine, group, 0, Run())
    if len(left) == 0:
        print("no clause is open")
        return
    assert isinstance(domains, NativeDomains)
    bounds = domains.bound(domains.initial(left), 60, lambda: False)
    worst = int(bounds.batch.margin.argmin())
    clause = group.clause(0, left[worst])
    known, sizes = domains.node_bounds(engine.graph)
    inputs = InputSet(group.lower[0], group.upper[0])
    model = build_model(engine.graph, inputs, known, rounding_errors(engine.graph, sizes, real=False))
    assert model is not None
    print(f"{domains.width} open neurons\n\n| bound | margin | CPU s |\n|---|---:|---:|")
    print(f"| slopes optimised, backward passes | {bounds.batch.margin[worst]:.4f} | - |")
    with_cuts(model, clause, args.rounds)
    small = substituted(model)
    print("| stable neurons written out: | | |")
    with_cuts(small, clause, args.rounds)
    if covers(small):
        tree = plane_tree(small, clause)
        shown("ascent over planes", lambda: tree.prove_above(0.0, np.inf, stop=lambda at: at.visited > 0).lower)


if __name__ == "__main__":
    main()
