"""ATen functions of one element at a time, arithmetic and comparisons."""

from __future__ import annotations

import numpy as np

from verifier.graph.lowering import arithmetic as build
from verifier.graph.lowering.activation import unary
from verifier.graph.lowering.layout import broadcast_shape, expand
from verifier.graph.lowering.values import Ref, Tracer, Value, float_dtype
from verifier.graph.torch.call import Call, Lowering


def _plain(name: str) -> Lowering:
    return lambda t, call: unary(t, name, call["self"])


def _constant(value: float, like: Value) -> np.ndarray:
    return np.asarray(value, dtype=float_dtype(like))


def _clamp(t: Tracer, call: Call) -> Value:
    x = call["self"]
    limits = [call.get("min", call.get("min_val")), call.get("max", call.get("max_val"))]
    low, high = (v if v is None or isinstance(v, np.ndarray) else _limit(t, v, x) for v in limits)
    return build.clip(t, x, low, high)


def _limit(t: Tracer, value: object, x: Value) -> np.ndarray:
    if isinstance(value, Ref):
        raise t.unsupported("a limit depends on the network's input")
    return _constant(float(value), x)  # type: ignore[arg-type]


def _softplus(t: Tracer, call: Call) -> Value:
    """log(1 + exp(beta x)) / beta; past the threshold torch returns x, which is 2e-9 off at most."""
    x, beta, threshold = call["self"], call.number("beta", 1.0), call.number("threshold", 20.0)
    if threshold < 20.0:
        raise t.unsupported(f"threshold {threshold} below 20")
    if beta == 1.0:
        return unary(t, "Softplus", x)
    inner = build.mul(t, x, _constant(beta, x))
    return build.div(t, unary(t, "Softplus", inner), _constant(beta, x))


def _elu(t: Tracer, call: Call) -> Value:
    x = call["self"]
    alpha, scale, inner = (call.number(k, 1.0) for k in ("alpha", "scale", "input_scale"))
    if inner != 1.0:
        if scale == 1.0 and abs(inner * alpha - 1.0) < 1e-12:
            return unary(t, "Celu", x, alpha=alpha)
        raise t.unsupported(f"input_scale {inner} with alpha {alpha} and scale {scale}")
    return unary(t, "Elu", x, alpha=alpha) if scale == 1.0 else unary(t, "Selu", x, alpha=alpha, gamma=scale)


def _mish(t: Tracer, call: Call) -> Value:
    x = call["self"]
    return build.mul(t, x, unary(t, "Tanh", unary(t, "Softplus", x)))


def _log_sigmoid(t: Tracer, call: Call) -> Value:
    """log(1 / (1 + exp(-x))) = -softplus(-x)."""
    return build.neg(t, unary(t, "Softplus", build.neg(t, call["self"])))


def _threshold(t: Tracer, call: Call) -> Value:
    """x where x > threshold, else value."""
    x = call["self"]
    limit, value = (_constant(call.number(k, 0.0), x) for k in ("threshold", "value"))
    return build.where(t, build.compare(t, "Greater", x, limit), x, value)


def _prelu(t: Tracer, call: Call) -> Value:
    x, slope = call["self"], t.constant(call["weight"], "the slope")
    if slope.size == 1:
        return unary(t, "LeakyRelu", x, alpha=float(slope.reshape(-1)[0]))
    if slope.ndim == 1 and x.ndim > 1:
        slope = slope.reshape(-1, *(1,) * (x.ndim - 2))
    return unary(t, "PRelu", expand(t, x, broadcast_shape(t, x, slope)), slope=slope)


def _rsqrt(t: Tracer, call: Call) -> Value:
    return unary(t, "Reciprocal", unary(t, "Sqrt", call["self"]))


def _round(t: Tracer, call: Call) -> Value:
    if call.get("decimals", 0):
        raise t.unsupported("rounding to decimals")
    return unary(t, "Round", call["self"])


def _pair(call: Call) -> tuple[Value, Value]:
    """Both operands; a Python number takes the other's precision."""
    x, y = call["self"], call["other"]
    like = x if isinstance(x, (Ref, np.ndarray)) else y
    return call.operand("self", like), call.operand("other", like)


def _add(t: Tracer, call: Call) -> Value:
    x, y = _pair(call)
    if call.name.endswith("rsub"):
        x, y = y, x
    alpha = call.number("alpha", 1.0)
    if alpha != 1.0:
        y = build.mul(t, y, _constant(alpha, y))
    return build.add(t, x, y) if call.name.endswith("add") else build.sub(t, x, y)


def _div(t: Tracer, call: Call) -> Value:
    if call.get("rounding_mode") is not None:
        raise t.unsupported(f"rounding_mode {call['rounding_mode']}")
    return build.div(t, *_pair(call))


def _pow(t: Tracer, call: Call) -> Value:
    return build.power(t, call.operand("self"), call.operand("exponent"))


_COMPARE = {"gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual", "eq": "Equal"}


def _compare(t: Tracer, call: Call) -> Value:
    return build.compare(t, _COMPARE[call.name.removeprefix("aten::")], *_pair(call))


def _not_equal(t: Tracer, call: Call) -> Value:
    return build.logical_not(t, build.compare(t, "Equal", *_pair(call)))


def _where(t: Tracer, call: Call) -> Value:
    x, y = _pair(call)
    return build.where(t, call["condition"], x, y)


def _masked_fill(t: Tracer, call: Call) -> Value:
    x = call["self"]
    return build.where(t, call["mask"], call.operand("value", x), x)


TABLE: dict[str, Lowering] = {
    **{
        f"aten::{name.lower()}": _plain(name)
        for name in (
            *("Relu", "Sigmoid", "Tanh", "Atan", "Erf", "Exp", "Log", "Sqrt", "Reciprocal", "Abs", "Sign", "Floor"),
            *("Ceil", "Sin", "Cos", "Silu", "HardSwish"),
        )
    },
    "aten::neg": lambda t, call: build.neg(t, call["self"]),
    "aten::square": lambda t, call: build.mul(t, call["self"], call["self"]),
    "aten::round": _round,
    "aten::rsqrt": _rsqrt,
    "aten::softplus": _softplus,
    "aten::softsign": _plain("Softsign"),
    "aten::elu": _elu,
    "aten::selu": lambda t, call: unary(t, "Selu", call["self"], alpha=1.6732632423543772, gamma=1.0507009873554805),
    "aten::celu": lambda t, call: unary(t, "Celu", call["self"], alpha=call.number("alpha", 1.0)),
    "aten::gelu": lambda t, call: unary(t, "Gelu", call["self"], approximate=call.get("approximate", "none")),
    "aten::mish": _mish,
    "aten::log_sigmoid": _log_sigmoid,
    "aten::threshold": _threshold,
    "aten::leaky_relu": lambda t, call: unary(t, "LeakyRelu", call["self"], alpha=call.number("negative_slope", 0.01)),
    "aten::prelu": _prelu,
    "aten::_prelu_kernel": _prelu,
    "aten::hardsigmoid": lambda t, call: unary(t, "HardSigmoid", call["self"], alpha=1 / 6, beta=0.5),
    "aten::hardtanh": _clamp,
    "aten::relu6": lambda t, call: build.clip(t, call["self"], _constant(0, call["self"]), _constant(6, call["self"])),
    "aten::clamp": _clamp,
    "aten::clamp_min": _clamp,
    "aten::clamp_max": _clamp,
    "aten::add": _add,
    "aten::sub": _add,
    "aten::rsub": _add,
    "aten::mul": lambda t, call: build.mul(t, *_pair(call)),
    "aten::div": _div,
    "aten::pow": _pow,
    "aten::maximum": lambda t, call: build.maximum(t, *_pair(call)),
    "aten::minimum": lambda t, call: build.minimum(t, *_pair(call)),
    **{f"aten::{name}": _compare for name in _COMPARE},
    "aten::ne": _not_equal,
    "aten::logical_not": lambda t, call: build.logical_not(t, call["self"]),
    "aten::logical_and": lambda t, call: build.logical_and(t, *_pair(call)),
    "aten::bitwise_and": lambda t, call: build.logical_and(t, *_pair(call)),
    "aten::bitwise_not": lambda t, call: build.logical_not(t, call["self"]),
    "aten::where": _where,
    "aten::masked_fill": _masked_fill,
}
