"""Sums, means, extrema over axes, and softmax."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from verifier.graph.lowering.activation import unary
from verifier.graph.lowering.arithmetic import affine, neg
from verifier.graph.lowering.layout import reshape
from verifier.graph.lowering.values import Ref, Tracer, Value


def _reduced(x: Value, axes: Sequence[int] | None, keepdims: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(sorted non-negative axes, result shape); None means every axis."""
    found = tuple(range(x.ndim)) if axes is None else tuple(sorted({int(a) % x.ndim for a in axes}))
    shape = tuple(1 if i in found else n for i, n in enumerate(x.shape) if keepdims or i not in found)
    return found, shape


def reduce_sum(t: Tracer, x: Value, axes: Sequence[int] | None, keepdims: bool) -> Value:
    """Sum over `axes`."""
    found, shape = _reduced(x, axes, keepdims)
    if isinstance(x, np.ndarray):
        return np.sum(x, axis=found, keepdims=keepdims, dtype=x.dtype)
    if all(x.shape[a] == 1 for a in found):
        return reshape(t, x, shape)
    return t.emit("ReduceSum", (x,), shape, axes=found, keepdims=keepdims)


def reduce_max(t: Tracer, x: Value, axes: Sequence[int] | None, keepdims: bool) -> Value:
    """Maximum over `axes`."""
    found, shape = _reduced(x, axes, keepdims)
    if isinstance(x, np.ndarray):
        return np.max(x, axis=found, keepdims=keepdims)
    if all(x.shape[a] == 1 for a in found):
        return reshape(t, x, shape)
    return t.emit("ReduceMax", (x,), shape, axes=found, keepdims=keepdims)


def reduce_min(t: Tracer, x: Value, axes: Sequence[int] | None, keepdims: bool) -> Value:
    """Minimum over `axes`: -max(-x)."""
    if isinstance(x, np.ndarray):
        return np.min(x, axis=_reduced(x, axes, keepdims)[0], keepdims=keepdims)
    return neg(t, reduce_max(t, neg(t, x), axes, keepdims))


def reduce_mean(t: Tracer, x: Value, axes: Sequence[int] | None, keepdims: bool) -> Value:
    """Mean over `axes`."""
    found, _ = _reduced(x, axes, keepdims)
    if isinstance(x, np.ndarray):
        return np.mean(x, axis=found, keepdims=keepdims, dtype=x.dtype)
    count = int(np.prod([x.shape[a] for a in found], dtype=np.int64))
    total = reduce_sum(t, x, found, keepdims)
    # One rounding beyond the product: 1 / count here, or the reciprocal some programs multiply by.
    return affine(t, total, np.float64(1.0) / count, 0.0, rounding_terms=2) if count != 1 else total


def center(t: Tracer, x: Ref, axes: Sequence[int]) -> Ref:
    """x minus its mean over `axes`."""
    from verifier.graph.lowering.arithmetic import sub

    return sub(t, x, reduce_mean(t, x, axes, True))


def softmax(t: Tracer, x: Value, axis: int) -> Value:
    """Softmax along `axis`."""
    if isinstance(x, np.ndarray):
        shifted = np.exp(x - x.max(axis=axis, keepdims=True))
        return shifted / shifted.sum(axis=axis, keepdims=True)
    return t.emit("Softmax", (x,), x.shape, axis=axis % x.ndim)


def log_softmax(t: Tracer, x: Value, axis: int) -> Value:
    """log(softmax(x)) along `axis`."""
    return unary(t, "Log", softmax(t, x, axis))
