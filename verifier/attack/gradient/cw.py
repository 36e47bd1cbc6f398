"""Carlini & Wagner's attacks in l2, linf and l0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attack.base import Attack
from verifier.attack.boundary import walk_back
from verifier.attack.gradient.constant_search import ConstantSearch
from verifier.attack.gradient.nearest import Nearest
from verifier.attack.gradient.tanh_space import TanhSpace
from verifier.attack.losses import confident, margin
from verifier.attack.optimisers import Adam
from verifier.attack.projections import along, norm
from verifier.attack.rows import Rows
from verifier.attack.task import Task


@dataclass(frozen=True)
class CW(Attack):
    """min ‖d‖_2^2 + c max(-margin, -kappa) over x + d = mid + half tanh(w), by Adam, with a binary
    search on c for every sample on its own.

    The paper starts every constant anew. Here one descent goes on while the constants change: where the
    margin is positive a smaller constant only has to pull the sample back, which takes a fraction of the steps.

    Args:
        steps: Adam steps in all; search: constants tried in them.
        initial: first constant.
        rate: Adam's first step size, in units of w; it falls linearly to zero.
        kappa: confidence the success must have.
        polish: times the result is then projected onto the boundary linearised there (kappa = 0 only): Adam's last
            steps leave pixels off their place, and black and white ones start half a percent off it.
        refine: secant queries on the final result (kappa = 0 only).
    Source: Carlini & Wagner 2017, arXiv:1608.04644.
    """

    steps: int = 200
    search: int = 9
    initial: float = 1.0
    rate: float = 0.1
    kappa: float = 0.0
    polish: int = 1
    refine: int = 2

    norms: ClassVar[tuple[float, ...]] = (2.0,)
    minimise: ClassVar[bool] = True

    def run(self, task: Task) -> None:
        self.reach(task.rows())
        if self.kappa == 0:
            walk_back(task, self.refine, self.polish)

    def reach(self, rows: Rows) -> Tensor:
        """Descend from the clean inputs, and where no slope leads out of there from noise; as `descend`."""
        found = self.descend(rows, rows.start)
        if bool(found.all()):
            return found
        lost = rows.narrow(~found)
        return found.masked_scatter(~found, self.descend(lost, lost.blend()))

    def descend(self, rows: Rows, origin: Tensor) -> Tensor:
        """Optimise from `origin` [R, *W]; returns which rows [R] were ever successful."""
        space, nearest = TanhSpace(rows), Nearest(rows)
        constants = ConstantSearch(len(rows), self.initial, rows.start)
        w = space.variable(origin)
        adam = Adam(w, self.rate)
        period = max(1, self.steps // self.search)
        for i in range(self.steps):
            work, slope = space.inside(w)
            _, value, grad = rows.gradient(work, margin)
            delta = work - rows.start
            hit = confident(value, self.kappa)
            nearest.note(work, hit, norm(delta, 2))
            weight = along(constants.constant * ~hit, grad)
            w = w - adam.step((2 * delta - weight * grad) * slope, 1 - i / self.steps)
            if i % period == period - 1:
                constants.update(hit)
        nearest.offer()
        return nearest.found


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
        if self.kappa == 0:
            walk_back(task, self.refine)

    def _descend(self, rows: Rows, origin: Tensor, constant: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        success = torch.zeros(len(rows), dtype=torch.bool, device=origin.device)
        reached, place = origin.clone(), torch.arange(len(rows), device=origin.device)
        space = TanhSpace(rows)
        w = space.variable(origin)
        adam = Adam(w, (0.2 * tau / rows.reach.clamp_min(1e-12)).clamp_max(self.rate))
        for _ in range(self.steps):
            work, slope = space.inside(w)
            _, value, grad = rows.gradient(work, margin)
            delta = work - rows.start
            hit = confident(value, self.kappa)
            rows.offer(work, hit)
            done = hit & (rows.size(work) <= tau)
            success[place[done]] = True
            reached[place[done]] = work[done]
            over = (delta.abs() > along(tau, delta)) * delta.sign()
            w = w - adam.step((over - along(constant * ~hit, grad) * grad) * slope)
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
    inner: CW = CW(steps=120, search=4)

    norms: ClassVar[tuple[float, ...]] = (0.0,)
    minimise: ClassVar[bool] = True

    def run(self, task: Task) -> None:
        index = torch.arange(task.size, device=task.device)
        frozen = torch.zeros_like(task.space.start, dtype=torch.bool)
        for turn in range(self.rounds):
            rows = task.rows(index)
            rows.freeze(frozen[index])
            index = index[self.inner.descend(rows, rows.start) if turn else self.inner.reach(rows)]
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
