"""Exact bounds by branch and bound over activations, every leaf proved by its own multipliers.

Why not a MIP solver's answer: its tree prunes with floating-point tolerances and keeps no
proof. Here every subdomain's bound comes from `safe_bound`, and the result is the smallest bound
of the leaves that cover the domain, so it is as rigorous as one LP bound. A MIP solver may run
first as a guide: its best point is evaluated by the network and, as an upper bound of the minimum,
tells the tree when to stop.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from verifier.errors import SpecError
from verifier.graph.evaluate import evaluate
from verifier.graph.ir import Graph
from verifier.outcome import Soundness
from verifier.spec.problem import InputSet
from verifier.tighten.big_m import MipAnswer, mixed_integer_model, solve_mip
from verifier.tighten.build import build_model
from verifier.tighten.hot_tree import can_branch, hot_tree
from verifier.tighten.intervals import Errors, Interval, Maps
from verifier.tighten.lp import Answer, LpSession, checked_coeffs, soundness_of
from verifier.tighten.model import LinearModel, Neurons

Splits = dict[str, Interval]


@dataclass(frozen=True)
class MilpSettings:
    """When to stop, and what may guide.

    Attributes:
        time_limit_s: for all rows together; None for no limit.
        gap_rel: stop when upper - lower <= gap_rel * max(1, |upper|).
        target: stop as soon as a row's lower bound exceeds this (enough to prove a property), or its
            upper bound does not; None to go on to the gap.
        guide: "highs", the cvxpy name of a MIP solver, or None for no guide.
        guide_share: share of a row's time the guide may use, in [0, 1].
        cancelled: asked between subdomains; True returns what is known.
    """

    time_limit_s: float | None = None
    gap_rel: float = 1e-6
    target: float | None = None
    guide: str | None = "highs"
    guide_share: float = 0.3
    cancelled: Callable[[], bool] = lambda: False

    def validate(self) -> None:
        """Raises SpecError for values out of range."""
        if not self.gap_rel > 0 or not 0 <= self.guide_share <= 1:
            raise SpecError(f"MILP settings: expected gap_rel > 0 and guide_share in [0, 1], got {self}")


@dataclass(frozen=True)
class MilpResult:
    """Bounds of min coeffs @ outputs for every row.

    Attributes:
        lower: float64 [S], rigorous; +inf where no input exists.
        upper: float64 [S], the network's float64 value at `points`: not rigorous, inf if none was found.
        points: float64 [S, N_in], best inputs found, NaN if none; inside the box, and inside other
            constraints up to the solver's tolerance.
        leaves: int [S], subdomains bounded.
        guides: the MIP solver's answers, its unproved lower bounds among them; None without a guide.
        seconds, soundness: wall time; what `lower` holds for.
    """

    lower: np.ndarray
    upper: np.ndarray
    points: np.ndarray
    leaves: np.ndarray
    guides: tuple[MipAnswer | None, ...]
    seconds: float
    soundness: Soundness


def milp_bound(
    graph: Graph,
    inputs: InputSet,
    coeffs: np.ndarray,
    *,
    intermediate: Mapping[str, Interval] | None = None,
    rounding_error: Errors | None = None,
    settings: MilpSettings | None = None,
) -> MilpResult:
    """Lower bounds of coeffs @ outputs that converge to the exact minimum.

    Arguments, requirements and errors as `lp_bound`.

    Method: best-first branch and bound; where every activation has one kink, on one LP with cuts (`hot_tree.py`), else
        on a model for each subdomain, split at a kink of the activation whose relaxation costs the
        bound most (at the solver's point for curved ones).
    Property: sound at any time; complete to `gap_rel` for continuous piecewise linear networks over
        boxes, half-spaces and l1 balls given time. For l2 balls and l0 budgets the set's own
        relaxation may leave a gap.
    Source: Tjeng, Xiao & Tedrake 2019, arXiv:1711.07356; Bunel et al. 2020, JMLR 21(42).
    """
    start = time.perf_counter()
    settings = settings or MilpSettings()
    settings.validate()
    coeffs = checked_coeffs(graph, coeffs)
    maps = Maps(graph, rounding_error)
    results = []
    for s, row in enumerate(coeffs):
        stop = np.inf
        if settings.time_limit_s is not None:
            now = time.perf_counter()
            stop = now + (start + settings.time_limit_s - now) / (len(coeffs) - s)
        results.append(_Tree(maps, inputs, row, settings, stop).run(dict(intermediate or {})))
    size = graph.input_size
    return MilpResult(
        lower=np.array([r.lower for r in results]),
        upper=np.array([r.upper for r in results]),
        points=np.array([r.point if r.point is not None else np.full(size, np.nan) for r in results]).reshape(-1, size),
        leaves=np.array([r.leaves for r in results], dtype=np.int64),
        guides=tuple(r.guide for r in results),
        seconds=time.perf_counter() - start,
        soundness=soundness_of(rounding_error),
    )


@dataclass
class _Leaf:
    """An open subdomain: its bounds of neurons, its model and the LP's answer."""

    splits: Splits
    model: LinearModel
    answer: Answer


class _Tree:
    """One specification row's search; `closed` is the smallest bound of finished leaves."""

    def __init__(self, maps: Maps, inputs: InputSet, row: np.ndarray, settings: MilpSettings, stop: float):
        self.maps, self.inputs, self.row = maps, inputs, row
        self.settings, self.stop = settings, stop
        self.lower, self.upper = -np.inf, np.inf
        self.point: np.ndarray | None = None
        self.leaves = 0
        self.guide: MipAnswer | None = None
        self.closed = np.inf
        self._order = itertools.count()
        self._heap: list[tuple[float, int, _Leaf]] = []

    def run(self, splits: Splits) -> _Tree:
        """Search until the gap closes, the target is decided or time runs out."""
        self._open(splits, -np.inf)
        if self._heap:
            root = self._heap[0][2].model
            self._ask_guide(root)
            if can_branch(root, self.inputs):
                self._climb(root)
                return self
        while self._heap and not self._finished():
            bound, _, leaf = heapq.heappop(self._heap)
            choice = _choose(leaf, self.row)
            if choice is None:
                self.closed = min(self.closed, bound)
                continue
            for child in _split(leaf.splits, *choice, self.maps):
                self._open(child, bound)
        self.lower = self._bound()
        return self

    def _climb(self, model: LinearModel) -> None:
        """Bound the row on one LP with cuts."""

        def look(point: np.ndarray) -> float:
            self._try(point)
            return self._wanted()

        def decided() -> bool:
            target = self.settings.target
            return self.settings.cancelled() or (target is not None and self.upper <= target)

        self.lower = self._bound()
        if self._finished():
            return
        tree = hot_tree(model, model.cost(self.row))
        deadline = time.monotonic() + (self.stop - time.perf_counter())
        self.lower = max(self.lower, tree.lowest(deadline, decided, look))
        self.leaves += tree.solved

    def _wanted(self) -> float:
        """The bound from which a subdomain needs no more work."""
        gap = self.upper - self.settings.gap_rel * max(1.0, abs(self.upper)) if np.isfinite(self.upper) else np.inf
        target = self.settings.target
        return gap if target is None else min(gap, float(np.nextafter(target, np.inf)))

    def _bound(self) -> float:
        return min(self.closed, self._heap[0][0] if self._heap else np.inf)

    def _finished(self) -> bool:
        target, lower = self.settings.target, self._bound()
        decided = target is not None and (lower > target or self.upper <= target)
        return decided or self._closes(lower) or time.perf_counter() >= self.stop or self.settings.cancelled()

    def _closes(self, bound: float) -> bool:
        if not np.isfinite(self.upper):
            return bound == np.inf
        return bound >= self.upper - self.settings.gap_rel * max(1.0, abs(self.upper))

    def _open(self, splits: Splits, parent: float) -> None:
        """Bound a subdomain and file it as open, or as closed when it cannot hold the minimum."""
        self.leaves += 1
        model = build_model(self.maps.graph, self.inputs, splits, maps=self.maps)
        if model is None:
            return
        left = None if self.stop == np.inf else self.stop - time.perf_counter()
        answer = LpSession(model, self.inputs).bound(model.cost(self.row), left)
        bound = max(answer.bound, parent)
        if bound == np.inf:
            return
        if answer.point is not None:
            self._try(answer.point[model.inputs])
        if self._closes(bound):
            self.closed = min(self.closed, bound)
        else:
            heapq.heappush(self._heap, (bound, next(self._order), _Leaf(splits, model, answer)))

    def _try(self, x: np.ndarray) -> None:
        x = np.clip(x, self.inputs.lower, self.inputs.upper)
        value = float(evaluate(self.maps.graph, x)[0] @ self.row)
        if value < self.upper:
            self.upper, self.point = value, x

    def _ask_guide(self, model: LinearModel) -> None:
        mixed = mixed_integer_model(model) if self.settings.guide else None
        if mixed is None or not mixed.binary.any():
            return
        left = None if self.stop == np.inf else (self.stop - time.perf_counter()) * self.settings.guide_share
        self.guide = solve_mip(mixed, model.cost(self.row), left, self.settings.guide or "highs")
        if self.guide.point is not None:
            self._try(self.guide.point)


def _choose(leaf: _Leaf, row: np.ndarray) -> tuple[Neurons, int, float, float, float] | None:
    """(block, index in it, lower, split point, upper) of the neuron whose relaxation costs most; None if none does.

    The cost is the neuron's distance from its curve at the LP's point, times its multiplier.
    """
    model, answer = leaf.model, leaf.answer
    residual = model.cost(row) - model.matrix.T @ np.pad(answer.duals, (0, model.row_count - answer.duals.size))
    best, choice = 0.0, None
    for neurons in model.neurons:
        low, high = model.col_lower[neurons.pre], model.col_upper[neurons.pre]
        cut = _split_points(neurons, low, high, answer.point)
        if answer.point is None:
            gap, weight = high - low, np.ones_like(low)
        else:
            z, h = answer.point[neurons.pre], answer.point[neurons.post]
            gap = np.abs(h - neurons.curve.value(np.clip(z, low, high)[:, None])[:, 0])
            weight = np.abs(residual[neurons.post]) + 1e-6
        score = np.where((cut > low) & (cut < high), gap * weight, 0.0)
        k = int(score.argmax())
        if score[k] > max(best, 1e-13):
            best, choice = float(score[k]), (neurons, k, float(low[k]), float(cut[k]), float(high[k]))
    return choice


def _split_points(neurons: Neurons, low: np.ndarray, high: np.ndarray, point: np.ndarray | None) -> np.ndarray:
    """Where to cut each neuron's interval: the kink nearest to the point, or the point moved inwards."""
    z = 0.5 * (low + high) if point is None else np.clip(point[neurons.pre], low, high)
    if not neurons.curve.piecewise_linear:
        return np.clip(z, low + 0.2 * (high - low), high - 0.2 * (high - low))
    knots = neurons.curve.knots
    inside = (knots > low[:, None]) & (knots < high[:, None])
    distance = np.where(inside, np.abs(knots - z[:, None]), np.inf)
    return np.take_along_axis(knots, distance.argmin(axis=1)[:, None], axis=1)[:, 0]


def _split(splits: Splits, neurons: Neurons, k: int, low: float, cut: float, high: float, maps: Maps) -> list[Splits]:
    """The two halves of a subdomain; each keeps what was known of the other neurons."""
    name, position = neurons.node, int(neurons.positions[k])
    if name in splits:
        lower, upper = (np.array(v, dtype=np.float64).reshape(-1) for v in splits[name])
    else:
        base = name.split("#max")[0] if name not in maps.graph.nodes else name
        size = maps.graph[base].size
        lower, upper = np.full(size, -np.inf), np.full(size, np.inf)
    children = []
    for start, end in ((low, cut), (cut, high)):
        child_lower, child_upper = lower.copy(), upper.copy()
        child_lower[position] = max(start, lower[position])
        child_upper[position] = min(end, upper[position])
        children.append({**splits, name: (child_lower, child_upper)})
    return children
