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
#: Share of a perturbation that a projection must promise to save (less is not worth the queries), and shares of the
#: way there that are tried in turn, until one succeeds.
WORTH, SHARES = 0.01, (1.0, 0.5, 0.25)


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


def walk_back(task: Task, steps: int, polish: int = 0) -> None:
    """Bring the best success of every sample that has one closer, along the segment to the clean input.

    Args:
        steps: queries of each walk.
        polish: times it then goes towards the clean input's projection onto the boundary linearised where the walk
            ended, and walks back from there; samples for which that promises or gains nothing stay as they are.
    """
    index = task.best_cost.isfinite().nonzero()[:, 0]
    if not len(index) or not (steps or polish):
        return
    rows, work = task.rows(index), task.best[index]
    clean, value = (margin(rows.scores(x), rows.label, rows.target) for x in (rows.start, work))
    for left in range(polish, -1, -1):
        work, value = _secant(rows, work, clean, value, steps)
        if not left:
            return
        kept, work, value = _projected(rows, work)
        if not bool(kept.any()):
            return
        rows, clean = rows.narrow(kept), clean[kept]


def _secant(rows: Rows, work: Tensor, clean: Tensor, value: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """As `bisect`, on the segment from the clean input to `work` [R, *W], using margins.

    False position with a small overshoot: on a piecewise linear victim a few queries reach the boundary.

    Args:
        clean, value: margins at both ends [R]; `work` succeeds.
    Returns:
        The last points that succeeded [R, *W], which are offered to the task, and their margins [R].
    """
    start = rows.start
    high = torch.ones_like(value)
    low = torch.zeros_like(high)
    for i in range(steps):
        share = value / (value - clean).clamp_min(1e-12)
        share = share.clamp(0.0, 1.0) * (0.98 if i else 0.95)
        middle = high - share * (high - low)
        scores = rows.scores(start + along(middle, work) * (work - start))
        between, hit = margin(scores, rows.label, rows.target), rows.fooled(scores)
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
        clean, value = torch.where(hit, clean, between), torch.where(hit, between, value)
    found = torch.where(along(high < 1, work), start + along(high, work) * (work - start), work)
    rows.offer(found, high < 1)
    return found, value


def _projected(rows: Rows, work: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From work [R, *W] as far as succeeds towards the clean input's projection onto, and well beyond, the boundary
    linearised there.

    Returns:
        Which rows promised enough and succeeded [R], their points, which are offered to the task, and margins.
    """
    _, value, normal = rows.gradient(work, margin)
    gap = -value - (normal * (rows.start - work)).flatten(1).sum(1)
    move = onto_hyperplane(normal, gap, rows.p, rows.lower - rows.start, rows.upper - rows.start)
    kept = norm(move, rows.p) < (1 - WORTH) * rows.size(work)
    rows, work, value = rows.narrow(kept), work[kept], value[kept]
    way = rows.clip(rows.start + BEYOND * move[kept]) - work
    crossed = torch.zeros_like(rows.index, dtype=torch.bool)
    for share in SHARES:
        left = (~crossed).nonzero()[:, 0]
        if not len(left):
            break
        part, point = rows.narrow_to(left), work[left] + share * way[left]
        scores = part.scores(point)
        hit = part.fooled(scores)
        part.offer(point, hit)
        there = left[hit]
        work[there], value[there] = point[hit], margin(scores, part.label, part.target)[hit]
        crossed[there] = True
    return kept.masked_scatter(kept, crossed), work[crossed], value[crossed]


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
