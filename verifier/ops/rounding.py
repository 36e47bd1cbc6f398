"""Outward rounding for formulas evaluated in the tensor's own precision.

Every helper is an ordinary differentiable expression: no rounding modes, no `nextafter`, so the
same code is sound on every device and inside autograd. A result computed with k roundings from
terms whose absolute values sum to `magnitude` is off by at most k*u*magnitude*(1 + k*u) plus
underflow; the subtraction below rounds once more, hence the spare roundings in `_SPARE`.
Source: Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from verifier.graph.ir import Node

#: roundings of `slack`, of the final sum, and of `magnitude` itself
_SPARE = 4


def unit(x: Tensor) -> float:
    """Unit round-off u of the dtype of `x`: 2^-24 for float32, 2^-53 for float64."""
    return torch.finfo(x.dtype).eps / 2


def tiny(x: Tensor) -> float:
    """More than the underflow of a handful of operations, gradual or flushed to zero."""
    return 8 * torch.finfo(x.dtype).tiny


def underflow(unit_roundoff: float) -> float:
    """`tiny` for the deployed program's arithmetic, which need not be the engine's."""
    return 8 * torch.finfo(torch.float32 if unit_roundoff > 2.0**-40 else torch.float64).tiny


def slack(magnitude: Tensor, roundings: int) -> Tensor:
    """At least the error of `roundings` operations on terms whose absolute values sum to `magnitude`."""
    return magnitude * ((roundings + _SPARE) * unit(magnitude)) + tiny(magnitude)


def down(x: Tensor, magnitude: Tensor, roundings: int) -> Tensor:
    """A number below the exact value that `x` approximates; see `slack`."""
    return x - slack(magnitude, roundings)


def up(x: Tensor, magnitude: Tensor, roundings: int) -> Tensor:
    """A number above the exact value that `x` approximates; see `slack`."""
    return x + slack(magnitude, roundings)


def enclose(value: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """(low, high) around `value` +- `error`; an overflow to +-inf stays infinite on its own side only."""
    most = torch.finfo(value.dtype).max
    error = error.clamp(max=most)
    pad = error + tiny(value)
    low, high = value.clamp(max=most), value.clamp(min=-most)
    return low - (pad + 2 * unit(value) * low.abs()), high + (pad + 2 * unit(value) * high.abs())


def attribute(node: Node, key: str, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """Attribute `key` in the precision of `like`, and a bound on what that conversion changed.

    Returns:
        (value, error): Python floats for a single number, else tensors that broadcast against the
        trailing shape; error is the float 0.0 whenever every entry is representable.
    """
    exact = np.asarray(node.attrs[key], dtype=np.float64)
    if exact.size == 1:
        return number(node, key, like)
    stored = _stored(exact, like)
    value = torch.as_tensor(stored, dtype=like.dtype, device=like.device)
    if np.array_equal(stored, exact):
        return value, 0.0
    return value, torch.where(torch.isinf(value), 0.0, slack(value.abs(), 1))


def number(node: Node, key: str, like: Tensor) -> tuple[float, float]:
    """`attribute` for an attribute that is a single number."""
    exact = np.asarray(node.attrs[key], dtype=np.float64).reshape(())
    value = float(_stored(exact, like))
    return value, 0.0 if value == exact else 2 * abs(float(exact) - value)


def _stored(exact: np.ndarray, like: Tensor) -> np.ndarray:
    with np.errstate(over="ignore"):
        return exact.astype(np.float32) if like.dtype == torch.float32 else exact
