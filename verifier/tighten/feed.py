"""What the search asks of optimisation: clauses refuted by a program of the whole network."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

from verifier.errors import ShapeError
from verifier.graph.ir import Graph
from verifier.spec.problem import Clause, InputSet
from verifier.tighten.build import build_model
from verifier.tighten.hot_tree import can_branch, hot_tree
from verifier.tighten.intervals import Errors, Interval
from verifier.tighten.lp import LpSession
from verifier.tighten.model import LinearModel
from verifier.tighten.neuron_tree import NeuronTree, Progress
from verifier.tighten.plane_ascent import covers
from verifier.tighten.plane_tree import plane_tree
from verifier.tighten.substitute import substituted

#: Trees kept at a time: each has a copy of the program.
MOST_TREES = 32


@dataclass(frozen=True)
class Known:
    """What a bound engine knows of a domain.

    Attributes:
        intermediate: node name -> (lower, upper), float64 [size], splits included.
        rounding_error: node name -> |deployed - exact|, float64 [size]; None for real arithmetic.
    """

    intermediate: Mapping[str, Interval]
    rounding_error: Errors | None = None


@dataclass(frozen=True)
class ClauseProof:
    """Attributes:
    refuted: no input of the domain satisfies the clause.
    subproblems: LPs solved.
    margin: rigorous lower bound of the row that was minimised, minus its limit.
    point: an input [N_in] worth evaluating when not refuted, or None.
    """

    refuted: bool
    subproblems: int
    margin: float
    point: np.ndarray | None


class LastMile:
    """Clauses on one domain by trees over all of its neurons: ascents over planes, else linear programs.

    Args:
        graph: the lowered graph that `known` refers to (`TorchEngine.network.graph`).
        threads: for subdomains side by side.
    Property: sound, IEEE_FLOAT with `known.rounding_error`; complete given time where every activation
        has one kink and the input set is a polytope.
    Raises:
        UnsupportedOperator, ShapeError: as `build_model`.
    """

    def __init__(self, graph: Graph, inputs: InputSet, known: Known, threads: int = 1):
        self._inputs, self._outputs, self._threads = inputs, graph.output_size, threads
        self._model = build_model(graph, inputs, known.intermediate, known.rounding_error)
        self._trees: dict[int, tuple[Clause, NeuronTree]] = {}

    @cached_property
    def _small(self) -> LinearModel | None:
        return None if self._model is None else substituted(self._model)

    @cached_property
    def ascends(self) -> bool:
        """Whether subdomains are bounded by ascents, else by linear programs."""
        return self._small is not None and self._inputs.is_box and covers(self._small)

    @property
    def size(self) -> int:
        """Coefficients of the program before stable neurons are written out; 0 where the domain is empty."""
        return 0 if self._model is None else int(self._model.matrix.nnz)

    def refute(
        self, clause: Clause, deadline: float, stop: Callable[[Progress], bool] = lambda progress: False
    ) -> ClauseProof:
        """Every row but one becomes a constraint of the model, so a conjunction is refuted as a whole.

        Args:
            deadline: time.monotonic() value to stop at.
            stop: asked before every subdomain.
        Raises:
            ShapeError: the clause has another number of outputs.
        """
        if clause.coeffs.shape[1] != self._outputs:
            raise ShapeError(f"clause: expected {self._outputs} outputs (N_out), got {clause.coeffs.shape[1]}")
        if self._small is None:
            return ClauseProof(True, 0, np.inf, None)
        if len(clause.limits) == 0:
            return ClauseProof(False, 0, -np.inf, None)
        if self.ascends or can_branch(self._small, self._inputs):
            return self._by_tree(clause, deadline, stop)
        model, inputs = _with_clause(self._small, clause), self._inputs
        cost, limit, strict = model.cost(clause.coeffs[0]), float(clause.limits[0]), not bool(clause.strict[0])
        answer = LpSession(model, inputs).bound(cost, max(deadline - time.monotonic(), 0.0))
        refuted = answer.bound > limit or (not strict and answer.bound >= limit)
        point = None if answer.point is None else answer.point[model.inputs]
        return ClauseProof(refuted, 1, float(np.nextafter(answer.bound - limit, -np.inf)), None if refuted else point)

    def _by_tree(self, clause: Clause, deadline: float, stop: Callable[[Progress], bool]) -> ClauseProof:
        """A clause's tree is kept for the next time, with what its splits gained, while there are few."""
        _, tree = self._trees.pop(id(clause), (clause, None))
        tree = tree or self._tree(clause)
        limit, strict = (0.0, True) if self.ascends else (float(clause.limits[0]), not bool(clause.strict[0]))
        solved = tree.solved
        found = tree.prove_above(limit, deadline, strict=strict, stop=stop)
        if not found.closed and len(self._trees) < MOST_TREES:
            self._trees[id(clause)] = clause, tree
        margin = float(np.nextafter(found.lower - limit, -np.inf))
        return ClauseProof(found.closed, tree.solved - solved, margin, found.point)

    def _tree(self, clause: Clause) -> NeuronTree:
        assert self._small is not None
        if self.ascends:
            return plane_tree(self._small, clause, self._threads)
        model = _with_clause(self._small, clause)
        return hot_tree(model, model.cost(clause.coeffs[0]))


def _with_clause(model: LinearModel, clause: Clause) -> LinearModel:
    """All rows of the clause but the first as constraints coeffs @ outputs <= limits."""
    if len(clause.limits) < 2:
        return model
    coeffs = sparse.csr_matrix(clause.coeffs[1:])
    columns = model.outputs[coeffs.indices]
    block = sparse.csr_matrix((coeffs.data, columns, coeffs.indptr), shape=(coeffs.shape[0], model.column_count))
    return model.with_rows(block, np.full(coeffs.shape[0], -np.inf), clause.limits[1:])
