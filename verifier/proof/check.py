"""Checks a proof: every clause of every case has a tree, and every leaf's bound refutes its clauses.

Imports no engine: the graph, the property, NumPy and SciPy's sparse products. See `verifier.proof` for what is trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from verifier.outcome import Soundness
from verifier.proof.bounder import Bounder, Domain, divided
from verifier.proof.format import NeuronRows, Proof, Tree
from verifier.proof.program import Program
from verifier.proof.tree import Leaf, Rejected, leaves
from verifier.spec.problem import Clause, InputSet, Problem
from verifier.spec.query import Query

#: Numbers of the widest step over all leaves that are bounded at once, and leaves.
_MOST_NUMBERS, _MOST_LEAVES = 2_000_000, 64


@dataclass(frozen=True)
class Checked:
    """What was checked: leaves, and the smallest margin by which one of them holds."""

    leaves: int
    margin: float


def check(query: Query, proof: Proof, progress: Callable[[int, int], None] | None = None) -> Checked:
    """Check a proof of a query.

    Args:
        progress: called with (leaves checked, leaves in all).
    Raises:
        Rejected: it does not prove the query; says why and where.
        UnsupportedOperator: no proof covers such a network.
    """
    if proof.soundness is Soundness.HEURISTIC:
        raise Rejected("the proof claims to be an estimate")
    checker = Checker(query, proof.soundness)
    _covers(query.problem, proof)
    for rows in proof.rows:
        checker.use(rows)
    done, margin, total = 0, np.inf, proof.leaf_count
    for tree in proof.trees:
        for found in checker.check(tree):
            done, margin = done + found.leaves, min(margin, found.margin)
            if progress is not None:
                progress(done, total)
    return Checked(done, margin)


def _covers(problem: Problem, proof: Proof) -> None:
    """Raises Rejected where a clause of a case with inputs has no tree."""
    proved: dict[int, set[int]] = {}
    for tree in proof.trees:
        if not 0 <= tree.case < len(problem.cases):
            raise Rejected(f"a tree is about case {tree.case} of {len(problem.cases)}")
        proved.setdefault(tree.case, set()).update(tree.clauses.tolist())
    for number, case in enumerate(problem.cases):
        if case.inputs.is_empty_box:
            continue
        missing = set(range(len(case.clauses))) - proved.get(number, set())
        if missing:
            raise Rejected(f"case {number}: nothing is said of clause {min(missing)}")


class Checker:
    """Bounds and checks leaves of one query's trees."""

    def __init__(self, query: Query, soundness: Soundness):
        self.program = Program(query.graph, rounded=soundness is Soundness.IEEE_FLOAT)
        self.bounder, self._cases = Bounder(self.program), query.problem.cases
        self._known: tuple[int, np.ndarray, np.ndarray, Domain] | None = None  # of a case, the last box that was split
        self._rows: dict[int, NeuronRows] = {}

    def check(self, tree: Tree) -> Iterator[Checked]:
        """Check a tree, some leaves at a time.

        Raises:
            Rejected: a leaf does not hold, or the tree is malformed.
        """
        inputs = self.inputs_of(tree.case)
        self._accept(tree)
        walk = leaves(tree, inputs.lower, inputs.upper, self.program.neuron_count)
        most, done = max(1, min(_MOST_LEAVES, _MOST_NUMBERS // self.program.widest)), 0
        while some := list(islice(walk, most)):
            margins = self.margins(tree, some)
            wrong = np.flatnonzero(~(margins > 0.0))
            if len(wrong):
                where = f"case {tree.case}, leaf {done + int(wrong[0])}"
                raise Rejected(f"{where}: its bound misses the proof by {-margins[wrong[0]]:.6g}")
            done += len(some)
            yield Checked(len(some), float(margins.min()))

    def use(self, rows: NeuronRows) -> None:
        """Bound these neurons of a case's box by these slopes, in checks to come.

        Raises:
            Rejected: arrays that do not fit, or neurons that do not exist.
        """
        shapes = (rows.neuron.shape, (*rows.side.shape, rows.free.size))
        if rows.case in self._rows or shapes != (rows.side.shape, rows.slopes.shape):
            raise Rejected(f"case {rows.case}: bounds of neurons do not fit together")
        if not (np.abs(rows.side.astype(np.int64)) == 1).all():
            raise Rejected(f"case {rows.case}: bounds of neurons are from below or above")
        self._exist(rows.neuron)
        self._exist(rows.free)
        self._rows[rows.case], self._known = rows, None

    def _exist(self, neurons: np.ndarray) -> None:
        if neurons.size and not (neurons.min() >= 0 and neurons.max() < self.program.neuron_count):
            raise Rejected(
                f"neurons {neurons.min()} to {neurons.max()} are named, there are {self.program.neuron_count}"
            )

    def _accept(self, tree: Tree) -> None:
        """Raises Rejected where a tree names what does not exist, or its arrays do not fit."""
        count = len(self._cases[tree.case].clauses)
        if tree.clauses.size == 0 or tree.clauses.min() < 0 or tree.clauses.max() >= count:
            raise Rejected(f"case {tree.case}: a tree names clauses {tree.clauses.tolist()} of {count}")
        if tree.slopes.shape[1] != tree.free.size or tree.free.size != np.unique(tree.free).size:
            raise Rejected("slopes and the neurons they belong to do not fit")
        self._exist(tree.free)

    def inputs_of(self, case: int) -> InputSet:
        """A case's inputs."""
        return self._cases[case].inputs

    def clauses_of(self, case: int) -> np.ndarray:
        """The numbers of a case's clauses."""
        return np.arange(len(self._cases[case].clauses))

    def margins(self, tree: Tree, some: list[Leaf]) -> np.ndarray:
        """By how much each leaf [L] refutes the tree's clauses, the worst of them; > 0 where it does, never NaN.

        A strict row `a y < limit` is refuted by a y >= limit, so that a margin of 0 counts: such a 0 becomes tiny.
        """
        clauses = [self._cases[tree.case].clauses[k] for k in tree.clauses.tolist()]
        found = np.empty(len(some))
        alike: dict[tuple[int, bool] | None, list[int]] = {}  # None: boxes of their own, with nothing given
        for k, leaf in enumerate(some):
            plain = leaf.box > 0 and not leaf.splits and leaf.slopes < 0
            alike.setdefault(None if plain else (leaf.box, leaf.slopes < 0), []).append(k)
        for key, places in alike.items():
            own = [some[k] for k in places]
            domain = self._boxes(tree.case, own) if key is None else self._divided(tree, own)
            found[places] = self._clauses(domain, clauses)
        return found

    def _boxes(self, case: int, own: list[Leaf]) -> Domain:
        """The boxes of leaves as subdomains."""
        lower, upper = (np.stack([getattr(leaf, end) for leaf in own]) for end in ("lower", "upper"))
        return self.bounder.enclose(lower, upper, inputs=self.inputs_of(case))

    def _clauses(self, domain: Domain, clauses: list[Clause]) -> np.ndarray:
        """The worst clause's margin on each of a domain's subdomains, [B]."""
        rows = np.concatenate([c.coeffs for c in clauses])
        distinct, at = np.unique(rows, axis=0, return_inverse=True)
        bounds = self.bounder.forms(domain, distinct)[:, at.reshape(-1)]
        empty = domain.empty
        count, start = max(len(bounds), len(empty)), 0
        worst = np.full(count, np.inf)
        for clause in clauses:
            stop = start + len(clause.limits)
            # Rounded to nearest, a difference keeps its sign.
            margin = np.broadcast_to(bounds[:, start:stop] - clause.limits, (count, stop - start))
            refuted = np.where(clause.strict & (margin == 0.0), np.finfo(np.float64).tiny, margin)
            worst = np.minimum(worst, refuted.max(axis=1, initial=-np.inf))
            start = stop
        return np.where(empty, np.inf, worst)

    def _enclosed(self, case: int, lower: np.ndarray, upper: np.ndarray) -> Domain:
        """Bounds over a box of a case, kept for the leaves to come."""
        known, inputs = self._known, self.inputs_of(case)
        same = known is not None and known[0] == case
        if known is None or not (same and np.array_equal(known[1], lower) and np.array_equal(known[2], upper)):
            whole = np.array_equal(lower, inputs.lower) and np.array_equal(upper, inputs.upper)
            rows = self._rows.get(case) if whole else None
            enclosed = self.bounder.enclose(lower[None], upper[None], lambda *_: rows, inputs)
            known = self._known = (case, lower, upper, enclosed)
        return known[3]

    def _divided(self, tree: Tree, own: list[Leaf]) -> Domain:
        """The subdomains of leaves that share a box."""
        domain = self._enclosed(tree.case, own[0].lower, own[0].upper)
        count, neurons = len(own), self.program.neuron_count
        sign, beta = np.zeros((count, neurons)), np.zeros((count, neurons))
        for k, leaf in enumerate(own):
            for (number, side), multiplier in zip(leaf.splits, leaf.multipliers.tolist(), strict=True):
                if sign[k, number] == -side:
                    raise Rejected(f"neuron {number} is split twice, to both sides")
                sign[k, number] = side
                beta[k, number] += side * (multiplier if multiplier > 0 and np.isfinite(multiplier) else 0.0)
        rows = np.array([leaf.slopes for leaf in own])
        if rows.max(initial=-1) >= len(tree.slopes):
            raise Rejected(f"a leaf asks for row {rows.max()} of {len(tree.slopes)} of slopes")
        # Leaves with default slopes come alone, so that the others all have a row.
        slopes = self.bounder.slopes(domain, tree.free, tree.slopes[rows]) if rows.min() >= 0 else {}
        split = {n: sign[:, part] for n, part in self.program.neurons.items() if sign[:, part].any()}
        return divided(domain, split, slopes, {n: beta[:, self.program.neurons[n]] for n in split})
