"""ONNX reductions, softmax and their relatives."""

from __future__ import annotations

import numpy as np

from verifier.graph.lowering import reduce as build
from verifier.graph.lowering.activation import unary
from verifier.graph.lowering.arithmetic import mul, neg
from verifier.graph.lowering.layout import reshape
from verifier.graph.lowering.values import Tracer, Value
from verifier.graph.onnx.call import Builder, Call, Lowering


def _reduction(reduce: Builder, before: str | None = None, after: str | None = None) -> Lowering:
    """Lower after(reduce(before(x))); axes are an attribute or, in later opsets, an input."""

    def lower(t: Tracer, call: Call) -> Value:
        x = call.inputs[0]
        axes = call.ints(t, "axes", 1) or None
        if axes is None and call.attr("noop_with_empty_axes", 0):
            axes = []
        if before == "square":
            x = mul(t, x, x)
        elif before:
            x = unary(t, before, x)
        result = x if axes == [] else reduce(t, x, axes, bool(call.attr("keepdims", 1)))
        return unary(t, after, result) if after else result

    return lower


def _product(t: Tracer, call: Call) -> Value:
    x = t.constant(call.inputs[0], "the operand of ReduceProd")
    axes = call.ints(t, "axes", 1)
    return np.prod(x, axis=tuple(axes) if axes else None, keepdims=bool(call.attr("keepdims", 1)), dtype=x.dtype)


def _softmax(t: Tracer, call: Call) -> Value:
    """Before opset 13 everything from `axis` on is one flattened axis."""
    x = call.inputs[0]
    function = build.softmax if call.op_type == "Softmax" else build.log_softmax
    if call.opset >= 13:
        return function(t, x, call.attr("axis", -1))
    axis = call.attr("axis", 1) % max(x.ndim, 1)
    if axis == x.ndim - 1:
        return function(t, x, axis)
    rows = int(np.prod(x.shape[:axis], dtype=np.int64))
    return reshape(t, function(t, reshape(t, x, (rows, -1)), 1), x.shape)


def _arg(t: Tracer, call: Call) -> Value:
    x = call.inputs[0]
    x = x if call.op_type == "ArgMax" else neg(t, x)
    last = bool(call.attr("select_last_index", 0))
    return build.arg_max(t, x, call.attr("axis", 0), bool(call.attr("keepdims", 1)), last=last)


TABLE: dict[str, Lowering] = {
    "ReduceSum": _reduction(build.reduce_sum),
    "ReduceMean": _reduction(build.reduce_mean),
    "ReduceMax": _reduction(build.reduce_max),
    "ReduceMin": _reduction(build.reduce_min),
    "ReduceL1": _reduction(build.reduce_sum, before="Abs"),
    "ReduceL2": _reduction(build.reduce_sum, before="square", after="Sqrt"),
    "ReduceSumSquare": _reduction(build.reduce_sum, before="square"),
    "ReduceLogSum": _reduction(build.reduce_sum, after="Log"),
    "ReduceLogSumExp": _reduction(build.reduce_sum, before="Exp", after="Log"),
    "ReduceProd": _product,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "ArgMax": _arg,
    "ArgMin": _arg,
}
