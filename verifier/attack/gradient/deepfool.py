"""DeepFool: step to the nearest linearised decision boundary until the class changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attack.base import Attack
from verifier.attack.boundary import walk_back
from verifier.attack.losses import pick, rival
from verifier.attack.projections import along, dual, norm, onto_hyperplane
from verifier.attack.rows import Rows
from verifier.attack.task import Task


@dataclass(frozen=True)
class DeepFool(Attack):
    """Repeated projection onto the closest boundary of the linearised victim.

    The step is the exact smallest lp move to that boundary *inside the box*, where the paper
    clips afterwards and may stall at a face.

    Args:
        steps: linearisations at most.
        overshoot: relative push past the boundary.
        candidates: most likely classes looked at (each costs a backward pass).
        refine: secant queries that walk the result back to the boundary; 0 for the paper's.
        polish: times the clean input is then projected onto the boundary linearised at the point
            reached, which the sum of the paper's steps need not be closest to; 0 for the paper's.
    Source: Moosavi-Dezfooli et al. 2016, arXiv:1511.04599.
    """

    steps: int = 50
    overshoot: float = 0.02
    candidates: int = 10
    refine: int = 2
    polish: int = 2

    norms: ClassVar[tuple[float, ...]] = (1.0, 2.0, float("inf"))
    minimise: ClassVar[bool] = True

    def run(self, task: Task) -> None:
        rows = task.rows()
        work = rows.start.clone()
        for _ in range(self.steps):
            gap, normal = nearest_boundary(rows, work, self.candidates)
            exact = work + onto_hyperplane(normal, gap, rows.p, rows.lower - work, rows.upper - work)
            before, work = work, rows.clip(rows.start + (1 + self.overshoot) * (exact - rows.start))
            hit = rows.fooled(rows.scores(work))
            rows.offer(work, hit)
            # what does not move now, where no slope leads out, never will
            going = ~hit & (work != before).flatten(1).any(1)
            rows, work = rows.narrow(going), work[going]
            if not len(rows):
                break
        walk_back(task, self.refine, self.polish)


def nearest_boundary(rows: Rows, work: Tensor, candidates: int | None, p: float | None = None) -> tuple[Tensor, Tensor]:
    """The closest boundary of the victim linearised at work.

    Args:
        candidates: most likely classes looked at, None for all.
        p: the norm that says which is closest; the rows' own by default.
    Returns:
        gap [R] and normal [R, *W]: <normal, d> = gap reaches it. Untargeted, the boundary between
        the label and the rival with the smallest |margin| / ‖normal‖_q; targeted, the one between
        the target and its best competitor.
    """
    if rows.target is not None:
        _, value, grad = rows.gradient(work, _target_gap)
        return -value, grad
    scores, classes, jacobian = rows.jacobian(work, candidates)
    shown = scores.gather(1, classes)
    gaps = shown[:, :1] - shown[:, 1:]
    normals = jacobian[:, 1:] - jacobian[:, :1]
    sizes = norm(normals.flatten(0, 1), dual(rows.p if p is None else p)).reshape(gaps.shape)
    distance = torch.where(sizes > 0, gaps.abs() / sizes.clamp_min(1e-30), torch.full_like(gaps, torch.inf))
    nearest = torch.nan_to_num(distance, nan=torch.inf).argmin(1)
    normal = normals.gather(1, along(nearest, normals).expand(-1, 1, *normals.shape[2:]))[:, 0]
    return torch.nan_to_num(pick(gaps, nearest)), normal


def _target_gap(scores: Tensor, label: Tensor, target: Tensor | None) -> Tensor:
    assert target is not None
    return pick(scores, target) - rival(scores, target)
