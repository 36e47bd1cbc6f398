"""Branch and bound whose goal is a radius: subdomains stay closed as the radius shrinks.

One tree serves every radius. It starts at the largest radius worth proving; where time is short the
radius shrinks, and only the subdomains still open are bounded again: a subdomain refuted on a ball is
refuted on every smaller one, and bounds of hidden neurons on a ball hold on every smaller one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from verifier.bounds.backward import LinearForm
from verifier.bounds.concretize import InputShape
from verifier.bounds.domains import DomainBatch, DomainEngine
from verifier.bounds.engine import DomainBounds
from verifier.bounds.intermediate import optimise_intermediate
from verifier.bounds.interval import Enclosure
from verifier.bounds.slopes import SlopeSpace
from verifier.bounds.torch_engine import Enclosed, TorchEngine
from verifier.certify.forms import radius_of_form
from verifier.certify.threat import Nearness
from verifier.run import Run
from verifier.search.subdomain_tree import CHILD_ITERATIONS, LAST_ITERATIONS, ROOT_ITERATIONS

#: Share of the remaining time for the slopes of intermediate bounds.
INTERMEDIATE_SHARE = 0.15
#: Share of the largest number of the program's type that values, and sums on the way to them, may reach.
OVERFLOW_MARGIN = 2.0**-20
#: Children that one step should make at least: bounding fewer costs mostly overhead.
FULL_STEP = 64


@dataclass(frozen=True)
class Slopes:
    """Optimised relaxation parameters of an earlier radius: node -> [S, size], NaN where there were none."""

    lower: dict[str, Tensor]
    upper: dict[str, Tensor]

    @staticmethod
    def of(space: SlopeSpace, rows: Tensor, count: int, free: Tensor) -> Slopes:
        """Parameters free [R, F] of the rows [R] among `count`."""
        kept = Slopes({}, {})
        for segment in space.segments:
            for chosen, into in ((segment.lower, kept.lower), (segment.upper, kept.upper)):
                if chosen is not None:
                    full = free.new_full((count, space.network.graph[segment.name].size), torch.nan)
                    full[rows.unsqueeze(1), segment.elements] = free[:, chosen]
                    into[segment.name] = full
        return kept

    def onto(self, space: SlopeSpace, rows: Tensor, free: Tensor) -> Tensor:
        """`free` [R, 1, F] of another space with what is known here put in."""
        free = free.clone()
        for segment in space.segments:
            for chosen, source in ((segment.lower, self.lower), (segment.upper, self.upper)):
                if chosen is None or segment.name not in source:
                    continue
                known = source[segment.name][rows][:, segment.elements]
                free[:, 0, chosen] = torch.where(known.isnan(), free[:, 0, chosen], known)
        return free


class Frontier:
    """Open subdomains with all their parameters, taken lowest margin first."""

    def __init__(self) -> None:
        self._parts: list[DomainBatch] = []

    def __len__(self) -> int:
        return sum(len(p) for p in self._parts)

    def put(self, batch: DomainBatch) -> None:
        """Add subdomains."""
        if len(batch):
            self._parts.append(batch)

    def take(self, count: int) -> DomainBatch:
        """Remove and return up to `count` subdomains with the lowest margins."""
        everything = DomainBatch.join(self._parts) if len(self._parts) > 1 else self._parts[0]
        if len(everything) <= count:
            self._parts = []
            return everything
        order = everything.margin.argsort()
        self._parts = [everything.select(order[count:])]
        return everything.select(order[:count])


class Ball:
    """The ball of one radius: its enclosure by the engine and the rows it leaves open."""

    def __init__(
        self,
        engine: TorchEngine,
        nearness: Nearness,
        center: np.ndarray,
        radius: float,
        known: Enclosure | None = None,
    ):
        self.engine, self.nearness, self.center, self.radius = engine, nearness, center, radius
        self.inputs = nearness.input_set(center, radius)
        self.lower, self.upper = engine.boxes(self.inputs.lower[None], self.inputs.upper[None])
        self.shape = InputShape.of(self.inputs, engine.device)
        self.found: Enclosed = engine.enclose(self.lower, self.upper, self.shape, known)

    @property
    def overflows(self) -> bool:
        """True where some value may leave the program's number range: no rounding model holds there."""
        largest = float(np.finfo(self.engine.graph.dtype).max) * OVERFLOW_MARGIN
        box = self.found.box
        return not all(bool((box.magnitude(name) < largest).all()) for name in box.lower)

    def rows(self, coeffs: Tensor) -> tuple[Tensor, LinearForm]:
        """Bounds [S] of rows [S, N_out] with the default slopes, and their form; nothing where it overflows."""
        value, form = self.engine.bound_rows(coeffs.unsqueeze(0), self.found, self.lower, self.upper, self.shape)
        if self.overflows:
            value = torch.full_like(value, -torch.inf)
            form = replace(form, error=torch.full_like(form.error, torch.inf))
        return value[0], form

    def certified(self, form: LinearForm) -> float:
        """The largest radius within this ball that the form proves."""
        return radius_of_form(self.engine, form, self.nearness, self.center, self.radius)


class Leaves:
    """The open subdomains of one ball, for the rows that its plain bounds leave open.

    Args:
        rows: [S, N_out], margins that must stay positive; open_rows: int [R], those still unproved.
    """

    def __init__(self, ball: Ball, rows: Tensor, open_rows: Tensor, warm: Slopes | None = None):
        self.ball, self.rows, self.open_rows = ball, rows, open_rows
        limits = torch.zeros(len(rows), 1, dtype=torch.float64, device=rows.device)
        self.domains = DomainEngine(
            ball.engine, ball.found, ball.lower, ball.upper, rows.unsqueeze(1), limits, limits > 0, ball.shape
        )
        self.frontier = Frontier()
        self._stuck: list[DomainBatch] = []
        self._warm = warm
        self.visited = 0
        self.at_once = self.domains.batch_size

    def __len__(self) -> int:
        return len(self.frontier) + sum(len(b) for b in self._stuck)

    @property
    def exhausted(self) -> bool:
        """True when nothing is left that splitting could improve."""
        return len(self.frontier) == 0 and bool(self._stuck)

    @property
    def radius(self) -> float:
        """Of the ball in force."""
        return self.ball.radius

    def plant(self, stopped: Callable[[], bool]) -> np.ndarray:
        """Bound every open row on the whole ball with optimised slopes; see `grow` for the result."""
        points = [np.zeros((0, self.domains.lower.shape[1]))]
        self.slopes: Slopes | None = None
        for part in self.open_rows.split(self.at_once):
            batch = self.domains.initial(part)
            if self._warm is not None:
                batch = replace(batch, free=self._warm.onto(self.domains.space, part, batch.free))
            bounds = self.domains.bound(batch, ROOT_ITERATIONS, stopped)
            self.visited += len(part)
            if self.domains.space.size:
                free = bounds.batch.free[:, 0]
                self.slopes = Slopes.of(self.domains.space, part, len(self.rows), free)
            self.frontier.put(_open(bounds))
            points.append(_open_minimisers(bounds))
        return np.concatenate(points)

    def grow(self, stopped: Callable[[], bool]) -> np.ndarray:
        """Split the worst subdomains once and bound the children.

        Returns:
            Points [P, N_in] where open subdomains are weakest: candidates for counterexamples.
        """
        batch = self.frontier.take(max(1, self.at_once // 2))
        points = []
        stuck = batch.candidates[:, 0] < 0
        if bool(stuck.any()):
            # Every relaxation is exact there, so only the multipliers can still improve.
            last = self.domains.bound(batch.select(stuck), LAST_ITERATIONS, stopped)
            batch = batch.select(~stuck)
            points.append(_open_minimisers(last))
            left = _open(last)
            if len(left):
                self._stuck.append(left)
        if len(batch):
            children = self.domains.branch(batch) if 4 * len(batch) > FULL_STEP else self._branch_deep(batch)
            bounds = self.domains.bound(children, CHILD_ITERATIONS, stopped)
            self.visited += len(children)
            if stopped():
                self.frontier.put(batch)  # the children's bounds are half done; the parents' stand
            else:
                self.frontier.put(_open(bounds))
                points.append(_open_minimisers(bounds))
        return np.concatenate(points) if points else np.zeros((0, self.domains.lower.shape[1]))

    def certified(self) -> float:
        """The largest radius at which every open subdomain's own form refutes it; the ball's where none is open."""
        radius = self.radius
        for batch in self._all():
            for part in torch.arange(len(batch)).split(self.at_once):
                radius = min(radius, self._of_batch(batch.select(part.to(batch.low.device)), radius))
                if radius == 0:
                    return 0.0
        return radius

    def shrink(self, ball: Ball, stopped: Callable[[], bool]) -> np.ndarray:
        """Go on with a smaller ball: closed subdomains stay closed, open ones are bounded again."""
        domains = self.domains
        waiting = self._all()
        self.ball, self.frontier, self._stuck = ball, Frontier(), []
        domains.lower, domains.upper, domains.shape, domains.root = ball.lower, ball.upper, ball.shape, ball.found.box
        low, high = domains.gather(ball.found.box.lower), domains.gather(ball.found.box.upper)
        points = [np.zeros((0, domains.lower.shape[1]))]
        for batch in waiting:
            batch = replace(batch, low=torch.maximum(batch.low, low), high=torch.minimum(batch.high, high))
            # Both bounds hold, so a subdomain in which they exclude each other holds no input.
            batch = batch.select(~(batch.low > batch.high).any(1))
            if len(batch) == 0:  # splitting no rows gives one part without any
                continue
            for part in torch.arange(len(batch), device=batch.low.device).split(self.at_once):
                if stopped():
                    self.frontier.put(batch.select(part))
                    continue
                bounds = domains.bound(batch.select(part), CHILD_ITERATIONS, stopped)
                self.frontier.put(_open(bounds))
                points.append(_open_minimisers(bounds))
        return np.concatenate(points)

    def _all(self) -> list[DomainBatch]:
        found = list(self._stuck)
        if len(self.frontier):
            everything = self.frontier.take(len(self.frontier))
            self.frontier.put(everything)
            found.append(everything)
        return found

    def _of_batch(self, batch: DomainBatch, radius: float) -> float:
        with torch.no_grad():
            ascent = self.domains.ascent(batch)
            beta = batch.beta if ascent.splits is not None else None
            fixed = self.domains.space.fixed_planes(ascent.box)
            _, form, *_ = ascent.evaluate(batch.free, beta, fixed, rigorous=True)
        return radius_of_form(self.ball.engine, form, self.ball.nearness, self.ball.center, radius)

    def _branch_deep(self, batch: DomainBatch) -> DomainBatch:
        """Children at the best two or more candidates at once: few subdomains cost mostly overhead."""
        domains = self.domains
        for j in range(batch.candidates.shape[1]):
            if 2 * len(batch) > FULL_STEP or bool((batch.candidates[:, j] < 0).any()):
                break
            neurons = batch.candidates[:, j]
            batch = domains.split(batch, neurons, domains.split_points(batch, neurons.unsqueeze(1)).squeeze(1))
        return batch


def tighten(ball: Ball, run: Run) -> None:
    """Optimise the ball's intermediate bounds within a share of the time that is left."""
    share = INTERMEDIATE_SHARE * min(run.remaining(), 300.0)
    optimise_intermediate(ball.engine, ball.found, ball.lower, ball.upper, ball.shape, run, share)


def _open(bounds: DomainBounds) -> DomainBatch:
    """The subdomains that are not refuted."""
    return bounds.batch.select(torch.as_tensor(~bounds.closed, device=bounds.batch.low.device))


def _open_minimisers(bounds: DomainBounds) -> np.ndarray:
    """Where the open subdomains' forms are smallest, the worst 16, float64 [P, N_in]."""
    left = ~bounds.closed
    order = bounds.row_margins[left].max(axis=1, initial=-np.inf).argsort()[:16]
    return bounds.minimiser[left][order]
