"""Decide a box by trees over all neurons together, where a program of the network is small enough for them.

With stable neurons written out, a bound has planes over what a neuron reads instead of lines over one interval
(tighten/plane_ascent.py; linear programs with cuts, tighten/hot_tree.py, where those do not apply). Their trees need
far fewer subdomains than one of backward passes, at a hundred times the cost of each.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from verifier.attack.falsify import Falsifier
from verifier.bounds.engine import BoxEngine, DomainEngine
from verifier.errors import VerifierError
from verifier.graph.ir import Graph, Node
from verifier.outcome import Soundness
from verifier.run import Run
from verifier.search.input_split import SplitResult
from verifier.spec.groups import Group
from verifier.spec.problem import Clause, InputSet

if TYPE_CHECKING:
    from verifier.tighten.feed import Known
    from verifier.tighten.neuron_tree import Progress

#: Neurons of a network, and coefficients of its linear layers, up to which programs are tried; coefficients up to which
#: a program is, with ascents and without.
MOST_NEURONS, MOST_WEIGHTS, MOST_TERMS, FEW_TERMS = 20_000, 2_000_000, 1_000_000, 300_000
PLAIN = (
    "Input", "Constant", "Dense", "Conv", "Scale", "Add", "Sub", "Reshape", "Transpose", "Select", "Concat", "Relu",
    "LeakyRelu", "Abs",
)  # fmt: skip
#: A tree is given up at once where it should take so many times the time left, going by its first split, which says too
#: little by a factor of about ten. After TRIAL_SHARE of the time, in these limits, for all that are given up, it is
#: where it is behind and either should take longer than there is or has SURPRISE times the subdomains that it should.
#: Most of a tree is closed late.
PATIENCE, TRIAL_SHARE, TRIAL_S, TOO_FEW, SURPRISE = 1.0, 0.1, (2.0, 60.0), 3.0, 20.0
#: Seconds that must be left: setting up takes one or two.
LEAST_S = 5.0


def fits(graph: Graph) -> bool:
    """Whether programs of the network stay small: linear layers and neurons of two pieces, few of both."""
    if any(n.op not in PLAIN for n in graph.nodes.values()):
        return False
    neurons = sum(n.size for n in graph.nodes.values() if n.op in ("Relu", "LeakyRelu", "Abs"))
    return 0 < neurons <= MOST_NEURONS and sum(map(_coefficients, graph.nodes.values())) <= MOST_WEIGHTS


def _coefficients(node: Node) -> int:
    """Of a linear layer as a matrix, at most."""
    if node.op not in ("Dense", "Conv"):
        return 0
    weight = node.attrs["weight"]
    each = weight.shape[0] if node.op == "Dense" else np.prod(weight.shape[1:], dtype=np.int64)
    return int(node.size * each)


def decide_by_programs(
    engine: BoxEngine,
    domains: DomainEngine,
    group: Group,
    index: int,
    falsifier: Falsifier,
    run: Run,
    clauses: np.ndarray,
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
    with run.stage("programs"):
        return _decided(engine, domains, group, index, falsifier, run, clauses)


def _decided(
    engine: BoxEngine,
    domains: DomainEngine,
    group: Group,
    index: int,
    falsifier: Falsifier,
    run: Run,
    clauses: np.ndarray,
) -> tuple[SplitResult | None, np.ndarray]:
    from verifier.tighten.feed import LastMile

    inputs = InputSet(group.lower[index], group.upper[index])
    left, solved, lowest = list(map(int, clauses)), 0, np.inf
    trial = float(np.clip(TRIAL_SHARE * run.remaining(), *TRIAL_S))
    try:
        programs = LastMile(*_known(engine, domains, inputs, run, trial))
        if programs.size > MOST_TERMS or (programs.size > FEW_TERMS and not programs.ascends):
            return None, clauses
        for clause in clauses:
            own = group.rows.clause == clause
            asked = Clause(group.rows.coeffs[own], group.limits[index][own], group.rows.strict[own])
            begin = time.monotonic()
            proof = programs.refute(asked, run.deadline, partial(_hopeless, run, len(left), begin, trial))
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
            trial -= time.monotonic() - begin
            if trial < 0:
                break
    except VerifierError as error:
        run.say("programs", f"not possible: {error}")
        return None, clauses
    run.say("programs", f"{solved} subdomains bounded: {len(left)} of {len(clauses)} clauses open")
    if left:
        return None, np.array(left, dtype=clauses.dtype)
    run.open, run.bound_after = 0, lowest
    return SplitResult(None, 0), clauses[:0]


def _hopeless(run: Run, left: int, begin: float, trial: float, at: Progress) -> bool:
    """Whether a tree, begun at `begin` with `left` clauses open, is not worth more time."""
    run.tick(left, -np.inf if run.bound_after is None else run.bound_after)
    spent = time.monotonic() - begin
    whole, there = spent * at.expected / max(at.visited, 1), spent + run.remaining()
    late = TOO_FEW * whole > there or at.visited > SURPRISE * at.expected
    return run.stopped() or whole > PATIENCE * there or (late and spent > max(trial, at.share * there))


def _known(
    engine: BoxEngine, domains: DomainEngine, inputs: InputSet, run: Run, seconds: float
) -> tuple[Graph, InputSet, Known, int]:
    """What `LastMile` is made of; without torch where the engine is native."""
    from verifier.tighten.feed import Known

    real = engine.soundness is Soundness.REAL_ARITHMETIC
    if engine.name == "native":
        from verifier.bounds.native_domains import NativeDomains
        from verifier.tighten.deployed import rounding_errors

        assert isinstance(domains, NativeDomains)
        bounds, sizes = domains.node_bounds(engine.graph)
        errors = rounding_errors(engine.graph, sizes, real=real)
        return engine.graph, inputs, Known(bounds, errors), domains.threads
    from verifier.tighten.propagated import Propagated

    state = Propagated(
        engine.graph, inputs, soundness=engine.soundness, time_limit_s=seconds, cancelled=run.stopped
    )
    return state.graph, inputs, Known(state.intermediate(state.crown()), state.rounding_error(state.crown())), 1
