"""The value of every elementwise operator of the grammar, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Attributes = Mapping[str, Any]


def erf(x: np.ndarray) -> np.ndarray:
    """The error function; imported on first use because few networks need it."""
    from scipy.special import erf as scipy_erf

    return scipy_erf(x)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def softplus(x: np.ndarray) -> np.ndarray:
    """log(1 + exp(x)) without overflow."""
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def gelu(x: np.ndarray, approximate: str) -> np.ndarray:
    """x * Phi(x), or its tanh approximation."""
    if approximate == "tanh":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi).astype(x.dtype) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + erf(x / np.sqrt(2).astype(x.dtype)))


def _elu(x: np.ndarray, a: Attributes) -> np.ndarray:
    return np.where(x > 0, x, a["alpha"] * np.expm1(np.minimum(x, 0)))


def _celu(x: np.ndarray, a: Attributes) -> np.ndarray:
    return np.where(x > 0, x, a["alpha"] * np.expm1(np.minimum(x, 0) / a["alpha"]))


ELEMENTWISE: dict[str, Callable[[np.ndarray, Attributes], np.ndarray]] = {
    "Relu": lambda x, a: np.maximum(x, 0),
    "LeakyRelu": lambda x, a: np.where(x >= 0, x, a["alpha"] * x),
    "PRelu": lambda x, a: np.where(x >= 0, x, a["slope"] * x),
    "Elu": _elu,
    "Celu": _celu,
    "Selu": lambda x, a: a["gamma"] * _elu(x, a),
    "Clip": lambda x, a: np.minimum(np.maximum(x, a["lower"]), a["upper"]),
    "HardSigmoid": lambda x, a: np.clip(a["alpha"] * x + a["beta"], 0, 1),
    "HardSwish": lambda x, a: x * np.clip(x / 6 + 0.5, 0, 1),
    "Sigmoid": lambda x, a: sigmoid(x),
    "Tanh": lambda x, a: np.tanh(x),
    "Atan": lambda x, a: np.arctan(x),
    "Erf": lambda x, a: erf(x),
    "Softplus": lambda x, a: softplus(x),
    "Softsign": lambda x, a: x / (1 + np.abs(x)),
    "Gelu": lambda x, a: gelu(x, a["approximate"]),
    "Silu": lambda x, a: x * sigmoid(x),
    "Exp": lambda x, a: np.exp(x),
    "Log": lambda x, a: np.log(x),
    "Sqrt": lambda x, a: np.sqrt(x),
    "Reciprocal": lambda x, a: 1 / x,
    "Pow": lambda x, a: np.square(x) if a["exponent"] == 2 else np.power(x, a["exponent"]),
    "Abs": lambda x, a: np.abs(x),
    "Sign": lambda x, a: np.sign(x),
    "Floor": lambda x, a: np.floor(x),
    "Ceil": lambda x, a: np.ceil(x),
    "Round": lambda x, a: np.round(x),
    "Sin": lambda x, a: np.sin(x),
    "Cos": lambda x, a: np.cos(x),
    "Greater": lambda x, a: (x > a["threshold"]).astype(x.dtype),
    "GreaterEqual": lambda x, a: (x >= a["threshold"]).astype(x.dtype),
}
