"""Resampling: nearest neighbour as a Select, linear interpolation as one matrix an axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from verifier.graph.lowering.layout import rearrange, transpose
from verifier.graph.lowering.linear import dense
from verifier.graph.lowering.values import Ref, Tracer, Value

_ROUNDINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda c: np.ceil(c - 0.5),
    "round_prefer_ceil": lambda c: np.floor(c + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


@dataclass(frozen=True)
class Sampling:
    """How output coordinates map to input coordinates (ONNX names)."""

    coordinates: str = "half_pixel"
    nearest: str = "round_prefer_floor"


def source_coordinates(t: Tracer, size: int, out: int, scale: float, mode: str) -> np.ndarray:
    """Real input coordinate of every output index, [out]."""
    index = np.arange(out, dtype=np.float64)
    if mode == "half_pixel":
        return (index + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return (index + 0.5) / scale - 0.5 if out > 1 else np.zeros(1)
    if mode == "asymmetric":
        return index / scale
    if mode == "align_corners":
        return index * ((size - 1) / (out - 1)) if out > 1 else np.zeros(1)
    raise t.unsupported(f"coordinate_transformation_mode {mode}")


def resize_nearest(t: Tracer, x: Value, sizes: tuple[int, ...], scales: tuple[float, ...], sampling: Sampling) -> Value:
    """Nearest-neighbour resize to `sizes`."""
    rounding = _ROUNDINGS.get(sampling.nearest)
    if rounding is None:
        raise t.unsupported(f"nearest_mode {sampling.nearest}")
    picks = []
    for size, out, scale in zip(x.shape, sizes, scales, strict=True):
        source = source_coordinates(t, size, out, scale, sampling.coordinates)
        picks.append(np.clip(rounding(source), 0, size - 1).astype(np.int64))
    return rearrange(t, x, lambda a: a[np.ix_(*picks)])


def resize_linear(t: Tracer, x: Ref, sizes: tuple[int, ...], scales: tuple[float, ...], sampling: Sampling) -> Ref:
    """Multilinear resize to `sizes`, one Dense along each axis that changes."""
    for axis, (size, out, scale) in enumerate(zip(x.shape, sizes, scales, strict=True)):
        if size == out and scale == 1.0:
            continue
        source = source_coordinates(t, size, out, scale, sampling.coordinates).clip(0, size - 1)
        left = np.floor(source).astype(np.int64)
        right = np.minimum(left + 1, size - 1)
        weight = np.zeros((size, out))
        np.add.at(weight, (left, np.arange(out)), 1.0 - (source - left))
        np.add.at(weight, (right, np.arange(out)), source - left)
        order = [a for a in range(x.ndim) if a != axis] + [axis]
        moved = transpose(t, x, order)
        # Deployed coordinates and weights are themselves rounded: a few roundings more.
        moved = dense(t, moved, weight, rounding_terms=8)
        x = transpose(t, moved, [int(i) for i in np.argsort(order)])
    return x
