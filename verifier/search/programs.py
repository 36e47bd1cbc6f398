"""Decide a box by linear programs with cuts (tighten/hot_tree.py), where the network is small enough for them.

A program bounds all neurons together, with planes over what a neuron reads instead of over one interval, so its tree
needs far fewer subdomains than one of backward passes, at thousands of times the cost of each.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from verifier.attack.falsify import Falsifier
from verifier.bounds.engine import BoxEngine, DomainEngine
from verifier.errors import VerifierError
from verifier.graph.ir import Graph
from verifier.outcome import Soundness
from verifier.run import Run
from verifier.search.input_split import SplitResult
from verifier.spec.groups import Group
from verifier.spec.problem import Clause, InputSet

if TYPE_CHECKING:
    from verifier.tighten.feed import Known

#: Neurons and weights up to which programs are tried. With 270000 weights one program takes a second or two, and a box
#: that splitting alone decides in two was still open after sixty.
MOST_NEURONS, MOST_WEIGHTS = 600, 100_000
PLAIN = ("Input", "Constant", "Dense", "Scale", "Add", "Sub", "Reshape", "Select", "Concat", "Relu", "LeakyRelu", "Abs")
#: A tree that would not end in the time left, going by the share of it that is closed, is given up after this share of
#: the time, within these seconds. Most of a tree is closed late, when splits and cuts have been learned.
TRIAL_SHARE, TRIAL_S = 0.3, (3.0, 60.0)
#: Seconds that must be left: setting up takes one or two.
LEAST_S = 5.0


def fits(graph: Graph) -> bool:
    """Whether programs of the network stay small: dense layers and relus, few of both."""
    neurons = weights = 0
    for node in graph.nodes.values():
        neurons += node.size if node.op in ("Relu", "LeakyRelu", "Abs") else 0
        weights += np.size(node.attrs.get("weight", ()))
    plain = all(n.op in PLAIN for n in graph.nodes.values())
    return plain and 0 < neurons <= MOST_NEURONS and weights <= MOST_WEIGHTS


def decide_by_programs(
    engine: BoxEngine,
    domains: DomainEngine,
    group: Group,
    index: int,
    clauses: np.ndarray,
    falsifier: Falsifier,
    run: Run,
) -> tuple[SplitResult | None, np.ndarray]:
    """What programs decide of some clauses of box `index`, and the clauses they leave open.

    Args:
        domains: the engine's bounds of that box.
    Returns:
        (result, clauses): a counterexample, or a proof when no clause is left; else None. A clause whose tree would not
        end in time is left open.
    """
    if group.inputs is not None or run.remaining() < LEAST_S or not fits(engine.graph):
        return None, clauses
    from verifier.tighten.feed import last_mile

    inputs = InputSet(group.lower[index], group.upper[index])
    trial = float(np.clip(TRIAL_SHARE * run.remaining(), *TRIAL_S))
    left, solved, lowest = list(map(int, clauses)), 0, np.inf
    try:
        graph, known = _known(engine, domains, inputs, run, trial)
        for clause in clauses:
            own = group.rows.clause == clause
            asked = Clause(group.rows.coeffs[own], group.limits[index][own], group.rows.strict[own])
            begin, time_s = time.monotonic(), run.remaining() / len(left)

            def hopeless(share: float, begin: float = begin, time_s: float = time_s) -> bool:
                spent = time.monotonic() - begin
                run.tick(len(left), -np.inf if run.bound_after is None else run.bound_after)
                return run.stopped() or (spent > trial and spent > share * time_s)

            proof = last_mile(graph, inputs, asked, known, run.deadline, hopeless)
            solved += proof.subproblems
            run.visited += proof.subproblems
            if proof.refuted:
                left.remove(int(clause))
                lowest = min(lowest, proof.margin)
                continue
            if proof.point is not None:
                witness = falsifier.try_points(np.array([index]), proof.point[None])
                if witness is not None:
                    return SplitResult(witness, len(left)), clauses
            break
    except VerifierError as error:
        run.say("programs", f"not possible: {error}")
        return None, clauses
    run.say("programs", f"{solved} linear programs: {len(left)} of {len(clauses)} clauses open")
    if left:
        return None, np.array(left, dtype=clauses.dtype)
    run.open, run.bound_after = 0, lowest
    return SplitResult(None, 0), clauses[:0]


def _known(
    engine: BoxEngine, domains: DomainEngine, inputs: InputSet, run: Run, seconds: float
) -> tuple[Graph, Known]:
    """What is known of the neurons of a box, and the graph it refers to; without torch where the engine is native."""
    from verifier.tighten.feed import Known

    real = engine.soundness is Soundness.REAL_ARITHMETIC
    if engine.name == "native":
        from verifier.bounds.native_domains import NativeDomains
        from verifier.tighten.deployed import rounding_errors

        assert isinstance(domains, NativeDomains)
        bounds, sizes = domains.node_bounds(engine.graph)
        return engine.graph, Known(bounds, rounding_errors(engine.graph, sizes, real=real))
    from verifier.tighten.propagated import Propagated

    state = Propagated(
        engine.graph, inputs, soundness=engine.soundness, time_limit_s=seconds, cancelled=run.stopped
    )
    return state.graph, Known(state.intermediate(state.crown()), state.rounding_error(state.crown()))
