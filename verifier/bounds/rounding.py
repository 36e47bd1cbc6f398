"""Error terms of floating-point sums, and casts that round outward.

A sum of n products in any order, FMA and blocked sums included, is off by at most
gamma_n * sum |a_i x_i| with gamma_n = n u / (1 - n u), u the unit round-off (Higham 2002, section 3.1).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

UNIT_ROUNDOFF = {
    "float32": 2.0**-24,
    "float64": 2.0**-53,
    torch.float32: 2.0**-24,
    torch.float64: 2.0**-53,
}


def gamma(terms: int, unit_roundoff: float) -> float:
    """gamma_n, rounded up.

    Raises:
        ValueError: n u >= 1/2, where no error bound is meaningful.
    """
    product = terms * unit_roundoff
    if product >= 0.5:
        raise ValueError(f"a sum of {terms} terms has no error bound at unit round-off {unit_roundoff}")
    return product / (1 - product) * (1 + 1e-12)


def cast_down(x: Tensor | np.ndarray, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """x in `dtype`, never above x."""
    exact = torch.as_tensor(x, dtype=torch.float64)
    cast = exact.to(dtype)
    below = torch.nextafter(cast, torch.full_like(cast, -torch.inf))
    return torch.where(cast.double() > exact, below, cast).to(device)


def cast_up(x: Tensor | np.ndarray, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """x in `dtype`, never below x."""
    return -cast_down(-torch.as_tensor(x, dtype=torch.float64), dtype, device)
