"""One attack on one batch: the victim with its query counts, the space, and what was found.

A `Task` holds every open sample and hands out `Rows` of them; attacks move those and `offer` what
they find, and the task keeps, per sample, the best input that was seen to succeed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from verifier.attack.model import Model
from verifier.attack.rows import Rows
from verifier.attack.threat import Space

INF = float("inf")
PARALLEL_ROWS = 256


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


def _improvements(index: Tensor, size: Tensor, best: Tensor) -> Tensor:
    """Rows [<= M] whose size improves on best[index], one per sample: the smallest, ties to the first row."""
    smallest = torch.full_like(best, INF).scatter_reduce_(0, index, size.to(best), "amin")
    winner = (size == smallest[index]) & (size < best[index])
    rows = winner.nonzero()[:, 0]
    none = len(index)
    first = index.new_full((len(best),), none).scatter_reduce_(0, index[rows], rows, "amin")
    return first[first < none]
