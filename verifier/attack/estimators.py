"""Gradient estimates from function values: one interface, one class a scheme.

`estimate(rows, work, loss)` returns an estimate of d loss / d work [R, *W] for every row, with all
rows and directions of a step in one batch. Query points stay inside the box, and features that
cannot move get no noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from verifier.attack.losses import Loss
from verifier.attack.projections import along, norm
from verifier.attack.rows import Rows


class Estimator(Protocol):
    """Anything that estimates gradients of a loss at `work` from queries."""

    def estimate(self, rows: Rows, work: Tensor, loss: Loss) -> Tensor:
        """Estimated gradient [R, *W]."""
        ...


@dataclass(frozen=True)
class Antithetic:
    """mean_u (f(x + s u) - f(x - s u)) u / (2 s): Gaussian u (NES) or random signs (SPSA).

    Args:
        samples: directions; two queries each.
        sigma: s, in units of the widest feature range.
        signs: random signs instead of Gaussian directions.
    Source: Ilyas et al. 2018, arXiv:1804.08598 (NES); Uesato et al. 2018, arXiv:1802.05666 (SPSA).
    """

    samples: int = 25
    sigma: float = 0.01
    signs: bool = False

    def estimate(self, rows: Rows, work: Tensor, loss: Loss) -> Tensor:
        noise = _directions(rows, self.samples, self.signs)
        step = self.sigma * _span(rows)
        shift = step.reshape(-1, *([1] * work.ndim)) * noise
        points = torch.cat([work[:, None] + shift, work[:, None] - shift], dim=1)
        values = rows.values(points, loss)
        difference = (values[:, : self.samples] - values[:, self.samples :]) / (2 * step[:, None])
        return (_spread(difference, noise) * noise).mean(1)


@dataclass(frozen=True)
class ForwardDifference:
    """mean_u N (f(x + s u) - f(x)) u / s over random unit directions u.

    Args:
        samples: directions; one query each, one more for f(x).
        smooth: edge length, as a share of the image's, of a coarse grid the directions are drawn
            on and enlarged from (AutoZOOM's dimension reduction); 1 for none.
    Source: Liu et al. 2019, arXiv:1810.06030; Tu et al. 2019, arXiv:1805.11770.
    """

    samples: int = 20
    sigma: float = 0.01
    smooth: float = 1.0

    def estimate(self, rows: Rows, work: Tensor, loss: Loss) -> Tensor:
        noise = _directions(rows, self.samples, signs=False, smooth=self.smooth)
        flat = noise.flatten(2)
        noise = (flat / flat.norm(dim=2, keepdim=True).clamp_min(1e-12)).reshape(noise.shape)
        step = self.sigma * _span(rows)
        shift = step.reshape(-1, *([1] * work.ndim)) * noise
        values = rows.values(torch.cat([work[:, None], work[:, None] + shift], dim=1), loss)
        slope = (values[:, 1:] - values[:, :1]) / step[:, None]
        return (_spread(slope, noise) * noise).mean(1) * work[0].numel()


@dataclass(frozen=True)
class Coordinates:
    """Symmetric differences along randomly chosen coordinates, scaled by N / samples so that the
    expectation is the gradient; the other coordinates are zero.

    Args:
        samples: coordinates per estimate; two queries each.
    Source: Chen et al. 2017, arXiv:1708.03999 (ZOO).
    """

    samples: int = 32
    sigma: float = 1e-3

    def estimate(self, rows: Rows, work: Tensor, loss: Loss) -> Tensor:
        features = work[0].numel()
        count = min(self.samples, features)
        order = torch.where(rows.free.flatten(1), rows.task.uniform(len(rows), features), -1.0)
        chosen = order.topk(count, dim=1).indices
        unit = torch.zeros(len(rows), count, features, device=work.device, dtype=work.dtype)
        unit.scatter_(2, chosen[:, :, None], 1.0)
        step = self.sigma * _span(rows)
        shift = (step[:, None, None] * unit).reshape(len(rows), count, *work.shape[1:])
        high, low = rows.inside(work[:, None] + shift), rows.inside(work[:, None] - shift)
        values = rows.values(torch.cat([high, low], dim=1), loss)
        # the points are clipped at the box, so the distance is what is left between them
        apart = (high - low).flatten(2).sum(2).clamp_min(1e-12)
        slope = (values[:, :count] - values[:, count:]) / apart
        grad = torch.zeros(len(rows), features, device=work.device, dtype=work.dtype)
        grad.scatter_(1, chosen, slope * (features / count))
        return grad.reshape(work.shape) * rows.free


def _directions(rows: Rows, samples: int, signs: bool, smooth: float = 1.0) -> Tensor:
    task, shape = rows.task, rows.start.shape[1:]
    if signs:
        noise = task.signs(len(rows), samples, *shape)
    elif smooth < 1.0 and len(shape) == 3:
        low = [max(1, round(smooth * s)) for s in shape[1:]]
        coarse = task.normal(len(rows) * samples, shape[0], *low)
        large = F.interpolate(coarse, size=tuple(shape[1:]), mode="bilinear", align_corners=False)
        noise = large.reshape(len(rows), samples, *shape)
    else:
        noise = task.normal(len(rows), samples, *shape)
    return noise * rows.free[:, None]


def _span(rows: Rows) -> Tensor:
    """Widest finite feature range of each row [R] (1 where there is none)."""
    width = torch.where(rows.free, rows.full_width, torch.zeros_like(rows.start)).flatten(1).amax(1)
    return torch.where(width.isfinite() & (width > 0), width, torch.ones_like(width))


def _spread(value: Tensor, like: Tensor) -> Tensor:
    """value [R, n] over like [R, n, *W]."""
    return value.reshape(*value.shape, *([1] * (like.ndim - 2)))


def normalised(grad: Tensor) -> Tensor:
    """grad over its l2 norm, zero rows unchanged."""
    return grad / along(norm(grad, 2).clamp_min(1e-12), grad)
