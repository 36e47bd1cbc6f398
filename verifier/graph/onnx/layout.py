"""ONNX operators that move, copy or drop elements."""

from __future__ import annotations

import numpy as np

from verifier.errors import ShapeError
from verifier.graph.lowering import layout as build
from verifier.graph.lowering.values import Tracer, Value
from verifier.graph.onnx.call import Call, Lowering


def _reshape(t: Tracer, call: Call) -> Value:
    x, wanted = call.inputs[0], call.ints(t, "shape", 1)
    if wanted is None:
        raise t.unsupported("no target shape")
    if not call.attr("allowzero", 0):
        wanted = [x.shape[i] if d == 0 and i < x.ndim else d for i, d in enumerate(wanted)]
    return build.reshape(t, x, wanted)


def _flatten(t: Tracer, call: Call) -> Value:
    x = call.inputs[0]
    axis = call.attr("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    rows = int(np.prod(x.shape[:axis], dtype=np.int64))
    return build.reshape(t, x, (rows, x.size // max(rows, 1)))


def _squeeze(t: Tracer, call: Call) -> Value:
    x = call.inputs[0]
    axes = call.ints(t, "axes", 1)
    drop = {i for i, d in enumerate(x.shape) if d == 1} if axes is None else {a % x.ndim for a in axes}
    if any(x.shape[a] != 1 for a in drop):
        raise ShapeError(f"node '{t.stem}' (Squeeze): axes {sorted(drop)} of {tuple(x.shape)} are not all 1")
    return build.reshape(t, x, [d for i, d in enumerate(x.shape) if i not in drop])


def _unsqueeze(t: Tracer, call: Call) -> Value:
    x, axes = call.inputs[0], call.ints(t, "axes", 1)
    rank = x.ndim + len(axes)
    added = {a % rank for a in axes}
    rest = iter(x.shape)
    return build.reshape(t, x, [1 if i in added else next(rest) for i in range(rank)])


def _transpose(t: Tracer, call: Call) -> Value:
    x = call.inputs[0]
    return build.transpose(t, x, call.attr("perm") or list(range(x.ndim))[::-1])


def _concat(t: Tracer, call: Call) -> Value:
    return build.concat(t, call.inputs, call.attr("axis", 1))


def _split(t: Tracer, call: Call) -> tuple[Value, ...]:
    x, axis = call.inputs[0], call.attr("axis", 0)
    sizes = call.ints(t, "split", 1)
    if not sizes:
        count = call.attr("num_outputs", len(call.outputs))
        size = -(-x.shape[axis] // count)
        sizes = [min(size, x.shape[axis] - i * size) for i in range(count)]
    return build.split(t, x, sizes, axis)


def _slice(t: Tracer, call: Call) -> Value:
    x = call.inputs[0]
    starts, ends = call.ints(t, "starts", 1), call.ints(t, "ends", 2)
    axes = call.ints(t, "axes", 3) or list(range(len(starts)))
    steps = call.ints(t, "steps", 4) or [1] * len(starts)
    slices = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        start, end = (v + size if v < 0 else v for v in (start, end))
        if step > 0:
            slices[axis % x.ndim] = slice(min(max(start, 0), size), min(max(end, 0), size), step)
        else:
            start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
            slices[axis % x.ndim] = slice(start, end if end >= 0 else None, step)
    return build.slice_(t, x, slices)


def _gather(t: Tracer, call: Call) -> Value:
    indices = t.constant(call.inputs[1], "the indices").astype(np.int64)
    return build.gather(t, call.inputs[0], indices, call.attr("axis", 0))


def _gather_elements(t: Tracer, call: Call) -> Value:
    x, axis = call.inputs[0], call.attr("axis", 0)
    indices = t.constant(call.inputs[1], "the indices").astype(np.int64)
    indices = np.where(indices < 0, indices + x.shape[axis], indices)
    grid: list[np.ndarray] = list(np.indices(indices.shape, sparse=True))
    grid[axis % x.ndim] = indices
    return build.rearrange(t, x, lambda a: a[tuple(grid)])


def _nd_index(t: Tracer, value: Value, shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    indices = t.constant(value, "the indices").astype(np.int64)
    return tuple(
        np.where(indices[..., i] < 0, indices[..., i] + shape[i], indices[..., i]) for i in range(indices.shape[-1])
    )


def _gather_nd(t: Tracer, call: Call) -> Value:
    x, batch = call.inputs[0], call.attr("batch_dims", 0)
    index = _nd_index(t, call.inputs[1], tuple(x.shape[batch:]))
    rank = index[0].ndim
    grid = [np.arange(n).reshape((1,) * i + (n,) + (1,) * (rank - i - 1)) for i, n in enumerate(x.shape[:batch])]
    return build.rearrange(t, x, lambda a: a[(*grid, *index)])


def _scatter_nd(t: Tracer, call: Call) -> Value:
    x, updates = call.inputs[0], call.inputs[2]
    if call.attr("reduction", "none") != "none":
        raise t.unsupported(f"reduction {call.attr('reduction')}")
    positions = np.arange(x.size).reshape(x.shape)[_nd_index(t, call.inputs[1], tuple(x.shape))]
    return build.scatter(t, x, positions, updates)


def _scatter_elements(t: Tracer, call: Call) -> Value:
    x, axis = call.inputs[0], call.attr("axis", 0)
    if call.attr("reduction", "none") != "none":
        raise t.unsupported(f"reduction {call.attr('reduction')}")
    indices = t.constant(call.inputs[1], "the indices").astype(np.int64)
    indices = np.where(indices < 0, indices + x.shape[axis], indices)
    grid: list[np.ndarray] = list(np.indices(indices.shape, sparse=True))
    grid[axis % x.ndim] = indices
    return build.scatter(t, x, np.arange(x.size).reshape(x.shape)[tuple(grid)], call.inputs[2])


def _expand(t: Tracer, call: Call) -> Value:
    x, wanted = call.inputs[0], call.ints(t, "shape", 1)
    return build.expand(t, x, build.broadcast_shape(t, x, np.empty(wanted)))


def _tile(t: Tracer, call: Call) -> Value:
    repeats = call.ints(t, "repeats", 1)
    return build.rearrange(t, call.inputs[0], lambda a: np.tile(a, repeats))


def _pad(t: Tracer, call: Call) -> Value:
    x = call.inputs[0]
    pads = call.ints(t, "pads", 1) or list(call.attr("paddings", []))
    axes = call.ints(t, "axes", 3)
    if axes is not None:
        full = [0] * (2 * x.ndim)
        for position, axis in enumerate(axes):
            full[axis % x.ndim] = pads[position]
            full[axis % x.ndim + x.ndim] = pads[position + len(axes)]
        pads = full
    given = call.value(2)
    value = float(t.constant(given, "the fill value").reshape(-1)[0]) if given is not None and given.size else 0.0
    value = call.attr("value", value) if call.opset < 11 else value
    return build.pad(t, x, pads, call.attr("mode", "constant"), value)


def _depth_to_space(t: Tracer, call: Call) -> Value:
    x, b = call.inputs[0], call.attr("blocksize")
    n, c, h, w = x.shape
    if call.attr("mode", "DCR") == "DCR":
        shape, perm = (n, b, b, c // (b * b), h, w), (0, 3, 4, 1, 5, 2)
    else:
        shape, perm = (n, c // (b * b), b, b, h, w), (0, 1, 4, 2, 5, 3)
    mixed = build.transpose(t, build.reshape(t, x, shape), perm)
    return build.reshape(t, mixed, (n, c // (b * b), h * b, w * b))


def _space_to_depth(t: Tracer, call: Call) -> Value:
    x, b = call.inputs[0], call.attr("blocksize")
    n, c, h, w = x.shape
    split = build.reshape(t, x, (n, c, h // b, b, w // b, b))
    return build.reshape(t, build.transpose(t, split, (0, 3, 5, 1, 2, 4)), (n, c * b * b, h // b, w // b))


def _trilu(t: Tracer, call: Call) -> Value:
    x, k = call.inputs[0], (call.ints(t, "k", 1) or [0])[0]
    keep = np.tri(x.shape[-2], x.shape[-1], k if not call.attr("upper", 1) else k - 1, dtype=bool)
    keep = ~keep if call.attr("upper", 1) else keep
    return build.choose(t, keep, x, np.zeros((), dtype=str(x.dtype)))


TABLE: dict[str, Lowering] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterND": _scatter_nd,
    "ScatterElements": _scatter_elements,
    "Scatter": _scatter_elements,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Trilu": _trilu,
}
