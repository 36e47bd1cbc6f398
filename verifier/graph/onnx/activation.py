"""ONNX elementwise functions; attributes default to ONNX's values."""

from __future__ import annotations

from verifier.graph.lowering import arithmetic
from verifier.graph.lowering.activation import unary
from verifier.graph.lowering.values import Ref, Tracer, Value
from verifier.graph.onnx.call import Call, Lowering


def _plain(name: str) -> Lowering:
    return lambda t, call: unary(t, name, call.inputs[0])


def _with(name: str, **defaults: float) -> Lowering:
    def lower(t: Tracer, call: Call) -> Value:
        attrs = {key: float(call.attr(key, value)) for key, value in defaults.items()}
        return unary(t, name, call.inputs[0], **attrs)

    return lower


def _gelu(t: Tracer, call: Call) -> Value:
    return unary(t, "Gelu", call.inputs[0], approximate=call.attr("approximate", "none"))


def _mish(t: Tracer, call: Call) -> Value:
    x = call.inputs[0]
    return arithmetic.mul(t, x, unary(t, "Tanh", unary(t, "Softplus", x)))


def _swish(t: Tracer, call: Call) -> Value:
    x, alpha = call.inputs[0], float(call.attr("alpha", 1.0))
    if alpha == 1.0:
        return unary(t, "Silu", x)
    scaled = arithmetic.affine(t, x, alpha, 0.0) if isinstance(x, Ref) else x * x.dtype.type(alpha)
    return arithmetic.mul(t, x, unary(t, "Sigmoid", scaled))


def _thresholded(t: Tracer, call: Call) -> Value:
    """x where x > alpha, else 0."""
    import numpy as np

    x = call.inputs[0]
    limit = np.asarray(call.attr("alpha", 1.0), dtype=str(x.dtype))
    return arithmetic.where(t, arithmetic.compare(t, "Greater", x, limit), x, np.zeros_like(limit))


# The defaults are the float32 numbers ONNX writes for alpha and gamma of Selu.
_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875

TABLE: dict[str, Lowering] = {
    **{
        name: _plain(name)
        for name in [
            "Relu",
            "Sigmoid",
            "Tanh",
            "Atan",
            "Erf",
            "Softplus",
            "Softsign",
            "HardSwish",
            "Exp",
            "Log",
            "Sqrt",
            "Reciprocal",
            "Abs",
            "Sign",
            "Floor",
            "Ceil",
            "Round",
            "Sin",
            "Cos",
        ]
    },
    "LeakyRelu": _with("LeakyRelu", alpha=0.009999999776482582),
    "Elu": _with("Elu", alpha=1.0),
    "Celu": _with("Celu", alpha=1.0),
    "Selu": _with("Selu", alpha=_SELU_ALPHA, gamma=_SELU_GAMMA),
    "HardSigmoid": _with("HardSigmoid", alpha=0.20000000298023224, beta=0.5),
    "ThresholdedRelu": _thresholded,
    "Gelu": _gelu,
    "Mish": _mish,
    "Swish": _swish,
}
