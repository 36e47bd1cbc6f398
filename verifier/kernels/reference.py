"""What the kernels compute, in plain NumPy and the arrays' own precision: the oracle of their tests.

No rounding terms: values to compare with, not bounds. Same names and shapes as kernels.fused.
"""

from __future__ import annotations

import numpy as np

from verifier.graph.convolution import convolve
from verifier.kernels.fused import AffineLayer, ConvSettings, LineArrays, SplitArrays


def relax_step(
    coeffs: np.ndarray, lines: LineArrays, bias: np.ndarray, split: SplitArrays | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows [B, S, N] on z and offsets [B, S]."""

    def per_row(x: np.ndarray) -> np.ndarray:
        return x if x.ndim == 3 else x[:, None]

    positive = coeffs > 0
    out = coeffs * np.where(positive, per_row(lines.slope_lower), per_row(lines.slope_upper))
    chosen = np.where(positive, per_row(lines.offset_lower), per_row(lines.offset_upper))
    offset = np.where(coeffs == 0, 0, coeffs * np.where(coeffs == 0, 0, chosen)).sum(axis=-1)
    if split is not None:
        out = out - split.sign[:, None] * split.multiplier
    return out, offset + out @ bias


def concretise(
    coeffs: np.ndarray, center: np.ndarray, radius: np.ndarray, norm: str = "box", budget: np.ndarray | None = None
) -> np.ndarray:
    """Least value [B, S] of coeffs @ x."""
    scaled = np.abs(coeffs) * radius[:, None]
    middle = np.einsum("bsn,bn->bs", coeffs, center)
    if norm == "box":
        return middle - scaled.sum(axis=-1)
    dual = {"l1": scaled.max(axis=-1, initial=0), "l2": np.sqrt((scaled**2).sum(axis=-1)), "linf": scaled.sum(axis=-1)}[
        norm
    ]
    return middle - dual * np.asarray(budget)[:, None]


def interval_dense(lower: np.ndarray, upper: np.ndarray, layer: AffineLayer) -> tuple[np.ndarray, np.ndarray]:
    """Enclosure [B, out]."""
    center, radius = (lower + upper) / 2, (upper - lower) / 2
    middle, reach = center @ layer.weight + layer.bias, radius @ np.abs(layer.weight)
    return middle - reach, middle + reach


def interval_conv(
    lower: np.ndarray, upper: np.ndarray, layer: AffineLayer, settings: ConvSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Enclosure [B, out, H', W']."""
    where = (settings.strides, settings.pads, settings.dilations, settings.groups)
    center, radius = (lower + upper) / 2, (upper - lower) / 2
    middle = convolve(center, layer.weight, *where) + layer.bias[:, None, None]
    reach = convolve(radius, np.abs(layer.weight), *where)
    return middle - reach, middle + reach


def function_value(function: str, x: np.ndarray, alpha: float = 0.0) -> np.ndarray:
    """f(x)."""
    if function == "sigmoid":
        return 0.5 + 0.5 * np.tanh(0.5 * x)
    if function == "tanh":
        return np.tanh(x)
    if function == "identity":
        return x
    return np.where(x > 0, x, (alpha if function == "leaky_relu" else 0.0) * x)


def split_scores(coeffs: np.ndarray, lower: np.ndarray, upper: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """BaBSR scores [B, N]."""
    crossing = (lower < 0) & (upper > 0)
    s = np.where(crossing, upper / np.where(crossing, upper - lower, 1), 0)[:, None]
    t = -np.where(crossing, lower, 0)[:, None] * s
    gain = np.maximum((s - 1) * bias * coeffs, s * bias * coeffs) + np.minimum(coeffs, 0) * t
    return np.where(crossing, np.abs(gain).max(axis=1, initial=0), 0)


def scale_boxes(
    lower: np.ndarray, upper: np.ndarray, scale: np.ndarray, shift: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ends [B, N] of x * scale + shift; the kernel to copy, see kernels.example_op."""
    a, b = lower * scale, upper * scale
    return np.minimum(a, b) + shift, np.maximum(a, b) + shift


def clip_boxes(
    coeffs: np.ndarray, limit: np.ndarray, lower: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """New ends [B, N]; (inf, -inf) for boxes that a half-space misses."""
    lower, upper = lower.copy(), upper.copy()
    empty = np.zeros((len(lower), 1), dtype=bool)
    for s in range(coeffs.shape[1]):
        a = coeffs[:, s]
        slack = limit[:, s, None] - (np.maximum(a, 0) * lower + np.minimum(a, 0) * upper).sum(axis=1, keepdims=True)
        reach = slack / np.where(a == 0, 1, np.abs(a))
        high = np.where(a > 0, np.minimum(upper, lower + reach), upper)
        lower, upper = np.where(a < 0, np.maximum(lower, upper - reach), lower), high
        empty |= slack < 0
    return np.where(empty, np.inf, lower), np.where(empty, -np.inf, upper)
