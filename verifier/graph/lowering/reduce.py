"""Sums, means, extrema over axes, and softmax."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from verifier.graph.lowering.activation import unary
from verifier.graph.lowering.arithmetic import affine, compare, logical_and, mul, neg
from verifier.graph.lowering.layout import concat, gather, reshape, slice_, transpose
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


def arg_max(t: Tracer, x: Value, axis: int, keepdims: bool, *, last: bool = False) -> Value:
    """Index of the largest element along `axis`, the first (or last) of equals, as a float32 value.

    Class k wins where its score is above every earlier one and at least every later one; the index is
    the sum of k over the winners, of which there is exactly one.
    """
    axis %= x.ndim
    if isinstance(x, np.ndarray):
        found = x.shape[axis] - 1 - np.argmax(np.flip(x, axis), axis) if last else np.argmax(x, axis)
        return np.expand_dims(found, axis) if keepdims else found
    count = x.shape[axis]
    kept = tuple(1 if i == axis else n for i, n in enumerate(x.shape) if keepdims or i != axis)
    if count == 1:
        return np.zeros(kept, dtype=np.int64)
    x = transpose(t, x, [i for i in range(x.ndim) if i != axis] + [axis])
    later = np.minimum(np.arange(1, count)[:, None] + np.arange(count - 1), count - 1)  # rivals of 0..n-2
    earlier = np.minimum(np.arange(count - 1), np.arange(count - 1)[:, None])  # rivals of 1..n-1
    above, at_least = ("GreaterOrEqual", "Greater") if last else ("Greater", "GreaterOrEqual")

    def beats(start: int, rivals: np.ndarray, how: str) -> Value:
        mine = slice_(t, x, {x.ndim - 1: slice(start, start + count - 1)})
        return compare(t, how, mine, reduce_max(t, gather(t, x, rivals, x.ndim - 1), (-1,), False))

    with t.helpers():
        wins = beats(1, earlier, above)
        if count > 2:
            inner = slice_(t, wins, {x.ndim - 1: slice(0, count - 2)})
            rest = slice_(t, beats(0, later, at_least), {x.ndim - 1: slice(1, count - 1)})
            wins = concat(t, [logical_and(t, inner, rest), slice_(t, wins, {x.ndim - 1: slice(count - 2, None)})], -1)
        weighted = mul(t, Ref(wins.name, wins.shape, "float32"), np.arange(1, count, dtype=np.float32))
        return reshape(t, reduce_sum(t, weighted, (-1,), False), kept)
