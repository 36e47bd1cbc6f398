"""Step rules: which way to move for a gradient, in the geometry of each norm."""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.attack.projections import along, keep_largest, norm
from verifier.attack.rows import Rows
from verifier.errors import SpecError


def steepest(grad: Tensor, p: float, share: float = 0.05) -> Tensor:
    """The unit-lp direction of steepest ascent for each row of grad [R, *S].

    p = inf: sign; p = 2: grad / ‖grad‖_2; p = 1: the signs of the largest `share` of the entries
    (at least one), divided by their number, because the single best coordinate of l1 moves too
    little per step (Tramer & Boneh 2019, arXiv:1904.13000); p = 0: grad / ‖grad‖_1, for
    projection onto the support afterwards (Croce & Hein 2019, arXiv:1909.05040).
    Rows with zero gradient give zero.
    """
    if p == float("inf"):
        return grad.sign()
    if p == 2:
        return grad / along(norm(grad, 2).clamp_min(1e-30), grad)
    if p == 1:
        count = torch.full((len(grad),), max(1.0, float(int(share * grad[0].numel()))), device=grad.device)
        top = keep_largest(grad, grad.flatten(1).abs(), count).sign()
        return top / along(norm(top, 1).clamp_min(1.0), top)
    if p == 0:
        return grad / along(norm(grad, 1).clamp_min(1e-30), grad)
    raise SpecError(f"step: expected p in 0, 1, 2, inf, got {p}")


def ascent(rows: Rows, work: Tensor, grad: Tensor, share: float = 0.05) -> Tensor:
    """`steepest` for the rows' norm, ignoring coordinates that the box already blocks.

    In the sparse norms a step spent on a coordinate at its box face is lost, so those are left out.
    """
    if rows.p in (0.0, 1.0):
        blocked = ((grad > 0) & (work >= rows.upper)) | ((grad < 0) & (work <= rows.lower))
        grad = torch.where(blocked, torch.zeros_like(grad), grad)
    return steepest(grad, rows.p, share)


def step_length(rows: Rows) -> Tensor:
    """The length scale of a step for each row [R].

    The budget; for p = 0, where the budget counts features and `steepest` spreads one unit over
    all N of them, twice N times the widest side of the box, so that a step carries the few
    features that matter across their range before the projection picks them.
    """
    if rows.p != 0:
        return rows.reach
    width = torch.where(rows.free, rows.upper - rows.lower, torch.zeros_like(rows.lower)).flatten(1).amax(1)
    return 2.0 * rows.start[0].numel() * width
