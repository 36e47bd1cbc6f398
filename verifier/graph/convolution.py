"""Convolutions of any dimension in numpy: sliding windows and one matrix product."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

# Bytes of unfolded windows held at once; larger batches go in pieces.
_WINDOW_BYTES = 64 << 20


def convolve(
    x: np.ndarray,
    weight: np.ndarray,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    groups: int,
) -> np.ndarray:
    """Cross-correlation without bias.

    Args:
        x: [B, C, *spatial]; weight: [out, C/groups, *k]; pads: (begin..., end...), zeros.
    Returns:
        [B, out, *spatial_out], x's dtype.
    """
    d = x.ndim - 2
    x = np.pad(x, [(0, 0), (0, 0), *((int(pads[i]), int(pads[d + i])) for i in range(d))])
    reach = [dilations[i] * (weight.shape[2 + i] - 1) + 1 for i in range(d)]
    windows = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(2, 2 + d)))
    steps = tuple(slice(None, None, s) for s in strides)
    taps = tuple(slice(None, None, s) for s in dilations)
    windows = windows[(slice(None), slice(None), *steps, *taps)]
    spatial = windows.shape[2 : 2 + d]
    out, per_group = weight.shape[0], weight.shape[1]
    kernel = weight.reshape(groups, out // groups, -1).transpose(0, 2, 1)
    result = np.empty((x.shape[0], out, *spatial), dtype=x.dtype)
    places = int(np.prod(spatial, dtype=np.int64))
    bytes_each = max(1, places * kernel.shape[1] * groups * x.itemsize)
    step = max(1, _WINDOW_BYTES // bytes_each)
    order = (1, 0, *range(3, 3 + d), 2, *range(3 + d, 3 + 2 * d))
    for start in range(0, x.shape[0], step):
        piece = windows[start : start + step]
        count = piece.shape[0]
        # [b, G, C/G, *out, *k] -> [G, b, *out, C/G, *k]
        piece = piece.reshape(count, groups, per_group, *piece.shape[2:]).transpose(order)
        columns = piece.reshape(groups, count * places, -1)
        values = np.matmul(columns, kernel).reshape(groups, count, places, out // groups)
        values = values.transpose(1, 0, 3, 2).reshape(count, out, *spatial)
        result[start : start + step] = values
    return result


def convolve_transposed(
    x: np.ndarray, weight: np.ndarray, attrs: Mapping[str, Any], spatial_out: Sequence[int]
) -> np.ndarray:
    """Transposed convolution without bias, one kernel tap at a time.

    Args:
        x: [B, C, *spatial]; weight: [C, out/groups, *k];
        attrs: strides, pads, dilations, groups as in the grammar; spatial_out: the result's extent.
    Returns:
        [B, out, *spatial_out], x's dtype.
    """
    d, groups = x.ndim - 2, attrs["groups"]
    strides, dilations, pads = attrs["strides"], attrs["dilations"], attrs["pads"]
    batch, channels, spatial = x.shape[0], x.shape[1], x.shape[2:]
    kernel = weight.shape[2:]
    full = [
        max((spatial[i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1, spatial_out[i] + pads[i])
        for i in range(d)
    ]
    out = np.zeros((batch, groups, weight.shape[1], *full), dtype=x.dtype)
    grouped = x.reshape(batch, groups, channels // groups, -1)
    taps = weight.reshape(groups, channels // groups, weight.shape[1], *kernel)
    for tap in product(*(range(k) for k in kernel)):
        at: Any = (slice(None), slice(None), slice(None), *tap)
        matrix = taps[at].transpose(0, 2, 1)
        values = np.matmul(matrix, grouped).reshape(batch, groups, weight.shape[1], *spatial)
        place: Any = tuple(
            slice(tap[i] * dilations[i], tap[i] * dilations[i] + (spatial[i] - 1) * strides[i] + 1, strides[i])
            for i in range(d)
        )
        out[(slice(None), slice(None), slice(None), *place)] += values
    out = out.reshape(batch, -1, *full)
    crop: Any = tuple(slice(pads[i], pads[i] + spatial_out[i]) for i in range(d))
    return np.ascontiguousarray(out[(slice(None), slice(None), *crop)])
