"""Pooling over windows: maxima as Select + ReduceMax, means as depthwise convolutions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verifier.errors import ShapeError
from verifier.graph.lowering.arithmetic import affine
from verifier.graph.lowering.layout import select
from verifier.graph.lowering.linear import ConvSettings, conv
from verifier.graph.lowering.reduce import reduce_max
from verifier.graph.lowering.values import Ref, Tracer


@dataclass(frozen=True)
class Window:
    """Geometry of a pooling window over d spatial axes; pads = (begin..., end...)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    ceil_mode: bool = False


def _positions(t: Tracer, x: Ref, window: Window) -> list[np.ndarray]:
    """Per spatial axis the coordinates [windows, kernel] of each window, outside ones included."""
    found = []
    d = x.ndim - 2
    for i in range(d):
        size, begin, end = x.shape[2 + i], window.pads[i], window.pads[d + i]
        reach = window.dilations[i] * (window.kernel[i] - 1) + 1
        free = size + begin + end - reach
        stride = window.strides[i]
        count = (-(-free // stride) if window.ceil_mode else free // stride) + 1
        # A last window that would start inside the right-hand padding is dropped.
        if window.ceil_mode and (count - 1) * stride >= size + begin:
            count -= 1
        if count < 1:
            raise ShapeError(f"node '{t.stem}' ({t.operator}): the window {window.kernel} is larger than x {x.shape}")
        starts = np.arange(count)[:, None] * stride - begin
        found.append(starts + np.arange(window.kernel[i])[None, :] * window.dilations[i])
    return found


def max_pool(t: Tracer, x: Ref, window: Window) -> Ref:
    """Maximum over each window; padding never wins.

    Coordinates outside x are replaced by the window's first real element, which leaves the
    maximum as it is and needs no -inf.
    """
    spatial = x.shape[2:]
    flat = np.zeros((), dtype=np.int64)
    for axis, coordinates in enumerate(_positions(t, x, window)):
        inside = (coordinates >= 0) & (coordinates < spatial[axis])
        if not inside.any(axis=1).all():
            raise t.unsupported("a pooling window lies entirely in the padding")
        first = np.take_along_axis(coordinates, inside.argmax(axis=1)[:, None], axis=1)
        coordinates = np.where(inside, coordinates, first)
        # flat [o1.., k1..] grows by one output axis and one kernel axis.
        rank = axis
        grown = flat.reshape(*flat.shape[:rank], 1, *flat.shape[rank:], 1) * spatial[axis]
        shape = (1,) * rank + coordinates.shape[:1] + (1,) * rank + coordinates.shape[1:]
        flat = grown + coordinates.reshape(shape)
    d = len(spatial)
    windows = flat.reshape(*flat.shape[:d], -1)
    planes = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *(1,) * (d + 1))
    indices = planes * int(np.prod(spatial, dtype=np.int64)) + windows
    return reduce_max(t, select(t, x, indices), (indices.ndim - 1,), False)


def average_pool(t: Tracer, x: Ref, window: Window, count_include_pad: bool) -> Ref:
    """Mean over each window, padding counted as zeros or not at all."""
    d, channels = x.ndim - 2, x.shape[1]
    positions = _positions(t, x, window)
    counts = np.ones((), dtype=np.int64)
    pads_end = []
    for i, coordinates in enumerate(positions):
        size, begin, end = x.shape[2 + i], window.pads[i], window.pads[d + i]
        low, high = (-begin, size + end) if count_include_pad else (0, size)
        inside = ((coordinates >= low) & (coordinates < high)).sum(axis=1)
        counts = counts[..., None] * inside
        pads_end.append(max(0, int(coordinates[-1, -1]) - size + 1))
    if not counts.all():
        raise t.unsupported("a pooling window lies entirely in the padding")
    settings = ConvSettings(window.strides, (*window.pads[:d], *pads_end), window.dilations, groups=channels)
    uniform = counts.size and np.all(counts == counts.flat[0])
    value = 1.0 / int(counts.flat[0]) if uniform else 1.0
    exact = float(np.float32(value)) == value and np.frexp(value)[0] == 0.5
    weight = np.full((channels, 1, *window.kernel), value, dtype=x.dtype if exact else np.float64)
    # Deployed: k - 1 sums and a division, or a product with a rounded 1 / k; here 1 / k once.
    result = conv(t, x, weight, None, settings, rounding_terms=0 if exact else 2)
    return result if uniform else affine(t, result, 1.0 / counts.astype(np.float64), 0.0, rounding_terms=2)
