"""Rows of a task: copies of some of its samples (a restart each, say), their constraints gathered once.

Attacks move `work` tensors [R, *W] along rows, ask the victim about them and `offer` what succeeds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from verifier.attack.derivatives import of_loss, of_scores
from verifier.attack.losses import Loss
from verifier.attack.model import predicted
from verifier.attack.projections import along, keep_largest, norm, onto_ball

if TYPE_CHECKING:
    from verifier.attack.task import Task

INF = float("inf")


class Rows:
    """R rows of a task. `narrow` drops rows that need no more work.

    Attributes:
        index: sample of each row [R]; label [R], target [R] or None; eps [R]; balls as in Space.
    """

    def __init__(self, task: Task, index: Tensor):
        space = task.space
        self.task, self.index, self.p = task, index, space.p
        bounded = not task.minimise
        self._ends = (space.ball_lower, space.ball_upper) if bounded else (space.lower, space.upper)
        self.label = task.label[index]
        self.target = None if task.target is None else task.target[index]
        self.eps = space.eps[index]
        self.balls = [(p, radius[index]) for p, radius in space.balls]
        if bounded and space.p != INF:
            self.balls.insert(0, (space.p, self.eps))
        self.frozen: Tensor | None = None

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def start(self) -> Tensor:
        """The clean inputs [R, *W]; gathered, as the box is, when first asked for: rows that only count need none."""
        return self.task.space.start[self.index]

    @cached_property
    def lower(self) -> Tensor:
        """Lower ends of the box [R, *W]."""
        return self._ends[0][self.index]

    @cached_property
    def upper(self) -> Tensor:
        """Upper ends of the box [R, *W]."""
        return self._ends[1][self.index]

    @cached_property
    def _tally(self) -> Tensor:
        """Evaluations of the victim that one look at every row costs each sample, int64 [B]."""
        return torch.bincount(self.index, minlength=self.task.size) * self.task.model.evaluations_per_row

    def _count(self, gradients: int = 0) -> None:
        """Charge each row one evaluation and `gradients` backward passes."""
        self.task.queries.add_(self._tally)
        if gradients:
            self.task.gradients.add_(self._tally, alpha=gradients)

    @cached_property
    def free(self) -> Tensor:
        """bool [R, *W]: features that can move at all."""
        return self.upper > self.lower

    @cached_property
    def all_free(self) -> bool:
        """Whether every feature can move."""
        return bool(self.free.all())

    @cached_property
    def reach(self) -> Tensor:
        """Length scale of steps [R]: the budget, or the widest side of the box without one."""
        width = torch.where(self.free, self.upper - self.lower, torch.zeros_like(self.lower)).flatten(1).amax(1)
        return torch.where(self.eps.isfinite(), self.eps, width)

    def narrow(self, keep: Tensor) -> Rows:
        """The rows where keep [R] is set."""
        if bool(keep.all()):
            return self
        return self.narrow_to(keep.nonzero()[:, 0])

    def narrow_to(self, chosen: Tensor) -> Rows:
        """The rows `chosen` int64 [M], in that order."""
        fewer = Rows(self.task, self.index[chosen])
        if self.frozen is not None:
            fewer.freeze(self.frozen[chosen])
        return fewer

    def repeat(self, count: int) -> Rows:
        """Every row `count` times, copies side by side."""
        return self.narrow_to(torch.arange(len(self), device=self.index.device).repeat_interleave(count))

    def freeze(self, frozen: Tensor) -> None:
        """Pin the features where frozen [R, *W] is set to the clean input."""
        self.frozen = frozen
        self.lower = torch.where(frozen, self.start, self.lower)
        self.upper = torch.where(frozen, self.start, self.upper)
        for derived in ("free", "all_free", "reach"):
            self.__dict__.pop(derived, None)

    def undecided(self) -> Tensor:
        """bool [R]: rows whose sample has no success inside the budget yet."""
        return ~self.task.found[self.index]

    def scores(self, work: Tensor) -> Tensor:
        """Scores [R, K] at work; one query a row."""
        task = self.task
        self._count()
        return self._chunked(lambda w, i, _: (task.model.scores(task.space.decode(w, i)),), work)[0]

    def predictions(self, work: Tensor) -> Tensor:
        """Predicted classes [R] (-1 for NaN), from scores or labels; one query a row."""
        task = self.task
        self._count()
        return self._chunked(lambda w, i, _: (task.model.labels(task.space.decode(w, i)),), work)[0]

    def values(self, points: Tensor, loss: Loss) -> Tensor:
        """Loss at several points per row: points [R, n, *W], cut to the box, -> [R, n]; n queries a row.

        NaN losses count as -inf would in a search: they are replaced by the row's lowest value.
        """
        count = points.shape[1]
        many = Rows(self.task, self.index.repeat_interleave(count))
        scores = many.scores(self.inside(points).flatten(0, 1))
        value = loss(scores, many.label, many.target).reshape(len(self), count)
        floor = torch.where(value.isnan(), torch.full_like(value, INF), value).amin(1, keepdim=True)
        return torch.where(value.isnan(), torch.where(floor.isfinite(), floor, torch.zeros_like(floor)), value)

    def successes(self, points: Tensor) -> Tensor:
        """bool [R, n]: which of points [R, n, *W] succeed, from predictions; n queries a row."""
        many = Rows(self.task, self.index.repeat_interleave(points.shape[1]))
        hit = many.achieved(many.predictions(points.flatten(0, 1)))
        return hit.reshape(points.shape[:2])

    @property
    def full_width(self) -> Tensor:
        """Width of the reachable box, without the linf ball of the budget, [R, *W]."""
        space = self.task.space
        return space.upper[self.index] - space.lower[self.index]

    def inside(self, points: Tensor) -> Tensor:
        """points [R, n, *W] cut to the reachable box, without the linf ball of the budget."""
        space = self.task.space
        low, high = space.lower[self.index][:, None], space.upper[self.index][:, None]
        return torch.minimum(torch.maximum(points, low), high)

    def gradient(
        self,
        work: Tensor,
        loss: Loss,
        target: Tensor | None = None,
        decode: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [R, K], loss values [R] and gradients [R, *W] (zero on features that cannot move).

        Args:
            target: [R], replaces the task's own targets in the loss only.
            decode: replaces the space's map from (work, sample index) to inputs; `work` may then
                be any variable with one entry per row.
        """
        goal = self.target if target is None else target
        model, label, to_inputs = self.task.model, self.label, decode or self.task.space.decode

        def evaluate(w: Tensor, i: Tensor, part: slice) -> tuple[Tensor, Tensor, Tensor]:
            return of_loss(model, w, lambda v: to_inputs(v, i), loss, label[part], None if goal is None else goal[part])

        self._count(gradients=1)
        scores, value, grad = self._chunked(evaluate, work)
        return scores, value, grad if decode else self._movable(grad, self.free)

    def jacobian(self, work: Tensor, top: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, the classes looked at, and the derivative of their scores.

        Args:
            top: only the `top` highest scores of each row (its own label always among them);
                None for all K.
        Returns:
            scores [R, K]; classes int64 [R, C], the label first; d scores / d work [R, C, *W].
            One query and C gradients a row.
        """
        task, label = self.task, self.label

        def evaluate(w: Tensor, i: Tensor, piece: slice) -> tuple[Tensor, ...]:
            decode = task.space.decode
            return of_scores(
                task.model, w, lambda v: decode(v, i), lambda scores: _label_first(scores, label[piece], top)
            )

        scores, classes, jacobian = self._chunked(evaluate, work)
        self._count(gradients=classes.shape[1])
        return scores, classes, self._movable(jacobian, self.free[:, None])

    def ascend(
        self, work: Tensor, loss: Loss, aim: Tensor | None, length: Tensor, shares: list[float]
    ) -> tuple[Tensor, Tensor] | None:
        """Projected sign ascent of a loss from work [R, *W] in one call, each row until it succeeds.

        Args:
            aim: [R], replaces the task's own targets in the loss only; length: of steps [R]; shares: of it for each.
        Returns:
            Where the rows arrived and which succeeded [R]; None where that needs steps from outside: constraints beside
            the box, a victim or a loss unknown to compiled code, or several rows of a sample, which stop each other.
        """
        task, compiled = self.task, self.task.model.compiled
        if compiled is None or not compiled.knows(loss) or self.p != INF or self.balls:
            return None
        alone = int(self._tally.max()) <= task.model.evaluations_per_row
        if not alone or task.model.prepared(task.space.decode(work, self.index)) is not work:
            return None
        goal = (self.label, self.target, self.target if aim is None else aim)
        work, taken = compiled.ascend(work, loss, goal, (self.lower, self.upper), length, shares)
        hit, steps = taken >= 0, len(shares)
        looks = torch.where(hit, taken, steps) + 1
        task.queries.index_add_(0, self.index, looks * task.model.evaluations_per_row)
        task.gradients.index_add_(0, self.index, looks.clamp_max(steps) * task.model.evaluations_per_row)
        return work, hit

    def _movable(self, grad: Tensor, free: Tensor) -> Tensor:
        """Derivatives, zero on features that cannot move."""
        return grad if self.all_free else torch.where(free, grad, torch.zeros_like(grad))

    def fooled(self, scores: Tensor) -> Tensor:
        """bool [R]: these scores are a success (never where they hold NaN)."""
        return self.achieved(predicted(scores))

    def achieved(self, prediction: Tensor) -> Tensor:
        """bool [R]: these predictions are a success; -1 (NaN) never is."""
        goal = prediction != self.label if self.target is None else prediction == self.target
        return goal & (prediction >= 0)

    def size(self, work: Tensor) -> Tensor:
        """lp size of work - start, [R]."""
        return norm(work - self.start, self.p)

    def offer(self, work: Tensor, success: Tensor, cost: Tensor | None = None) -> None:
        """Record the rows of work where `success` [R] holds.

        Of several successes of a sample the one of least cost [R] stays: by default the smallest
        perturbation for attacks that minimise, the first one for the others.
        """
        if not bool(success.any()):
            return
        chosen = success.nonzero()[:, 0]
        part = work[chosen]
        if cost is not None:
            cost = cost[chosen]
        elif self.task.minimise:
            cost = norm(part - self.start[chosen], self.p)
        else:
            cost = torch.zeros(len(chosen), device=work.device, dtype=work.dtype)
        self.task.keep(part, self.index[chosen], cost)

    def settle(self, work: Tensor, value: Tensor) -> None:
        """Inputs to return for samples that stay without success; the highest value [R] wins."""
        self.task.settle(work, self.index, value)

    def project(self, work: Tensor) -> Tensor:
        """Closest point of the constraints (the balls of the budget only for bounded attacks)."""
        if not self.balls:
            return self.clip(work)
        delta, low, high = work - self.start, self.lower - self.start, self.upper - self.start
        if len(self.balls) == 1:
            p, radius = self.balls[0]
            return self.start + onto_ball(delta, p, radius, low, high)
        return self.start + self._onto_all(delta, low, high)

    def clip(self, work: Tensor) -> Tensor:
        """work cut to the box."""
        return work.clamp(self.lower, self.upper)

    def random_start(self) -> Tensor:
        """A random point of the constraints [R, *W]: uniform in the linf box, else a random
        direction of random length, projected."""
        task, shape = self.task, self.start.shape
        if self.p == INF:
            low, high = (
                torch.maximum(self.lower, self.start - self._span()),
                torch.minimum(self.upper, self.start + self._span()),
            )
            return self.project(low + task.uniform(*shape) * (high - low))
        raw = task.normal(*shape) * self.free
        if self.p == 0:
            count = self.eps.clamp_max(self.start[0].numel())
            order = torch.where(self.free, task.uniform(*shape), torch.full_like(raw, -1.0))
            noise = self.lower + task.uniform(*shape) * (self.upper - self.lower) - self.start
            return self.project(self.start + keep_largest(noise, order.flatten(1), count))
        if self.p == 1:
            raw = raw.sign() * -task.uniform(*shape).clamp_min(1e-12).log() * self.free
        length = self.reach * task.uniform(len(self)) / norm(raw, self.p).clamp_min(1e-12)
        return self.project(self.start + raw * along(length, raw))

    def blend(self) -> Tensor:
        """Half-way between the clean input and uniform noise of the box (where endless: within 1) [R, *W]."""
        low, high = (torch.where(e.isfinite(), e, self.start + s) for e, s in ((self.lower, -1.0), (self.upper, 1.0)))
        return (self.start + low + self.task.uniform(*self.start.shape) * (high - low)) / 2

    def _span(self) -> Tensor:
        return along(self.reach, self.start)

    def _onto_all(self, delta: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Several balls: alternate projections, then shrink (every ball is star-shaped around 0)."""
        for _ in range(8):
            for p, radius in self.balls:
                delta = onto_ball(delta, p, radius, low, high)
        for p, radius in self.balls:
            if p == 0:
                continue
            delta = delta * along((radius / norm(delta, p).clamp_min(1e-30)).clamp_max(1.0), delta)
        return delta

    def _chunked(self, evaluate: Callable[..., tuple[Tensor, ...]], work: Tensor) -> list[Tensor]:
        """Concatenated results of evaluate(work, index, slice) on pieces of at most
        `model.rows_at_once` rows, or on no rows at all; a piece that does not fit in memory halves that number for
        good."""
        model, at = self.task.model, 0
        parts: list[tuple[Tensor, ...]] = []
        while at < len(work) or not parts:
            piece = slice(at, at + model.rows_at_once)
            try:
                parts.append(evaluate(work[piece], self.index[piece], piece))
            except torch.OutOfMemoryError:
                if model.rows_at_once <= 1:
                    raise
                model.rows_at_once //= 2
                continue
            at = piece.stop
        if len(parts) == 1:
            return list(parts[0])
        return [torch.cat(column) for column in zip(*parts, strict=True)]


def _label_first(scores: Tensor, label: Tensor, top: int | None) -> Tensor:
    """Classes by falling score, the label moved to the front: [R, min(top, K)]."""
    count = scores.shape[1] if top is None else min(max(top, 2), scores.shape[1])
    order = (
        torch.nan_to_num(scores, nan=-INF).scatter(1, label[:, None], INF).argsort(dim=1, descending=True, stable=True)
    )
    return order[:, :count]
