"""Decide a box by trees over all neurons together, where a program of the network is small enough for them.

With stable neurons written out, a bound has planes over what a neuron reads instead of lines over one interval
(tighten/plane_ascent.py; linear programs with cuts, tighten/hot_tree.py, where those do not apply). Their trees need
far fewer subdomains than one of backward passes, at a hundred times the cost of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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
from verifier.spec.problem import InputSet

if TYPE_CHECKING:
    from verifier.tighten.feed import Known, LastMile
    from verifier.tighten.neuron_tree import Progress

#: Neurons of a network, and coefficients of its linear layers, up to which programs are tried; coefficients up to which
#: a program is, with ascents and without.
MOST_NEURONS, MOST_WEIGHTS, MOST_TERMS, FEW_TERMS = 20_000, 2_000_000, 1_000_000, 300_000
PLAIN = (
    "Input", "Constant", "Dense", "Conv", "Scale", "Add", "Sub", "Reshape", "Transpose", "Select", "Concat", "Relu",
    "LeakyRelu", "Abs",
)  # fmt: skip
#: Trees take about as long as their roots times the subdomains that their first splits foretell, and are not begun
#: where that is more than PATIENCE times the trial. After the trial one is given up where it is behind, and either
#: should take longer than there is, of TOO_FEW times the subdomains foretold, or has SURPRISE times as many. Most of a
#: tree is closed late.
TOO_FEW, PATIENCE, SURPRISE = 10.0, 4.0, 20.0
#: Seconds that must be left, and that may be lost: setting up takes a tenth of a second to two.
LEAST_S, LEAST_TRIAL_S = 5.0, 0.3


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
    trial: float,
) -> tuple[SplitResult | None, np.ndarray]:
    """What programs decide of some clauses of box `index`, and the clauses they leave open.

    Args:
        domains: the engine's bounds of that box.
        trial: seconds that may be lost.
    Returns:
        (result, clauses): a counterexample, or a proof when no clause is left; else None. Clauses whose trees would
            not end in time are left open.
    """
    if group.inputs is not None or run.remaining() < LEAST_S or trial < LEAST_TRIAL_S or not fits(engine.graph):
        return None, clauses
    from verifier.tighten.feed import LastMile

    with run.stage("programs"):
        try:
            inputs = InputSet(group.lower[index], group.upper[index])
            programs = LastMile(*_known(engine, domains, inputs, run, trial))
            if programs.size > MOST_TERMS or (programs.size > FEW_TERMS and not programs.ascends):
                return None, clauses
            asked = _Trial(programs, group, index, clauses, falsifier, run)
            witness = asked.run_for(trial)
        except VerifierError as error:
            run.say("programs", f"not possible: {error}")
            return None, clauses
    left = asked.left
    run.say("programs", f"{asked.solved} subdomains bounded: {len(left)} of {len(clauses)} clauses open")
    if witness is not None:
        return SplitResult(witness, len(left)), clauses
    if left:
        return None, np.array(list(left), dtype=clauses.dtype)
    run.open, run.bound_after = 0, asked.lowest
    return SplitResult(None, 0), clauses[:0]


class _Trial:
    """Trees of the clauses of a box.

    Attributes:
        left: clauses not refuted yet, by number. solved: bounds so far. lowest: least margin of the others.
    """

    def __init__(
        self, programs: LastMile, group: Group, index: int, clauses: np.ndarray, falsifier: Falsifier, run: Run
    ):
        self.programs, self.index, self.falsifier, self.run = programs, index, falsifier, run
        self.solved, self.lowest = 0, np.inf
        self.left = {clause: group.clause(index, clause) for clause in map(int, clauses)}

    def run_for(self, trial: float) -> object | None:
        """Refute what can be, the easiest first, losing about `trial` seconds at most; a confirmed witness."""
        needs: dict[int, float] = {}
        for clause in list(self.left):
            begin, root = time.monotonic(), _Root(self.run)
            witness = self._refute(clause, root)
            if witness is not None:
                return witness
            needs[clause] = (time.monotonic() - begin) * root.expected
            if sum(needs[c] for c in self.left if c in needs) > PATIENCE * trial:
                return None
        for clause in sorted(self.left, key=needs.__getitem__):
            witness = self._refute(clause, partial(self._hopeless, time.monotonic(), trial))
            if witness is not None or clause in self.left:
                return witness
        return None

    def _refute(self, clause: int, stop: Callable[[Progress], bool]) -> object | None:
        """Take the clause off where its tree closes; a witness among the points of one that does not."""
        proof = self.programs.refute(self.left[clause], self.run.deadline, stop)
        self.solved += proof.subproblems
        self.run.visited += proof.subproblems
        if proof.refuted:
            del self.left[clause]
            self.lowest = min(self.lowest, proof.margin)
        elif proof.point is not None:
            return self.falsifier.try_points(np.array([self.index]), proof.point[None])
        return None

    def _hopeless(self, begin: float, trial: float, at: Progress) -> bool:
        """Whether a tree is not worth more time."""
        run, spent = self.run, time.monotonic() - begin
        run.tick(len(self.left), -np.inf if run.bound_after is None else run.bound_after)
        there, whole = spent + run.remaining(), TOO_FEW * spent * at.expected / max(at.visited, 1)
        late = whole > there or at.visited > SURPRISE * at.expected
        return run.stopped() or (late and spent > max(trial, at.share * there))


class _Root:
    """Stops a tree at its root; what it foretells."""

    def __init__(self, run: Run):
        self.run, self.expected = run, 1.0

    def __call__(self, at: Progress) -> bool:
        self.expected = at.expected
        return at.visited > 0 or self.run.stopped()


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

    state = Propagated(engine.graph, inputs, soundness=engine.soundness, time_limit_s=seconds, cancelled=run.stopped)
    return state.graph, inputs, Known(state.intermediate(state.crown()), state.rounding_error(state.crown())), 1
