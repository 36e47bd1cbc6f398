"""ONNX arithmetic, comparison and logic."""

from __future__ import annotations

import functools

import numpy as np

from verifier.graph.lowering import arithmetic as build
from verifier.graph.lowering.activation import unary
from verifier.graph.lowering.layout import broadcast_shape, expand
from verifier.graph.lowering.values import Tracer, Value, is_constant
from verifier.graph.onnx.call import Builder, Call, Lowering


def _binary(function: Builder) -> Lowering:
    def lower(t: Tracer, call: Call) -> Value:
        return function(t, call.inputs[0], call.inputs[1])

    return lower


def _nary(function: Builder) -> Lowering:
    def lower(t: Tracer, call: Call) -> Value:
        return functools.reduce(functools.partial(function, t), call.inputs)

    return lower


def _compare(t: Tracer, call: Call) -> Value:
    return build.compare(t, call.op_type, call.inputs[0], call.inputs[1])


def _mean(t: Tracer, call: Call) -> Value:
    total = functools.reduce(functools.partial(build.add, t), call.inputs)
    return build.div(t, total, np.asarray(len(call.inputs), dtype=str(total.dtype)))


def _clip(t: Tracer, call: Call) -> Value:
    limits = []
    for index, name in ((1, "min"), (2, "max")):
        value = call.value(index)
        if value is not None:
            limits.append(t.constant(value, name) if value.size else None)
        else:
            given = call.attr(name)
            limits.append(None if given is None else np.asarray(given, dtype=str(call.inputs[0].dtype)))
    return build.clip(t, call.inputs[0], *limits)


def _or(t: Tracer, call: Call) -> Value:
    x, y = call.inputs[:2]
    if is_constant(x, y):
        return np.logical_or(x, y)
    return build.logical_not(t, build.logical_and(t, build.logical_not(t, x), build.logical_not(t, y)))


def _xor(t: Tracer, call: Call) -> Value:
    x, y = call.inputs[:2]
    if is_constant(x, y):
        return np.logical_xor(x, y)
    raise t.unsupported("only on constants")


def _mod(t: Tracer, call: Call) -> Value:
    x, y = (t.constant(v, "an operand of Mod") for v in call.inputs)
    return np.fmod(x, y) if call.attr("fmod", 0) else np.mod(x, y)


def _prelu(t: Tracer, call: Call) -> Value:
    x, slope = call.inputs[0], t.constant(call.inputs[1], "the slope")
    shape = broadcast_shape(t, x, slope)
    x = expand(t, x, shape)
    if slope.size and np.all(slope == slope.flat[0]):
        return unary(t, "LeakyRelu", x, alpha=float(slope.flat[0]))
    return unary(t, "PRelu", x, slope=slope)


TABLE: dict[str, Lowering] = {
    "Add": _binary(build.add),
    "Sub": _binary(build.sub),
    "Mul": _binary(build.mul),
    "Div": _binary(build.div),
    "Pow": _binary(build.power),
    "Mod": _mod,
    "Neg": lambda t, call: build.neg(t, call.inputs[0]),
    "Sum": _nary(build.add),
    "Mean": _mean,
    "Max": _nary(build.maximum),
    "Min": _nary(build.minimum),
    "Clip": _clip,
    "PRelu": _prelu,
    "Greater": _compare,
    "GreaterOrEqual": _compare,
    "Less": _compare,
    "LessOrEqual": _compare,
    "Equal": _compare,
    "Not": lambda t, call: build.logical_not(t, call.inputs[0]),
    "And": _binary(build.logical_and),
    "Or": _or,
    "Xor": _xor,
    "Where": lambda t, call: build.where(t, *call.inputs[:3]),
}
