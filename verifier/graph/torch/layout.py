"""ATen operators that move, copy or drop elements, and those that change nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from verifier.graph.lowering import layout as build
from verifier.graph.lowering.arithmetic import narrow
from verifier.graph.lowering.values import Ref, Tracer, Value
from verifier.graph.torch.call import Call, Lowering


def _reshape(t: Tracer, call: Call) -> Value:
    return build.reshape(t, call["self"], call.get("size", call.get("shape")))


def _flatten(t: Tracer, call: Call) -> Value:
    x = call["self"]
    start, end = (a % max(x.ndim, 1) for a in (call.get("start_dim", 0), call.get("end_dim", -1)))
    return build.reshape(t, x, (*x.shape[:start], -1, *x.shape[end + 1 :]))


def _unflatten(t: Tracer, call: Call) -> Value:
    x, axis = call["self"], call["dim"] % call["self"].ndim
    return build.reshape(t, x, (*x.shape[:axis], *call["sizes"], *x.shape[axis + 1 :]))


def _squeeze(t: Tracer, call: Call) -> Value:
    x, axes = call["self"], call.get("dim")
    drop = set(range(x.ndim)) if axes is None else {a % max(x.ndim, 1) for a in np.atleast_1d(axes)}
    return build.reshape(t, x, [d for i, d in enumerate(x.shape) if not (i in drop and d == 1)])


def _unsqueeze(t: Tracer, call: Call) -> Value:
    x = call["self"]
    axis = call["dim"] % (x.ndim + 1)
    return build.reshape(t, x, (*x.shape[:axis], 1, *x.shape[axis:]))


def _transpose(t: Tracer, call: Call) -> Value:
    x = call["self"]
    order = list(range(x.ndim))
    first, second = call.get("dim0", 0), call.get("dim1", 1)
    if x.ndim > 1:
        order[first], order[second] = order[second], order[first]
    return build.transpose(t, x, order)


def _expand(t: Tracer, call: Call) -> Value:
    x, size = call["self"], call["size"]
    shape = (1,) * (len(size) - x.ndim) + tuple(x.shape)
    return build.expand(t, x, [n if s == -1 else s for n, s in zip(shape, size, strict=True)])


def _cat(t: Tracer, call: Call) -> Value:
    return build.concat(t, call["tensors"], call.get("dim", 0))


def _stack(t: Tracer, call: Call) -> Value:
    tensors = call["tensors"]
    axis = call.get("dim", 0) % (tensors[0].ndim + 1)
    grown = [build.reshape(t, v, (*v.shape[:axis], 1, *v.shape[axis:])) for v in tensors]
    return build.concat(t, grown, axis)


def _split(t: Tracer, call: Call) -> tuple[Value, ...]:
    x, axis = call["self"], call.get("dim", 0)
    given = call.get("split_size", call.get("split_sizes"))
    if isinstance(given, int):
        size = x.shape[axis]
        given = [min(given, size - start) for start in range(0, size, given)]
    return build.split(t, x, given, axis)


def _chunk(t: Tracer, call: Call) -> tuple[Value, ...]:
    x, axis = call["self"], call.get("dim", 0)
    size = x.shape[axis]
    step = -(-size // call["chunks"])
    return build.split(t, x, [min(step, size - start) for start in range(0, size, step)], axis)


def _unbind(t: Tracer, call: Call) -> tuple[Value, ...]:
    x, axis = call["self"], call.get("dim", 0)
    return tuple(_take(t, x, axis, index) for index in range(x.shape[axis]))


def _take(t: Tracer, x: Value, axis: int, index: int) -> Value:
    return build.gather(t, x, np.asarray(index), axis)


def _slice(t: Tracer, call: Call) -> Value:
    x, axis = call["self"], call.get("dim", 0) % call["self"].ndim
    size = x.shape[axis]
    start, end = (v + size if v < 0 else min(v, size) for v in (call.get("start", 0), call.get("end", size)))
    return build.slice_(t, x, {axis: slice(max(start, 0), max(end, 0), call.get("step", 1))})


def _narrow(t: Tracer, call: Call) -> Value:
    start = call["start"]
    return build.slice_(t, call["self"], {call["dim"] % call["self"].ndim: slice(start, start + call["length"])})


def _index_select(t: Tracer, call: Call) -> Value:
    return build.gather(t, call["self"], t.constant(call["index"], "the index"), call["dim"])


def _index(t: Tracer, call: Call) -> Value:
    """x[i, :, j, ...] with constant integer or bool tensors."""
    index = tuple(slice(None) if i is None else t.constant(i, "the index") for i in call["indices"])
    return build.rearrange(t, call["self"], lambda a: a[index])


def _pad(t: Tracer, call: Call) -> Value:
    """torch lists (begin, end) from the last axis backwards."""
    x, given = call["self"], call.get("pad", call.get("padding"))
    begins, ends = [0] * x.ndim, [0] * x.ndim
    for i in range(len(given) // 2):
        begins[-1 - i], ends[-1 - i] = given[2 * i], given[2 * i + 1]
    name = call.name.removeprefix("aten::")
    mode = call.get("mode", "constant") if name == "pad" else name.split("_")[0]
    mode = {"replication": "edge", "reflection": "reflect", "replicate": "edge", "circular": "wrap"}.get(mode, mode)
    return build.pad(t, x, [*begins, *ends], mode, call.number("value", 0.0))


def _pixel_shuffle(t: Tracer, call: Call) -> Value:
    x, r = call["self"], call["upscale_factor"]
    n, c, h, w = x.shape
    mixed = build.transpose(t, build.reshape(t, x, (n, c // (r * r), r, r, h, w)), (0, 1, 4, 2, 5, 3))
    return build.reshape(t, mixed, (n, c // (r * r), h * r, w * r))


def _roll(t: Tracer, call: Call) -> Value:
    axes = call.get("dims") or None
    return build.rearrange(t, call["self"], lambda a: np.roll(a, call["shifts"], axis=axes))


def _same(t: Tracer, call: Call) -> Value:
    return call.get("self", call.get("input"))


def _dropout(t: Tracer, call: Call) -> Value:
    if call.get("train", False):
        raise t.unsupported("training mode; export the module in evaluation mode")
    return call["input"]


_FLOATS = {torch.float32: "float32", torch.float64: "float64"}


def _to(t: Tracer, call: Call) -> Value:
    x, wanted = call["self"], call.get("dtype")
    if wanted is None or (isinstance(x, Ref) and _FLOATS.get(wanted) == x.dtype):
        return x
    if wanted not in _FLOATS:
        raise t.unsupported(f"converting a variable to {wanted}")
    if x.dtype == "float64":
        return narrow(t, x)
    return Ref(x.name, x.shape, _FLOATS[wanted])


def _item(t: Tracer, call: Call) -> Any:
    return call["a"][call["b"]]


TABLE: dict[str, Lowering] = {
    **dict.fromkeys(("aten::view", "aten::reshape", "aten::_unsafe_view", "aten::view_copy"), _reshape),
    "aten::flatten": _flatten,
    "aten::unflatten": _unflatten,
    "aten::squeeze": _squeeze,
    "aten::unsqueeze": _unsqueeze,
    "aten::transpose": _transpose,
    "aten::t": _transpose,
    "aten::permute": lambda t, call: build.transpose(t, call["self"], call["dims"]),
    "aten::expand": _expand,
    "aten::repeat": lambda t, call: build.rearrange(t, call["self"], lambda a: np.tile(a, call["repeats"])),
    "aten::cat": _cat,
    "aten::stack": _stack,
    **dict.fromkeys(("aten::split", "aten::split_with_sizes"), _split),
    "aten::chunk": _chunk,
    "aten::unbind": _unbind,
    "aten::slice": _slice,
    "aten::narrow": _narrow,
    "aten::select": lambda t, call: _take(t, call["self"], call["dim"], call["index"]),
    "aten::index_select": _index_select,
    "aten::index": _index,
    **dict.fromkeys(
        ("aten::pad", "aten::constant_pad_nd", *(f"aten::{m}_pad{d}d" for m in ("reflection", "replication")
                                                for d in (1, 2, 3))), _pad),
    "aten::pixel_shuffle": _pixel_shuffle,
    "aten::roll": _roll,
    "aten::flip": lambda t, call: build.rearrange(t, call["self"], lambda a: np.flip(a, call["dims"])),
    **dict.fromkeys(
        ("aten::clone", "aten::contiguous", "aten::detach", "aten::alias", "aten::lift_fresh_copy", "aten::identity"),
        _same,
    ),
    **dict.fromkeys(("aten::dropout", "aten::feature_dropout", "aten::alpha_dropout"), _dropout),
    **dict.fromkeys(("aten::to", "aten::_to_copy"), _to),
    "getitem": _item,
}  # fmt: skip
