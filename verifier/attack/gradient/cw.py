"""Carlini & Wagner's attacks in l2, linf and l0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attack.base import Attack
from verifier.attack.boundary import secant
from verifier.attack.gradient.constant_search import ConstantSearch
from verifier.attack.gradient.tanh_space import TanhSpace
from verifier.attack.losses import capped_margin, margin
from verifier.attack.optimisers import Adam
from verifier.attack.projections import along
from verifier.attack.task import Rows, Task


@dataclass(frozen=True)
class CW(Attack):
    """min ‖d‖_2^2 + c max(-margin, -kappa) over x + d = mid + half tanh(w), by Adam, with a binary
    search on c for every sample on its own.

    Args:
        steps: Adam steps per constant.
        search: constants tried.
        initial: first constant.
        rate: Adam's first step size, in units of w; it falls linearly to zero.
        kappa: confidence the success must have.
        abort: give a sample up for the current constant after steps / 10 steps without 0.01 % gain.
        refine: secant queries on the final result (kappa = 0 only).
    Source: Carlini & Wagner 2017, arXiv:1608.04644.
    """

    steps: int = 200
    search: int = 9
    initial: float = 1e-2
    rate: float = 0.05
    kappa: float = 0.0
    abort: bool = True
    refine: int = 2

    norms: ClassVar[tuple[float, ...]] = (2.0,)
    minimise: ClassVar[bool] = True

    def run(self, task: Task) -> None:
        rows = task.rows()
        constants = ConstantSearch(len(rows), self.initial, rows.start)
        for _ in range(self.search):
            success = self.descend(rows, rows.start, constants.constant)
            constants.update(success)
        found = task.best_cost.isfinite().nonzero()[:, 0]
        if self.refine and self.kappa == 0 and len(found):
            secant(task.rows(found), task.best[found], self.refine)

    def descend(self, rows: Rows, origin: Tensor, constant: Tensor) -> Tensor:
        """Optimise from `origin` [R, *W] with fixed constants [R]; returns which rows succeed.

        Only the last tenth of the steps decides that: early steps overshoot into success with
        constants that are too small, and the search would then settle on such a constant.
        """
        count = len(rows)
        success = torch.zeros(count, dtype=torch.bool, device=rows.start.device)
        place = torch.arange(count, device=rows.start.device)
        space = TanhSpace(rows)
        w = space.variable(origin)
        adam = Adam(w, self.rate)
        loss, check = capped_margin(self.kappa), max(1, self.steps // 10)
        before = torch.full_like(constant, torch.inf)
        for i in range(self.steps):
            work = rows.clip(space.inside(w))
            scores, value, grad = rows.gradient(work, loss)
            delta = work - rows.start
            hit = rows.fooled(scores) & (value >= self.kappa)
            rows.offer(work, hit)
            success[place] = hit if i % check == 0 else success[place] | hit
            w = w - adam.step((2 * delta - along(constant, grad) * grad) * space.slope(w), 1 - i / self.steps)
            if self.abort and i % check == check - 1:
                cost = delta.flatten(1).square().sum(1) - constant * value
                going = ~(cost > 0.9999 * before)
                if not bool(going.any()):
                    break
                before = cost
                if not bool(going.all()):
                    rows, w, constant, before, place = (
                        rows.narrow(going),
                        w[going],
                        constant[going],
                        cost[going],
                        place[going],
                    )
                    adam.narrow(going)
                    space = TanhSpace(rows)
        return success


@dataclass(frozen=True)
class CWLinf(Attack):
    """min c max(-margin, -kappa) + sum_i max(|d_i| - tau, 0), with tau lowered to 0.9 of the size
    reached after each success and c multiplied by `growth` after each failure, per sample.

    Args:
        steps: Adam steps per (tau, c); a sample stops at its first success within tau.
        rate: Adam's largest step size; it is a fifth of tau (in box widths) where that is less.
        rounds: (tau, c) pairs tried.
        initial, highest: first and last constant.
    Source: Carlini & Wagner 2017, arXiv:1608.04644, section VI-C.
    """

    steps: int = 60
    rounds: int = 40
    initial: float = 0.1
    growth: float = 5.0
    highest: float = 1e4
    rate: float = 0.03
    kappa: float = 0.0
    refine: int = 2

    norms: ClassVar[tuple[float, ...]] = (float("inf"),)
    minimise: ClassVar[bool] = True

    def run(self, task: Task) -> None:
        rows = task.rows()
        like = rows.start
        constant = torch.full((len(rows),), self.initial, device=like.device, dtype=like.dtype)
        tau = rows.reach.clone()
        tau = torch.where(tau > 0, tau, torch.ones_like(tau))
        origin = rows.start.clone()
        for _ in range(self.rounds):
            success, reached = self._descend(rows, origin, constant, tau)
            size = rows.size(reached)
            origin = torch.where(along(success, reached), reached, origin)
            tau = torch.where(success, 0.9 * torch.minimum(tau, size), tau)
            constant = torch.where(success, constant, constant * self.growth)
            keep = constant <= self.highest
            if not bool(keep.any()):
                break
            if not bool(keep.all()):
                rows, constant, tau, origin = rows.narrow(keep), constant[keep], tau[keep], origin[keep]
        found = task.best_cost.isfinite().nonzero()[:, 0]
        if self.refine and self.kappa == 0 and len(found):
            secant(task.rows(found), task.best[found], self.refine)

    def _descend(self, rows: Rows, origin: Tensor, constant: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        success = torch.zeros(len(rows), dtype=torch.bool, device=origin.device)
        reached, place = origin.clone(), torch.arange(len(rows), device=origin.device)
        space = TanhSpace(rows)
        w = space.variable(origin)
        adam = Adam(w, (0.2 * tau / rows.reach.clamp_min(1e-12)).clamp_max(self.rate))
        loss = capped_margin(self.kappa)
        for _ in range(self.steps):
            work = rows.clip(space.inside(w))
            scores, value, grad = rows.gradient(work, loss)
            delta = work - rows.start
            hit = rows.fooled(scores) & (value >= self.kappa)
            rows.offer(work, hit)
            done = hit & (rows.size(work) <= tau)
            success[place[done]] = True
            reached[place[done]] = work[done]
            over = (delta.abs() > along(tau, delta)) * delta.sign()
            w = w - adam.step((over - along(constant, grad) * grad) * space.slope(w))
            if bool(done.any()):
                keep = ~done
                if not bool(keep.any()):
                    break
                rows, w, constant, tau, place = rows.narrow(keep), w[keep], constant[keep], tau[keep], place[keep]
                adam.narrow(keep)
                space = TanhSpace(rows)
        return success, reached


@dataclass(frozen=True)
class CWL0(Attack):
    """The l2 attack on fewer and fewer features: after each success those whose change matters
    least to the margin, |gradient| * |change|, are frozen; a sample ends when the rest fails.

    Args:
        rounds: freezing rounds at most.
        inner: the l2 attack run in each round.
    Source: Carlini & Wagner 2017, arXiv:1608.04644, section VI-B.
    """

    rounds: int = 30
    inner: CW = CW(steps=60, search=4, initial=1.0, rate=0.1, refine=0)

    norms: ClassVar[tuple[float, ...]] = (0.0,)
    minimise: ClassVar[bool] = True

    def run(self, task: Task) -> None:
        index = torch.arange(task.size, device=task.device)
        frozen = torch.zeros_like(task.space.start, dtype=torch.bool)
        for _ in range(self.rounds):
            rows = task.rows(index)
            rows.freeze(frozen[index])
            constants = ConstantSearch(len(rows), self.inner.initial, rows.start)
            success = torch.zeros(len(rows), dtype=torch.bool, device=rows.start.device)
            for _ in range(self.inner.search):
                won = self.inner.descend(rows, rows.start, constants.constant)
                constants.update(won)
                success |= won
            index = index[success]
            if not len(index):
                return
            frozen[index] = self._freeze(task.rows(index), task.best[index])

    def _freeze(self, rows: Rows, work: Tensor) -> Tensor:
        """Frozen features [R, *W]: those (nearly) unchanged at work, and of the rest the least
        important ones, which together carry a tenth of the importance but are a few at least."""
        _, _, grad = rows.gradient(work, margin)
        delta = (work - rows.start).flatten(1)
        changed = delta.abs() > 0.01 * (rows.upper - rows.lower).flatten(1)
        weight = torch.where(changed, (grad.flatten(1) * delta).abs(), torch.zeros_like(delta))
        ordered, order = weight.sort(dim=1)
        light = ordered.cumsum(1) <= 0.1 * ordered.sum(1, keepdim=True)
        few = (~changed).sum(1, keepdim=True) + (0.3 * changed.sum(1, keepdim=True).to(weight).sqrt()).ceil()
        rank = torch.arange(delta.shape[1], device=delta.device)[None]
        frozen = torch.zeros_like(changed).scatter_(1, order, light | (rank < few))
        return frozen.reshape(work.shape)
