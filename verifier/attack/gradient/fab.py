"""FAB: the fast adaptive boundary attack, untargeted and targeted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attack.base import Attack
from verifier.attack.boundary import walk_back
from verifier.attack.gradient.apgd import rivals
from verifier.attack.gradient.deepfool import nearest_boundary
from verifier.attack.losses import difference
from verifier.attack.projections import along, norm, onto_hyperplane
from verifier.attack.rows import Rows
from verifier.attack.task import Task


@dataclass(frozen=True)
class FAB(Attack):
    """Minimum-norm attack that projects both its iterate and the clean input onto the nearest
    linearised boundary, mixes the two, and steps back towards the clean input after each success.

    Args:
        steps: iterations per restart.
        restarts: the first starts at the clean input, the others in a random ball of half the best
            size so far; with a finite budget only samples not broken within it go on.
        alpha_max: largest weight of the clean input's projection.
        eta: overshoot of both projections.
        beta: after a success, the share of the perturbation that is kept.
        targets: 0 to look at all boundaries (K gradients an iteration); n > 0 to run once against
            each of the n most likely rivals (one gradient an iteration): FAB-T.
        refine: secant queries on the final result.
    Source: Croce & Hein 2020, arXiv:1907.02044; targeted form: arXiv:2003.01690.
    """

    steps: int = 100
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    targets: int = 0
    refine: int = 4

    norms: ClassVar[tuple[float, ...]] = (1.0, 2.0, float("inf"))
    minimise: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return "fab_t" if self.targets else "fab"

    def run(self, task: Task) -> None:
        order = rivals(task.rows()) if self.targets > 0 and task.target is None else None
        count = 1 if order is None else min(self.targets, order.shape[1])
        for variant, rows in task.rounds(count * self.restarts):
            aim = None if order is None else order[rows.index, variant // self.restarts]
            self._walk(rows, aim, variant % self.restarts > 0)
        walk_back(task, self.refine)

    def _walk(self, rows: Rows, aim: Tensor | None, random: Tensor) -> None:
        work = torch.where(along(random, rows.start), self._random_start(rows), rows.start)
        twice = (2, *[1] * (work.ndim - 1))
        for i in range(self.steps):
            gap, normal = self._boundary(rows, work, aim)
            back = gap - (normal * (rows.start - work)).flatten(1).sum(1)
            both = torch.cat([work, rows.start])
            lower, upper = rows.lower.repeat(twice) - both, rows.upper.repeat(twice) - both
            moves = onto_hyperplane(normal.repeat(twice), torch.cat([gap, back]), rows.p, lower, upper)
            (near, far), (a, b) = moves.chunk(2), norm(moves, rows.p).chunk(2)
            alpha = along((a / (a + b).clamp_min(1e-12)).clamp(0.0, self.alpha_max), work)
            work = (1 - alpha) * (work + self.eta * near) + alpha * (rows.start + self.eta * far)
            work = rows.clip(work)
            hit = rows.fooled(rows.scores(work))
            rows.offer(work, hit)
            if i == self.steps - 1:
                return
            back_off = rows.start + self.beta * (work - rows.start)
            work = torch.where(along(hit, work), back_off, work)

    def _boundary(self, rows: Rows, work: Tensor, aim: Tensor | None) -> tuple[Tensor, Tensor]:
        if aim is None:
            return nearest_boundary(rows, work, None)
        _, value, grad = rows.gradient(work, difference, aim)
        return torch.nan_to_num(-value), grad

    def _random_start(self, rows: Rows) -> Tensor:
        task = rows.task
        best = task.best_cost[rows.index]
        radius = torch.minimum(torch.where(best.isfinite(), best, rows.reach), rows.eps) / 2
        noise = task.normal(*rows.start.shape) * rows.free
        if rows.p == float("inf"):
            noise = (2 * task.uniform(*rows.start.shape) - 1) * rows.free
        scale = task.uniform(len(rows)) * radius / norm(noise, rows.p).clamp_min(1e-12)
        return rows.clip(rows.start + noise * along(scale, noise))


@dataclass(frozen=True)
class FABT(FAB):
    """FAB against each of the nine most likely rivals in turn: cheap where there are many classes."""

    targets: int = 9
