"""Moving and copying elements: reshape, transpose, and everything that is a Select."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from verifier.errors import ShapeError
from verifier.graph.lowering.values import Ref, Tracer, Value, is_constant


def reshape(t: Tracer, x: Value, shape: Sequence[int]) -> Value:
    """Row-major reshape; one entry may be -1."""
    shape = tuple(int(d) for d in shape)
    size = x.size
    if -1 in shape:
        known = int(np.prod([d for d in shape if d != -1], dtype=np.int64))
        if known and size % known == 0:
            shape = tuple(size // known if d == -1 else d for d in shape)
    if int(np.prod(shape, dtype=np.int64)) != size or min(shape, default=0) < 0:
        raise ShapeError(
            f"node '{t.stem}' ({t.operator}): {tuple(x.shape)} cannot become {shape}; "
            "unknown dimensions of the file were fixed to 1"
        )
    if isinstance(x, np.ndarray):
        return x.reshape(shape)
    return x if shape == x.shape else t.emit("Reshape", (x,), shape)


def transpose(t: Tracer, x: Value, perm: Sequence[int]) -> Value:
    """Permute axes; a permutation that only moves axes of length 1 is a reshape."""
    perm = tuple(int(p) % max(x.ndim, 1) for p in perm)
    if sorted(perm) != list(range(x.ndim)):
        raise ShapeError(f"node '{t.stem}' ({t.operator}): perm {perm} does not permute {x.ndim} axes")
    if isinstance(x, np.ndarray):
        return x.transpose(perm)
    shape = tuple(x.shape[p] for p in perm)
    long_axes = [p for p in perm if x.shape[p] != 1]
    if long_axes == sorted(long_axes):
        return reshape(t, x, shape)
    return t.emit("Transpose", (x,), shape, perm=perm)


def swap_last(t: Tracer, x: Value) -> Value:
    """Transpose the last two axes."""
    order = list(range(x.ndim))
    order[-1], order[-2] = order[-2], order[-1]
    return transpose(t, x, order)


def select(t: Tracer, x: Ref, indices: np.ndarray) -> Ref:
    """Node with result.flat[i] = x.flat[indices.flat[i]], 0 where -1; a plain copy becomes a Reshape."""
    indices = np.ascontiguousarray(indices, dtype=np.int64)
    if indices.size == x.size and np.array_equal(indices.reshape(-1), np.arange(x.size)):
        return reshape(t, x, indices.shape)
    return t.emit("Select", (x,), indices.shape, indices=indices)


def rearrange(t: Tracer, x: Value, move: Callable[[np.ndarray], np.ndarray]) -> Value:
    """Apply `move`, a function that only moves, copies or drops elements of an array."""
    if isinstance(x, np.ndarray):
        return np.asarray(move(x))
    return select(t, x, np.asarray(move(np.arange(x.size, dtype=np.int64).reshape(x.shape))))


def expand(t: Tracer, x: Value, shape: Sequence[int]) -> Value:
    """Broadcast to `shape`, numpy rules."""
    shape = tuple(int(d) for d in shape)
    if tuple(x.shape) == shape:
        return x
    try:
        return rearrange(t, x, lambda a: np.broadcast_to(a, shape))
    except ValueError:
        raise ShapeError(f"node '{t.stem}' ({t.operator}): {tuple(x.shape)} does not broadcast to {shape}") from None


def broadcast_shape(t: Tracer, *values: Value) -> tuple[int, ...]:
    """The common shape of the values, numpy rules."""
    try:
        return np.broadcast_shapes(*(tuple(v.shape) for v in values))
    except ValueError:
        shapes = ", ".join(str(tuple(v.shape)) for v in values)
        raise ShapeError(f"node '{t.stem}' ({t.operator}): shapes {shapes} do not broadcast together") from None


def concat(t: Tracer, values: Sequence[Value], axis: int) -> Value:
    """Concatenate along `axis`; constants among references become Constant nodes."""
    if is_constant(*values):
        return np.concatenate(values, axis=axis)
    kept = [v for v in values if v.size] or list(values)[:1]
    dtype = next(v.dtype for v in values if isinstance(v, Ref))
    refs = tuple(t.ref(v, dtype if dtype != "bool" else "float32") for v in kept)
    if len(refs) == 1:
        return refs[0]
    axis %= refs[0].ndim
    rests = {r.shape[:axis] + r.shape[axis + 1 :] for r in refs}
    if len(rests) != 1:
        raise ShapeError(f"node '{t.stem}' ({t.operator}): shapes {[r.shape for r in refs]} differ outside axis {axis}")
    shape = list(refs[0].shape)
    shape[axis] = sum(r.shape[axis] for r in refs)
    return t.emit("Concat", refs, tuple(shape), dtype, axis=axis)


def slice_(t: Tracer, x: Value, slices: dict[int, slice]) -> Value:
    """Python slicing per axis; the caller has resolved ONNX's or torch's end conventions."""
    index = tuple(slices.get(axis, slice(None)) for axis in range(x.ndim))
    return rearrange(t, x, lambda a: a[index])


def split(t: Tracer, x: Value, sizes: Sequence[int], axis: int) -> tuple[Value, ...]:
    """Consecutive pieces of the given sizes along `axis`."""
    axis %= x.ndim
    if sum(sizes) != x.shape[axis]:
        raise ShapeError(f"node '{t.stem}' ({t.operator}): split sizes {list(sizes)} do not add up to {x.shape[axis]}")
    ends = np.cumsum(sizes)
    return tuple(slice_(t, x, {axis: slice(int(e) - int(s), int(e))}) for s, e in zip(sizes, ends, strict=True))


def gather(t: Tracer, x: Value, indices: np.ndarray, axis: int) -> Value:
    """ONNX Gather with constant indices (negative ones count from the end)."""
    axis %= x.ndim
    size = x.shape[axis]
    if indices.size and (indices.min() < -size or indices.max() >= size):
        raise ShapeError(f"node '{t.stem}' ({t.operator}): index out of range for axis of {size}")
    return rearrange(t, x, lambda a: np.take(a, indices, axis=axis))


def pad(t: Tracer, x: Value, pads: Sequence[int], mode: str = "constant", value: float = 0.0) -> Value:
    """Pad or crop (negative entries); pads = (begin of every axis..., end of every axis...).

    mode is "constant", "edge", "reflect" or "wrap".
    """
    n = x.ndim
    widths = [(max(0, int(b)), max(0, int(e))) for b, e in zip(pads[:n], pads[n:], strict=True)]
    crop = tuple(
        slice(max(0, -int(b)), x.shape[i] - max(0, -int(e)))
        for i, (b, e) in enumerate(zip(pads[:n], pads[n:], strict=True))
    )
    if mode != "constant":
        return rearrange(t, x, lambda a: np.pad(a[crop], widths, mode=mode))  # type: ignore[call-overload]
    if isinstance(x, np.ndarray):
        return np.pad(x[crop], widths, constant_values=value)
    indices = np.arange(x.size, dtype=np.int64).reshape(x.shape)[crop]
    indices = np.pad(indices, widths, constant_values=-1)
    result = select(t, x, indices)
    if value == 0:
        return result
    from verifier.graph.lowering.arithmetic import add

    return add(t, result, np.where(indices < 0, value, 0.0).astype(result.dtype))


def choose(t: Tracer, condition: np.ndarray, x: Value, y: Value) -> Value:
    """x where the constant condition holds, else y; all three broadcast."""
    shape = broadcast_shape(t, condition, x, y)
    mask = np.broadcast_to(condition.astype(bool), shape)
    if is_constant(x, y):
        return np.where(mask, x, y)
    if mask.all() or not mask.any():
        return expand(t, x if mask.all() else y, shape)
    dtype = next(v.dtype for v in (x, y) if isinstance(v, Ref))
    a, b = (t.ref(v, "float32" if dtype == "bool" else dtype) for v in (x, y))
    pool = concat(t, [reshape(t, a, (a.size,)), reshape(t, b, (b.size,))], 0)
    from_a = np.broadcast_to(np.arange(a.size).reshape(a.shape), shape)
    from_b = np.broadcast_to(a.size + np.arange(b.size).reshape(b.shape), shape)
    return select(t, pool, np.where(mask, from_a, from_b))


def scatter(t: Tracer, x: Value, flat_positions: np.ndarray, updates: Value) -> Value:
    """Copy of x with x.flat[flat_positions.flat[i]] = updates.flat[i]; later writes win."""
    if is_constant(x, updates):
        result = np.array(x)
        result.reshape(-1)[flat_positions.reshape(-1)] = updates.reshape(-1)
        return result
    source = np.arange(x.size, dtype=np.int64)
    source[flat_positions.reshape(-1)] = x.size + np.arange(flat_positions.size)
    dtype = next(v.dtype for v in (x, updates) if isinstance(v, Ref))
    a, b = t.ref(x, dtype), t.ref(updates, dtype)
    pool = concat(t, [reshape(t, a, (a.size,)), reshape(t, b, (b.size,))], 0)
    return select(t, pool, source.reshape(x.shape))
