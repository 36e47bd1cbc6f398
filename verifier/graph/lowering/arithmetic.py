"""Addition, multiplication and their kin, with numpy broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from verifier.errors import NetworkError
from verifier.graph.lowering.activation import unary
from verifier.graph.lowering.layout import broadcast_shape, choose, expand
from verifier.graph.lowering.values import Ref, Tracer, Value, float_dtype, is_constant


def _fold(t: Tracer, function: Callable[..., np.ndarray], *arrays: np.ndarray) -> np.ndarray:
    """A constant expression in the arrays' own precision, warnings off: NaN is caught by the grammar."""
    with np.errstate(all="ignore"):
        return np.asarray(function(*arrays))


def _small(value: np.ndarray, ndim: int) -> np.ndarray:
    """`value` as a scalar where it is one number, never with more than `ndim` axes."""
    return value.reshape(()) if value.size == 1 else value.reshape(value.shape[max(0, value.ndim - ndim) :])


def affine(
    t: Tracer,
    x: Ref,
    scale: np.ndarray | float,
    shift: np.ndarray | float,
    *,
    rounding_terms: int = 0,
    bias_magnitude: np.ndarray | None = None,
) -> Ref:
    """Scale node x * scale + shift, x expanded first where a constant is larger.

    `rounding_terms` counts roundings beyond the one product (see passes/rounding.py).
    """
    dtype = "float32" if x.dtype == "bool" else x.dtype
    scale, shift = (np.asarray(v) if isinstance(v, np.ndarray) else np.asarray(v, dtype) for v in (scale, shift))
    shape = np.broadcast_shapes(x.shape, scale.shape, shift.shape)
    x = expand(t, x, shape)
    attrs: dict[str, Any] = {"scale": _small(scale, len(shape)), "shift": _small(shift, len(shape))}
    if rounding_terms:
        magnitude = np.abs(attrs["shift"]) if bias_magnitude is None else np.asarray(bias_magnitude)
        attrs |= {"rounding_terms": rounding_terms, "bias_magnitude": magnitude}
    return t.emit("Scale", (x,), shape, dtype, **attrs)


def narrow(t: Tracer, x: Ref) -> Ref:
    """A float64 variable rounded to float32 once; the node keeps that rounding visible."""
    t.narrowed = True
    return Ref(affine(t, x, 1.0, 0.0, rounding_terms=1).name, x.shape, "float32")


def add(t: Tracer, x: Value, y: Value) -> Value:
    """x + y."""
    if is_constant(x, y):
        return _fold(t, np.add, x, y)
    shape = broadcast_shape(t, x, y)
    if isinstance(x, np.ndarray):
        x, y = y, x
    if isinstance(y, np.ndarray):
        return affine(t, x, 1.0, y)
    return t.emit("Add", (expand(t, x, shape), expand(t, y, shape)), shape)


def sub(t: Tracer, x: Value, y: Value) -> Value:
    """x - y."""
    if is_constant(x, y):
        return _fold(t, np.subtract, x, y)
    shape = broadcast_shape(t, x, y)
    if isinstance(y, np.ndarray):
        return affine(t, x, 1.0, -y)
    if isinstance(x, np.ndarray):
        return affine(t, y, -1.0, x)
    return t.emit("Sub", (expand(t, x, shape), expand(t, y, shape)), shape)


def neg(t: Tracer, x: Value) -> Value:
    """-x."""
    if isinstance(x, np.ndarray):
        return -x
    with t.helpers():
        return affine(t, x, -1.0, 0.0)


def mul(t: Tracer, x: Value, y: Value) -> Value:
    """x * y; a square becomes Pow."""
    if is_constant(x, y):
        return _fold(t, np.multiply, x, y)
    if isinstance(x, np.ndarray):
        x, y = y, x
    if isinstance(y, np.ndarray):
        return affine(t, x, y, 0.0)
    if x == y:
        return unary(t, "Pow", x, exponent=2.0)
    shape = broadcast_shape(t, x, y)
    return t.emit("Mul", (expand(t, x, shape), expand(t, y, shape)), shape, x.dtype)


def div(t: Tracer, x: Value, y: Value) -> Value:
    """x / y; integer constants divide towards zero, as ONNX does."""
    if is_constant(x, y):
        if x.dtype.kind in "iu" and y.dtype.kind in "iu":
            if not np.all(y):
                raise NetworkError(f"node '{t.stem}' ({t.operator}): integer division by zero")
            quotient = np.abs(x) // np.abs(y)
            return np.where((x < 0) != (y < 0), -quotient, quotient).astype(x.dtype)
        return _fold(t, np.divide, x, y)
    if isinstance(y, np.ndarray):
        if not np.all(y):
            raise NetworkError(f"node '{t.stem}' ({t.operator}): division by a constant that holds 0")
        factor = 1.0 / y.astype(np.float64)
        if np.all(factor == factor.astype(x.dtype)) and np.all(np.frexp(np.abs(y))[0] == 0.5):
            return affine(t, x, factor.astype(x.dtype), 0.0)
        # One deployed division against one product here, plus the rounding of 1 / y itself.
        return affine(t, x, factor, 0.0, rounding_terms=1)
    inverse = unary(t, "Reciprocal", y)
    return inverse if isinstance(x, np.ndarray) and np.all(x == 1) and x.size == 1 else mul(t, x, inverse)


def power(t: Tracer, x: Value, y: Value) -> Value:
    """x ** y for a constant exponent, the same for every element."""
    if is_constant(x, y):
        return _fold(t, np.power, x, y).astype(x.dtype)
    if isinstance(y, Ref):
        raise t.unsupported("the exponent depends on the network's input")
    exponents = np.unique(y)
    if exponents.size != 1:
        raise t.unsupported("the elements have different exponents")
    shape = broadcast_shape(t, x, y)
    x, exponent = expand(t, x, shape), float(exponents[0])
    if exponent == 0.0:
        return np.ones(shape, dtype=x.dtype)
    if exponent == 1.0:
        return x
    named = {0.5: "Sqrt", -1.0: "Reciprocal"}.get(exponent)
    return unary(t, named, x) if named else unary(t, "Pow", x, exponent=exponent)


def maximum(t: Tracer, x: Value, y: Value) -> Value:
    """Elementwise maximum; of two variables y + relu(x - y)."""
    if is_constant(x, y):
        return _fold(t, np.maximum, x, y)
    if isinstance(x, np.ndarray):
        x, y = y, x
    if isinstance(y, np.ndarray):
        return clip(t, x, y, None)
    if x == y:
        return x
    with t.helpers():
        return add(t, y, unary(t, "Relu", sub(t, x, y)))


def minimum(t: Tracer, x: Value, y: Value) -> Value:
    """Elementwise minimum; of two variables x - relu(x - y)."""
    if is_constant(x, y):
        return _fold(t, np.minimum, x, y)
    if isinstance(x, np.ndarray):
        x, y = y, x
    if isinstance(y, np.ndarray):
        return clip(t, x, None, y)
    if x == y:
        return x
    with t.helpers():
        return sub(t, x, unary(t, "Relu", sub(t, x, y)))


def clip(t: Tracer, x: Value, lower: np.ndarray | None, upper: np.ndarray | None) -> Value:
    """min(max(x, lower), upper); None is no limit. [0, inf) is Relu."""
    if isinstance(x, np.ndarray):
        x = x if lower is None else np.maximum(x, lower)
        return x if upper is None else np.minimum(x, upper)
    low = -np.inf if lower is None else _limit(lower)
    high = np.inf if upper is None else _limit(upper)
    shape = np.broadcast_shapes(x.shape, np.shape(low), np.shape(high))
    x = expand(t, x, shape)
    if np.all(np.equal(low, -np.inf)) and np.all(np.equal(high, np.inf)):
        return x
    if np.all(np.equal(low, 0)) and np.all(np.equal(high, np.inf)):
        return unary(t, "Relu", x)
    # min(max(x, low), high) is `high` where the limits cross.
    low = np.minimum(low, high) if np.any(np.greater(low, high)) else low
    return t.emit("Clip", (x,), shape, lower=low, upper=high)


def _limit(value: np.ndarray) -> float | np.ndarray:
    value = np.asarray(value)
    return float(value.reshape(-1)[0]) if value.size == 1 else value


_COMPARE: dict[str, Callable[..., np.ndarray]] = {
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Equal": np.equal,
}


def compare(t: Tracer, op: str, x: Value, y: Value) -> Value:
    """A bool value: x > y, x >= y, x < y, x <= y or x == y (ONNX operator names)."""
    if is_constant(x, y):
        return _COMPARE[op](x, y)
    if op in ("Less", "LessOrEqual"):
        return compare(t, op.replace("Less", "Greater"), y, x)
    if op == "Equal":
        at_least, above = compare(t, "GreaterOrEqual", x, y), compare(t, "Greater", x, y)
        with t.helpers():
            return t.emit("Sub", (at_least, above), at_least.shape, "bool")
    name = "Greater" if op == "Greater" else "GreaterEqual"
    if isinstance(x, np.ndarray):
        # c > y  <=>  not (y >= c)
        other = "GreaterOrEqual" if op == "Greater" else "Greater"
        return logical_not(t, compare(t, other, y, x))
    if isinstance(y, np.ndarray) and np.unique(y).size == 1:
        x, threshold = expand(t, x, broadcast_shape(t, x, y)), float(y.reshape(-1)[0])
    else:
        with t.helpers():
            x, threshold = sub(t, x, y), 0.0
    return t.emit(name, (x,), x.shape, "bool", threshold=threshold)


def logical_not(t: Tracer, x: Value) -> Value:
    """not x, for bools."""
    if isinstance(x, np.ndarray):
        return np.logical_not(x)
    with t.helpers():
        return Ref(affine(t, x, -1.0, 1.0).name, x.shape, "bool")


def logical_and(t: Tracer, x: Value, y: Value) -> Value:
    """x and y, for bools."""
    if is_constant(x, y):
        return np.logical_and(x, y)
    x, y = (v.astype(np.float32) if isinstance(v, np.ndarray) else v for v in (x, y))
    if x is y or x == y:
        return x
    result = mul(t, x, y)
    return Ref(result.name, result.shape, "bool")


def where(t: Tracer, condition: Value, x: Value, y: Value) -> Value:
    """x where the condition holds, else y: y + condition * (x - y) when the condition varies, which
    selects exactly because a condition is 0 or 1."""
    if isinstance(condition, np.ndarray):
        return choose(t, condition, x, y)
    with t.helpers():
        if is_constant(x, y):
            # Products with 0 or 1 are exact, where the difference x - y would be rounded.
            chosen = add(t, mul(t, condition, x), affine(t, condition, -y, y))
            return Ref(chosen.name, chosen.shape, float_dtype(x, y))
        return add(t, y, mul(t, sub(t, x, y), condition))
