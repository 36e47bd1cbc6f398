"""Where label-only attacks begin: a misclassified point for every sample, as near as chance allows."""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.attack.boundary import bisect
from verifier.attack.projections import along, norm
from verifier.attack.rows import Rows
from verifier.attack.task import Task


def adversarial_starts(task: Task, tries: int, search: int, at_once: int | None = None) -> tuple[Rows, Tensor]:
    """A successful point for as many samples as possible, pulled to the decision boundary.

    Tries uniform noise in the box, blended half-way with the clean input and alone, then the other
    inputs of the batch; a sample for which nothing works is left out, which fails that sample only.

    Args:
        tries: queries of each kind per sample at most; search: bisection steps of the first pull.
        at_once: of them, those asked before the nearest success is taken; by default all.
    Returns:
        Rows of the samples that have a start, and their points [R, *W].
    """
    found = torch.zeros(task.size, dtype=torch.bool, device=task.device)
    points, at_once = task.space.start.clone(), at_once or tries
    for kind in range(3):
        for asked in range(0, tries, at_once):
            rows = task.rows((~found).nonzero()[:, 0])
            candidates = _candidates(rows, kind, min(at_once, tries - asked)) if len(rows) else None
            if candidates is None:
                break
            hit = rows.successes(candidates)
            size = norm((candidates - rows.start[:, None]).flatten(0, 1), rows.p).reshape(hit.shape)
            nearest = torch.where(hit, size, torch.inf).argmin(1)
            won = hit.any(1)
            chosen = candidates[torch.arange(len(rows), device=task.device), nearest]
            points[rows.index[won]] = chosen[won]
            found[rows.index[won]] = True
    rows = task.rows(found.nonzero()[:, 0])
    if not len(rows):
        return rows, points[found]
    outside = points[found]
    rows.offer(outside, torch.ones(len(rows), dtype=torch.bool, device=task.device))
    return rows, bisect(rows, rows.start, outside, search)


def _candidates(rows: Rows, kind: int, tries: int) -> Tensor | None:
    task = rows.task
    if kind == 2:
        if task.size < 2:
            return None
        other = task.integers(task.size - 1, len(rows), min(tries, task.size - 1))
        other = other + (other >= rows.index[:, None])
        return rows.inside(task.space.start[other])
    low, high = (torch.where(e.isfinite(), e, rows.start + s) for e, s in ((rows.lower, -1.0), (rows.upper, 1.0)))
    noise = low[:, None] + task.uniform(len(rows), tries, *rows.start.shape[1:]) * (high - low)[:, None]
    if kind == 0:
        return rows.inside((rows.start[:, None] + noise) / 2)
    return rows.inside(noise)


def unit(direction: Tensor, p: float) -> Tensor:
    """direction [R, *W] over its lp norm; zero rows stay zero."""
    return direction / along(norm(direction, p).clamp_min(1e-12), direction)
