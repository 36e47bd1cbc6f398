"""Walking a successful point back towards the clean input until it only just succeeds."""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.attack.losses import margin
from verifier.attack.projections import along, norm, onto_hyperplane
from verifier.attack.rows import Rows
from verifier.attack.task import Task

#: How far beyond a linearised boundary points are put: boundaries bend, and a walk back makes up for it.
BEYOND = 1.1


def bisect(rows: Rows, inside: Tensor, outside: Tensor, steps: int) -> Tensor:
    """Successful points near the decision boundary, from predictions alone.

    Args:
        inside: points without success [R, *W]; outside: points with success [R, *W].
        steps: halvings; one query a row each.
    Returns:
        The last successful point of each row on its segment; successes are offered to the task.
    """
    low = torch.zeros(len(rows), device=inside.device, dtype=inside.dtype)
    high = torch.ones_like(low)
    for _ in range(steps):
        middle = (low + high) / 2
        point = inside + along(middle, inside) * (outside - inside)
        hit = rows.achieved(rows.predictions(point))
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
    found = torch.where(along(high < 1, outside), inside + along(high, inside) * (outside - inside), outside)
    rows.offer(found, high < 1)
    return found


def secant(rows: Rows, work: Tensor, steps: int) -> Tensor:
    """As `bisect`, on the segment from the clean input to `work` [R, *W], using margins.

    False position with a small overshoot: on a piecewise linear victim a few queries reach the
    boundary. `work` must succeed; the last point that did comes back.
    """
    start = rows.start
    high = torch.ones(len(rows), device=work.device, dtype=work.dtype)
    low = torch.zeros_like(high)
    high_value = margin(rows.scores(work), rows.label, rows.target)
    low_value = margin(rows.scores(start), rows.label, rows.target)
    for i in range(steps):
        share = high_value / (high_value - low_value).clamp_min(1e-12)
        share = share.clamp(0.0, 1.0) * (0.98 if i else 0.95)
        middle = high - share * (high - low)
        point = start + along(middle, work) * (work - start)
        scores = rows.scores(point)
        value, hit = margin(scores, rows.label, rows.target), rows.fooled(scores)
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
        low_value, high_value = torch.where(hit, low_value, value), torch.where(hit, value, high_value)
    found = torch.where(along(high < 1, work), start + along(high, work) * (work - start), work)
    rows.offer(found, high < 1)
    return found


def walk_back(task: Task, steps: int, polish: int = 0) -> None:
    """`secant` from the best success of every sample that has one, `steps` queries each.

    Args:
        polish: times the clean input is then projected onto the boundary linearised where the walk ended, and
            walked back from there; a sample for which that does not succeed stays as it is.
    """
    index = task.best_cost.isfinite().nonzero()[:, 0]
    work = task.best[index]
    for left in range(polish, -1, -1):
        if not len(index):
            return
        rows = task.rows(index)
        if steps:
            work = secant(rows, work, steps)
        if left:
            work = _projected(rows, work)
            crossed = rows.fooled(rows.scores(work))
            rows.offer(work, crossed)
            index, work = index[crossed], work[crossed]


def _projected(rows: Rows, work: Tensor) -> Tensor:
    """The clean inputs' projections onto, and well beyond, the boundary linearised at work [R, *W]."""
    _, value, normal = rows.gradient(work, margin)
    gap = -value - (normal * (rows.start - work)).flatten(1).sum(1)
    move = onto_hyperplane(normal, gap, rows.p, rows.lower - rows.start, rows.upper - rows.start)
    return rows.clip(rows.start + BEYOND * move)


def cut_back(rows: Rows, work: Tensor, steps: int) -> Tensor:
    """The smallest linf cube around the clean input whose cut of `work` still succeeds, by bisection."""
    delta = work - rows.start
    low, high = torch.zeros(len(rows), device=work.device, dtype=work.dtype), norm(delta, float("inf"))
    best, improved = work, torch.zeros(len(rows), dtype=torch.bool, device=work.device)
    for _ in range(steps):
        middle = (low + high) / 2
        reach = along(middle, delta)
        point = rows.start + torch.minimum(torch.maximum(delta, -reach), reach)
        hit = rows.achieved(rows.predictions(point))
        best = torch.where(along(hit, point), point, best)
        improved |= hit
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
    rows.offer(best, improved)
    return best
