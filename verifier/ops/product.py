"""The elementwise product of two variables: McCormick planes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Plane:
    """slope_x * x + slope_y * y + offset."""

    slope_x: Tensor
    slope_y: Tensor
    offset: Tensor


def product_interval(xl: Tensor, xu: Tensor, yl: Tensor, yu: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest x*y over a box, rounded outward."""
    corners = torch.stack(torch.broadcast_tensors(xl * yl, xl * yu, xu * yl, xu * yu))
    lower, upper = corners.amin(0), corners.amax(0)
    eps, tiny = torch.finfo(lower.dtype).eps, torch.finfo(lower.dtype).tiny
    lower, upper = lower - lower.abs() * eps - tiny, upper + upper.abs() * eps + tiny
    undefined = torch.isnan(lower) | torch.isnan(upper)
    return lower.masked_fill(undefined, -torch.inf), upper.masked_fill(undefined, torch.inf)


def product_planes(
    xl: Tensor, xu: Tensor, yl: Tensor, yu: Tensor, free_lower: Tensor, free_upper: Tensor
) -> tuple[Plane, Plane]:
    """Planes below and above x*y on the box; every choice of the free parameters in [0, 1] is sound.

    Lower (r = free_lower):  x*y >= (r*yl + (1-r)*yu) x + (r*xl + (1-r)*xu) y - r*xl*yl - (1-r)*xu*yu;
    the upper plane uses the corners (xl, yu) and (xu, yl). The offset's margin covers the rounding of
    the stored slopes: each slope carries at most 3 roundings, so 16 u |x|max |y|max is ample.
    Source: McCormick 1976; METHODS section 1.
    """
    r, s = free_lower, 1 - free_lower
    p, q = free_upper, 1 - free_upper
    eps, tiny = torch.finfo(xl.dtype).eps, torch.finfo(xl.dtype).tiny
    margin = 8 * eps * torch.maximum(xl.abs(), xu.abs()) * torch.maximum(yl.abs(), yu.abs()) + 16 * tiny
    below = Plane(r * yl + s * yu, r * xl + s * xu, -(r * xl * yl + s * xu * yu) - margin)
    above = Plane(p * yu + q * yl, p * xl + q * xu, -(p * xl * yu + q * xu * yl) + margin)
    return below, above


def centred_offsets(
    xl: Tensor, xu: Tensor, yl: Tensor, yu: Tensor, center_x: Tensor, center_y: Tensor
) -> tuple[Tensor, Tensor]:
    """Offsets of the planes center_y * x + center_x * y + offset below and above x*y on the box.

    x*y = center_y x + center_x y - center_x center_y + (x - center_x)(y - center_y), whose last term is
    extreme at a corner. The planes at the box's middle are those of `product_planes` at 1/2.
    """
    xs, ys = (xl - center_x, xu - center_x), (yl - center_y, yu - center_y)
    corners = torch.stack([a * b for a in xs for b in ys])
    size_x = torch.maximum(xl.abs(), xu.abs()) + center_x.abs()
    size_y = torch.maximum(yl.abs(), yu.abs()) + center_y.abs()
    margin = 8 * torch.finfo(xl.dtype).eps * size_x * size_y + 16 * torch.finfo(xl.dtype).tiny
    product = center_x * center_y
    return corners.amin(0) - product - margin, corners.amax(0) - product + margin
