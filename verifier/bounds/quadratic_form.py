"""Lower bounds of t^T H t over the cube t in [-1, 1]^n by a convex quadratic form, batched and rigorous.

For any S, t^T H t = t^T S t + t^T R t with R = H - S, and t^T R t >= sum_j min(R_jj, 0) - sum_{j != k} |R_jk|.
S = 0 is tried, and where H curves upwards S = H by Cholesky factors where it is positive definite, else its
positive part by eigenvectors. Neither need be exact: L L^T is positive semidefinite for every L, and what it misses
is in R.
"""

from __future__ import annotations

import torch
from torch import Tensor


def termwise_minimum(form: Tensor) -> Tensor:
    """At most min over t in [-1, 1]^n of t^T form t, each product t_j t_k at its own worst; [..., n, n] -> [...]."""
    both = 0.5 * (form + form.mT)
    return _termwise(both) - _slack(both, both.abs().sum((-2, -1)))


def convex_part(form: Tensor) -> tuple[Tensor, Tensor]:
    """S positive semidefinite, and at most min over t in [-1, 1]^n of t^T (form - S) t: [..., n, n] and [...].

    S is positive semidefinite but for its rounding, which is charged to the minimum four times over.

    Args:
        form: float64 [..., n, n]; only its symmetric part matters.
    """
    both = 0.5 * (form + form.mT)
    size = both.abs().sum((-2, -1))
    # LAPACK refuses what is not finite.
    usable = torch.isfinite(size)
    least = torch.where(usable, _termwise(both) - _slack(both, size), -torch.inf)
    convex = torch.zeros_like(both)
    curved = usable & (least < 0) & (both.diagonal(dim1=-2, dim2=-1) > 0).any(-1)
    if curved.any():
        positive, rest = _positive_part(both[curved], size[curved])
        better = rest >= least[curved]
        convex[curved] = torch.where(better[..., None, None], positive, 0.0)
        least[curved] = torch.where(better, rest, least[curved])
    return convex, least


def _positive_part(form: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    root, failed = torch.linalg.cholesky_ex(form)
    indefinite = failed > 0
    if indefinite.any():
        values, vectors = torch.linalg.eigh(form[indefinite])
        root[indefinite] = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
    positive = root @ root.mT
    positive = 0.5 * (positive + positive.mT)
    rounding = (root.abs().sum(-2) ** 2).sum(-1)
    return positive, _termwise(form - positive) - _slack(form, size + 8 * rounding)


def _slack(form: Tensor, size: Tensor) -> Tensor:
    """Beyond the rounding of the entries and sums, whose magnitudes add up to `size`."""
    n = form.shape[-1]
    return (n * n + 2 * n + 16) * 2.0**-52 * size


def _termwise(form: Tensor) -> Tensor:
    """Each product t_j t_k at its own worst, [...]."""
    diagonal = form.diagonal(dim1=-2, dim2=-1)
    return diagonal.clamp(max=0).sum(-1) + diagonal.abs().sum(-1) - form.abs().sum((-2, -1))
