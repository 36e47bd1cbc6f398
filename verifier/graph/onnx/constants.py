"""ONNX operators that make constants, ask for shapes, or do nothing at inference."""

from __future__ import annotations

import numpy as np

from verifier.graph.lowering.arithmetic import narrow
from verifier.graph.lowering.values import Ref, Tracer, Value
from verifier.graph.onnx.call import Call, Lowering
from verifier.graph.onnx.proto import element_type


def _constant(t: Tracer, call: Call) -> Value:
    for name, dtype in (("value_float", "float32"), ("value_floats", "float32"), ("value_int", "int64"),
                        ("value_ints", "int64")):  # fmt: skip
        if name in call.attrs:
            return np.asarray(call.attrs[name], dtype=dtype)
    if not isinstance(call.attr("value"), np.ndarray):
        raise t.unsupported(f"constants given as {sorted(call.attrs)}")
    return call.attr("value")


def _constant_of_shape(t: Tracer, call: Call) -> Value:
    value = call.attr("value", np.zeros(1, dtype=np.float32))
    return np.full(call.ints(t, "shape", 0), value.reshape(-1)[0], dtype=value.dtype)


def _shape(t: Tracer, call: Call) -> Value:
    dims = np.array(call.inputs[0].shape, dtype=np.int64)
    return dims[slice(call.attr("start", 0), call.attr("end"))]


def _range(t: Tracer, call: Call) -> Value:
    start, limit, step = (t.constant(v, "a bound of Range").reshape(()) for v in call.inputs)
    return np.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


def _one_hot(t: Tracer, call: Call) -> Value:
    indices = t.constant(call.inputs[0], "the indices").astype(np.int64)
    depth = t.integers(call.inputs[1], "the depth")[0]
    off, on = t.constant(call.inputs[2], "the values")
    hot = (indices % depth)[..., None] == np.arange(depth)
    return np.moveaxis(np.where(hot, on, off), -1, call.attr("axis", -1))


def _eye_like(t: Tracer, call: Call) -> Value:
    x = call.inputs[0]
    code = call.attr("dtype")
    dtype = element_type(code, f"node '{t.stem}'") if code else str(x.dtype)
    return np.eye(x.shape[0], x.shape[1], call.attr("k", 0), dtype=np.dtype(dtype))


def _non_zero(t: Tracer, call: Call) -> Value:
    return np.array(np.nonzero(t.constant(call.inputs[0], "the operand")), dtype=np.int64)


def _cum_sum(t: Tracer, call: Call) -> Value:
    x, axis = call.inputs[0], t.integers(call.inputs[1], "the axis")[0]
    size = x.shape[axis]
    matrix = np.triu(np.ones((size, size)), 1 if call.attr("exclusive", 0) else 0)
    matrix = matrix[::-1, ::-1] if call.attr("reverse", 0) else matrix
    from verifier.graph.lowering.layout import transpose
    from verifier.graph.lowering.linear import matmul

    order = [a for a in range(x.ndim) if a != axis % x.ndim] + [axis % x.ndim]
    summed = matmul(t, transpose(t, x, order), matrix.astype(str(x.dtype)))
    return transpose(t, summed, [int(i) for i in np.argsort(order)])


def _cast(t: Tracer, call: Call) -> Value:
    x = call.inputs[0]
    target = call.inputs[1].dtype if call.op_type == "CastLike" else element_type(call.attr("to"), f"node '{t.stem}'")
    target = str(target)
    if isinstance(x, np.ndarray):
        with np.errstate(all="ignore"):
            return x.astype(target)
    if target == x.dtype or (x.dtype == "bool" and target.startswith("float")):
        return Ref(x.name, x.shape, target)
    if (x.dtype, target) == ("float32", "float64"):
        return Ref(x.name, x.shape, target)
    if (x.dtype, target) == ("float64", "float32"):
        return narrow(t, x)
    raise t.unsupported(f"casting a variable from {x.dtype} to {target}")


def _dropout(t: Tracer, call: Call) -> Value | tuple[Value, ...]:
    training = call.value(2)
    if call.opset >= 12 and training is not None and np.any(t.constant(training, "training_mode")):
        raise t.unsupported("training_mode is on; export in inference mode")
    x = call.inputs[0]
    return (x, np.ones(x.shape, dtype=bool)) if len(call.outputs) > 1 else x


TABLE: dict[str, Lowering] = {
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Shape": _shape,
    "Size": lambda t, call: np.asarray(call.inputs[0].size, dtype=np.int64),
    "Range": _range,
    "OneHot": _one_hot,
    "EyeLike": _eye_like,
    "NonZero": _non_zero,
    "CumSum": _cum_sum,
    "Cast": _cast,
    "CastLike": _cast,
    "Identity": lambda t, call: call.inputs[0],
    "Dropout": _dropout,
}
