"""One attack on one batch: the victim with its query counts, the space, and what was found.

A `Task` holds every open sample; `Rows` are copies of some of them (a restart each, say) with
their constraints gathered once. Attacks move `work` tensors [R, *W] along rows and `offer` them;
the task keeps, per sample, the best input that was seen to succeed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from verifier.attack.losses import Loss
from verifier.attack.model import Model, predicted
from verifier.attack.projections import along, keep_largest, norm, onto_ball
from verifier.attack.threat import Space

INF = float("inf")
PARALLEL_ROWS = 256
#: Numbers in a Jacobian up to which one batched backward pass is faster than one a class (measured: 2.6 times
#: on small dense networks, 1.5 on small convolutional ones, slower than one a class beyond a million numbers).
TOGETHER = 300_000


class Task:
    """The samples an attack still has to work on.

    Attributes:
        space: search space of the B samples; label, target: int64 [B] (target None: untargeted).
        minimise: True for attacks that look for the smallest perturbation, which then keep the
            smallest found; otherwise the first one found closes its sample.
        queries, gradients, restarts: int64 [B], counted per sample.
        best [B, *W], best_cost [B]: least costly success so far, inf where there is none; the cost is the
            size of the perturbation where the attack minimises it.
        fallback [B, *W]: what to return for samples without success.
        classes: K.
    """

    def __init__(self, model: Model, space: Space, label: Tensor, target: Tensor | None, minimise: bool, seed: int):
        self.model, self.space, self.label, self.target = model, space, label, target
        self.minimise, self.classes = minimise, 0
        self.device, self.dtype = space.start.device, space.start.dtype
        count = torch.zeros(len(label), dtype=torch.int64, device=self.device)
        self.queries, self.gradients, self.restarts = count.clone(), count.clone(), count.clone()
        self.best, self.fallback = space.start.clone(), space.start.clone()
        self.best_cost = torch.full((len(label),), INF, dtype=self.dtype, device=self.device)
        self.fallback_cost = self.best_cost.clone()
        self.generator = torch.Generator(device=self.device).manual_seed(seed)

    @property
    def size(self) -> int:
        """B, the samples of this task."""
        return len(self.label)

    @property
    def found(self) -> Tensor:
        """bool [B]: samples with a success inside the budget."""
        some = self.best_cost.isfinite()
        return some & (self.best_cost <= self.space.eps * (1 + 1e-6)) if self.minimise else some

    def open_index(self) -> Tensor:
        """Samples to go on with, int64: no success inside the budget yet, or no budget to stop at."""
        endless = self.space.eps.isinf() if self.minimise else torch.zeros_like(self.found)
        return (endless | ~self.found).nonzero()[:, 0]

    def rows(self, index: Tensor | None = None) -> Rows:
        """Rows for samples `index` (repeats allowed), or one row for every sample."""
        if index is None:
            index = torch.arange(self.size, device=self.device)
        return Rows(self, index)

    def rounds(self, count: int) -> Iterator[tuple[Tensor, Rows]]:
        """Rows for `count` variants (restarts, targets) of every open sample, variant 0 first.

        Later variants run side by side as long as they need no more rows than the first did, or
        than `PARALLEL_ROWS`: small victims are limited by the number of calls, not by their size.

        Yields:
            (variant of each row int64 [R], rows); samples closed meanwhile are left out.
        """
        done = 0
        while done < count:
            index = self.open_index()
            if not len(index):
                return
            copies = 1 if done == 0 else min(count - done, max(1, max(self.size, PARALLEL_ROWS) // len(index)))
            variant = torch.arange(done, done + copies, device=self.device).repeat_interleave(len(index))
            self.restarts[index] += copies
            yield variant, self.rows(index.repeat(copies))
            done += copies

    def subtask(self, index: Tensor, minimise: bool, stream: int, model: Model | None = None) -> Task:
        """A task for samples `index` alone (on another model, if given), with its own random stream."""
        target = None if self.target is None else self.target[index]
        inner = Task(model or self.model, self.space.subset(index), self.label[index], target, minimise, 0)
        inner.generator.manual_seed(int(self.integers(2**31, 1)) + stream)
        inner.classes = self.classes
        return inner

    def absorb(self, inner: Task, index: Tensor) -> None:
        """Take over what a subtask on samples `index` found and what it cost."""
        for total, part in (
            (self.queries, inner.queries),
            (self.gradients, inner.gradients),
            (self.restarts, inner.restarts),
        ):
            total[index] += part
        done = inner.found.nonzero()[:, 0]
        cost = inner.best_cost if self.minimise else torch.zeros_like(inner.best_cost)
        self.keep(inner.best[done], index[done], cost[done])
        rest = (~inner.found).nonzero()[:, 0]
        self.settle(inner.fallback[rest], index[rest], -inner.fallback_cost[rest])

    def uniform(self, *shape: int) -> Tensor:
        """Seeded uniform numbers in [0, 1)."""
        return torch.rand(shape, generator=self.generator, device=self.device, dtype=self.dtype)

    def normal(self, *shape: int) -> Tensor:
        """Seeded standard normal numbers."""
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=self.dtype)

    def signs(self, *shape: int) -> Tensor:
        """Seeded fair signs, +1 or -1."""
        return torch.randint(2, shape, generator=self.generator, device=self.device).to(self.dtype) * 2 - 1

    def integers(self, high: int, *shape: int) -> Tensor:
        """Seeded integers in 0..high-1."""
        return torch.randint(high, shape, generator=self.generator, device=self.device)

    def count(self, index: Tensor, gradients: int = 0) -> None:
        """Charge each row of `index` one evaluation and `gradients` backward passes."""
        cost = torch.full_like(index, self.model.evaluations_per_row)
        self.queries.index_add_(0, index, cost)
        if gradients:
            self.gradients.index_add_(0, index, cost, alpha=gradients)

    def keep(self, work: Tensor, index: Tensor, cost: Tensor) -> None:
        """Record successes `work` [M, *W] of samples `index` [M] where their cost [M] is the least so far."""
        rows = _improvements(index, cost, self.best_cost)
        self.best[index[rows]] = work[rows]
        self.best_cost[index[rows]] = cost[rows].to(self.best_cost)

    def settle(self, work: Tensor, index: Tensor, value: Tensor) -> None:
        """Remember inputs [M, *W] for samples that stay without success: the highest value wins."""
        rows = _improvements(index, -value, self.fallback_cost)
        self.fallback[index[rows]] = work[rows]
        self.fallback_cost[index[rows]] = -value[rows].to(self.fallback_cost)


class Rows:
    """R rows of a task. `narrow` drops rows that need no more work.

    Attributes:
        index: sample of each row [R]; start, lower, upper [R, *W]; label [R], target [R] or None;
            eps [R]; balls as in Space.
    """

    def __init__(self, task: Task, index: Tensor):
        space = task.space
        self.task, self.index, self.p = task, index, space.p
        bounded = not task.minimise
        self.start = space.start[index]
        self.lower = (space.ball_lower if bounded else space.lower)[index]
        self.upper = (space.ball_upper if bounded else space.upper)[index]
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
        task.count(self.index)
        return self._chunked(lambda w, i, _: (task.model.scores(task.space.decode(w, i)),), work)[0]

    def predictions(self, work: Tensor) -> Tensor:
        """Predicted classes [R] (-1 for NaN), from scores or labels; one query a row."""
        task = self.task
        task.count(self.index)
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
        task = self.task
        goal = self.target if target is None else target
        label, to_inputs = self.label, decode or task.space.decode

        def evaluate(w: Tensor, i: Tensor, part: slice) -> tuple[Tensor, Tensor, Tensor]:
            with torch.enable_grad():
                w = w.detach().requires_grad_(True)
                scores = task.model.scores(to_inputs(w, i))
                value = loss(scores, label[part], None if goal is None else goal[part])
                grad = _derivative(value, w)
            return scores.detach(), value.detach(), grad

        task.count(self.index, gradients=1)
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
            with torch.enable_grad():
                w = w.detach().requires_grad_(True)
                scores = task.model.scores(task.space.decode(w, i))
                classes = _label_first(scores.detach(), label[piece], top)
                return scores.detach(), classes, _jacobian(scores.gather(1, classes), w)

        scores, classes, jacobian = self._chunked(evaluate, work)
        task.count(self.index, gradients=classes.shape[1])
        return scores, classes, self._movable(jacobian, self.free[:, None])

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
        delta, low, high = work - self.start, self.lower - self.start, self.upper - self.start
        if not self.balls:
            return torch.minimum(torch.maximum(work, self.lower), self.upper)
        if len(self.balls) == 1:
            p, radius = self.balls[0]
            return self.start + onto_ball(delta, p, radius, low, high)
        return self.start + self._onto_all(delta, low, high)

    def clip(self, work: Tensor) -> Tensor:
        """work cut to the box."""
        return torch.minimum(torch.maximum(work, self.lower), self.upper)

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
        `model.rows_at_once` rows; a piece that does not fit in memory halves that number for good."""
        model, parts, at = self.task.model, [], 0
        while at < len(work):
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


def _improvements(index: Tensor, size: Tensor, best: Tensor) -> Tensor:
    """Rows [<= M] whose size improves on best[index], one per sample: the smallest, ties to the first row."""
    smallest = torch.full_like(best, INF).scatter_reduce_(0, index, size.to(best), "amin")
    winner = (size == smallest[index]) & (size < best[index])
    rows = winner.nonzero()[:, 0]
    none = len(index)
    first = index.new_full((len(best),), none).scatter_reduce_(0, index[rows], rows, "amin")
    return first[first < none]


def _label_first(scores: Tensor, label: Tensor, top: int | None) -> Tensor:
    """Classes by falling score, the label moved to the front: [R, min(top, K)]."""
    count = scores.shape[1] if top is None else min(max(top, 2), scores.shape[1])
    order = (
        torch.nan_to_num(scores, nan=-INF).scatter(1, label[:, None], INF).argsort(dim=1, descending=True, stable=True)
    )
    return order[:, :count]


def _jacobian(scores: Tensor, w: Tensor) -> Tensor:
    """Derivatives [R, C, *W] of scores [R, C] in w [R, *W], row by row."""
    count = scores.shape[1]
    if scores.requires_grad and count * w.numel() <= TOGETHER:
        seeds = torch.eye(count, dtype=scores.dtype, device=scores.device)[:, None].expand(-1, len(w), -1)
        (grad,) = torch.autograd.grad(scores, w, seeds, is_grads_batched=True, allow_unused=True)
        together = torch.zeros(count, *w.shape) if grad is None else grad
        return torch.nan_to_num(together, nan=0.0, posinf=0.0, neginf=0.0).transpose(0, 1)
    return torch.stack([_derivative(scores[:, k], w, retain=k < count - 1) for k in range(count)], dim=1)


def _derivative(value: Tensor, w: Tensor, retain: bool = False) -> Tensor:
    """Derivatives [R, *W] of values [R], each of its own row of w."""
    if not value.requires_grad:
        return torch.zeros_like(w)
    # given seeds, torch first imports its symbolic shapes, for up to a second; a sum needs none
    (grad,) = torch.autograd.grad(value.sum(), w, retain_graph=retain, allow_unused=True)
    return torch.zeros_like(w) if grad is None else torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)
