"""What the search may ask of optimisation: tighter neurons, and a proof where few of them are left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import sparse

from verifier.errors import ShapeError
from verifier.graph.ir import Graph
from verifier.spec.problem import Clause, InputSet
from verifier.tighten.build import build_model
from verifier.tighten.hot_tree import can_branch, hot_tree
from verifier.tighten.intervals import Errors, Interval, Maps
from verifier.tighten.lp import LpSession
from verifier.tighten.model import LinearModel
from verifier.tighten.neuron_tree import NeuronTree, Progress
from verifier.tighten.plane_ascent import covers
from verifier.tighten.plane_tree import plane_tree
from verifier.tighten.substitute import substituted


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
    """Clauses on one domain by linear programming, branching on the few neurons left open.

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
        """A clause's tree is kept for the next time, with what its splits gained."""
        assert self._small is not None
        if id(clause) not in self._trees:
            self._trees[id(clause)] = clause, self._tree(clause)
        tree = self._trees[id(clause)][1]
        limit, strict = (0.0, True) if self.ascends else (float(clause.limits[0]), not bool(clause.strict[0]))
        solved = tree.solved
        found = tree.prove_above(limit, deadline, strict=strict, stop=stop)
        margin = float(np.nextafter(found.lower - limit, -np.inf))
        return ClauseProof(found.closed, tree.solved - solved, margin, found.point)

    def _tree(self, clause: Clause) -> NeuronTree:
        assert self._small is not None
        if self.ascends:
            return plane_tree(self._small, clause, self._threads)
        model = _with_clause(self._small, clause)
        return hot_tree(model, model.cost(clause.coeffs[0]))


def refine_neurons(
    graph: Graph,
    inputs: InputSet,
    known: Known,
    neurons: Mapping[str, np.ndarray],
    deadline: float,
    *,
    threads: int = 2,
) -> dict[str, Interval] | None:
    """LP bounds of chosen neurons, the most valuable first, each over the network before it.

    Args:
        neurons: node name -> flat positions, most valuable first; nodes are taken in graph order and
            share the time that is left evenly, so that tightened layers serve later ones.
        deadline: time.monotonic() value to stop at; neurons not reached keep their bounds.
        threads: LPs solved at once (HiGHS releases Python's lock).
    Returns:
        node name -> (lower, upper), float64 [size], intersected with `known`; None when the domain
        is proved empty.
    Property: sound, in the arithmetic of `known`.
    """
    unknown = set(neurons) - set(graph.nodes)
    if unknown:
        raise ShapeError(f"refine_neurons: the network has no nodes {sorted(unknown)}")
    bounds = {name: (np.array(low, dtype=np.float64), np.array(high, dtype=np.float64))
              for name, (low, high) in known.intermediate.items()}  # fmt: skip
    wanted = [name for name in graph.nodes if name in neurons and len(neurons[name])]
    for done, name in enumerate(wanted):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        part = replace(graph, outputs=(name,), output_names=()).pruned()
        errors = {k: v for k, v in (known.rounding_error or {}).items() if k in part.nodes}
        maps = Maps(part, errors)
        model = build_model(part, inputs, {k: v for k, v in bounds.items() if k in part.nodes}, maps=maps)
        if model is None:
            return None
        stop = time.monotonic() + left / (len(wanted) - done)
        low, high = model.col_lower[model.outputs].copy(), model.col_upper[model.outputs].copy()
        if not _refine(model, inputs, np.asarray(neurons[name], dtype=np.int64), (low, high), stop, threads):
            return None
        bounds[name] = (low, high)
    return bounds


def _refine(
    model: LinearModel, inputs: InputSet, positions: np.ndarray, ends: Interval, stop: float, threads: int
) -> bool:
    """Tighten `ends` in place; False when the model is proved empty."""
    low, high = ends
    if positions.size and (positions.min() < 0 or positions.max() >= low.size):
        raise ShapeError(f"refine_neurons: positions must be in 0..{low.size - 1}")

    def work(mine: np.ndarray) -> bool:
        session = LpSession(model, inputs)
        for position in mine:
            for sign in (1.0, -1.0):
                left = stop - time.monotonic()
                if left <= 0.0:
                    return True
                cost = np.zeros(model.column_count)
                cost[model.outputs[position]] = sign
                bound = session.bound(cost, left).bound
                if bound == np.inf:
                    return False
                if sign > 0:
                    low[position] = max(low[position], bound)
                else:
                    high[position] = min(high[position], -bound)
        return True

    threads = max(1, min(threads, positions.size))
    with ThreadPoolExecutor(threads) as pool:
        # Every thread starts with its most valuable neurons.
        alive = list(pool.map(work, [positions[i::threads] for i in range(threads)]))
    return all(alive) and bool(np.all(low <= high))


def _with_clause(model: LinearModel, clause: Clause) -> LinearModel:
    """All rows of the clause but the first as constraints coeffs @ outputs <= limits."""
    if len(clause.limits) < 2:
        return model
    coeffs = sparse.csr_matrix(clause.coeffs[1:])
    columns = model.outputs[coeffs.indices]
    block = sparse.csr_matrix((coeffs.data, columns, coeffs.indptr), shape=(coeffs.shape[0], model.column_count))
    return model.with_rows(block, np.full(coeffs.shape[0], -np.inf), clause.limits[1:])
