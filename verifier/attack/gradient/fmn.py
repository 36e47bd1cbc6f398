"""FMN: fast minimum-norm attack in l0, l1, l2 and linf."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from verifier.attack.base import Attack
from verifier.attack.boundary import walk_back
from verifier.attack.losses import margin
from verifier.attack.projections import along, dual, norm, onto_ball
from verifier.attack.task import Task


@dataclass(frozen=True)
class FMN(Attack):
    """Gradient steps on the margin, inside a ball whose radius follows the decision boundary.

    The radius shrinks after a success and grows after a failure by a share that is annealed
    (cosine) from `gamma` to `gamma_end`; while no success is known it is the linearised distance.

    Args:
        steps: iterations, one gradient each.
        step: initial length of the l2-normalised step, in units of the widest feature range.
        refine: secant queries on the final result (not for l0).
    Source: Pintor et al. 2021, arXiv:2102.12827.
    """

    steps: int = 100
    step: float = 1.0
    gamma: float = 0.05
    gamma_end: float = 1e-4
    refine: int = 2

    minimise: ClassVar[bool] = True

    def run(self, task: Task) -> None:
        rows = task.rows()
        p, q = rows.p, dual(rows.p)
        start, low, high = rows.start, rows.lower - rows.start, rows.upper - rows.start
        delta = torch.zeros_like(start)
        radius = torch.full((len(rows),), torch.inf, device=delta.device, dtype=delta.dtype)
        ever = torch.zeros(len(rows), dtype=torch.bool, device=delta.device)
        for i in range(self.steps):
            fade = (1 + math.cos(math.pi * i / self.steps)) / 2
            gamma = self.gamma_end + (self.gamma - self.gamma_end) * fade
            step = self.step * (0.01 + 0.99 * fade)
            scores, value, grad = rows.gradient(start + delta, margin)
            hit = rows.fooled(scores)
            rows.offer(start + delta, hit)
            ever, size = ever | hit, norm(delta, p)
            best = task.best_cost
            if p == 0:
                shrunk = torch.minimum(best - 1, (radius * (1 - gamma)).floor())
                grown = torch.maximum(radius + 1, (radius * (1 + gamma)).floor())
                hoped = torch.full_like(radius, torch.inf)
            else:
                shrunk, grown = torch.minimum(best, radius * (1 - gamma)), radius * (1 + gamma)
                # the exact distance would end on the boundary of a linear victim, never across it
                hoped = (size + value.abs() / norm(grad, q).clamp_min(1e-12)) * (1 + gamma)
            radius = torch.where(hit, shrunk, torch.where(ever, grown, hoped)).clamp_min(0)
            delta = delta + step * grad / along(norm(grad, 2).clamp_min(1e-12), grad)
            delta = onto_ball(delta, p, torch.nan_to_num(radius, nan=torch.inf), low, high)
        hit = rows.fooled(rows.scores(start + delta))
        rows.offer(start + delta, hit)
        if p != 0:
            walk_back(task, self.refine)
