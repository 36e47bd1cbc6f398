"""Elementwise functions in more precision than the rules under test, in plain numpy.

Rules in float32 are compared with float64, rules in float64 with extended precision (longdouble);
nothing here calls the rules' own library.
"""

from fractions import Fraction

import numpy as np


def wider(dtype):
    """The precision that judges `dtype`."""
    return np.float64 if dtype == np.float32 else np.longdouble


def constant(x, text):
    """A decimal constant in the precision of x."""
    return x.dtype.type(text)


PI = "3.14159265358979323846264338327950288"


def sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def _erfc_tail(x):
    """erfc for x >= 2 by its continued fraction, evaluated backwards."""
    t = np.zeros_like(x)
    for k in range(160, 0, -1):
        t = (x.dtype.type(k) / 2) / (x + t)
    return np.exp(-x * x) / np.sqrt(constant(x, PI)) / (x + t)


def erfc(x):
    """1 - erf(x) with a small relative error everywhere."""
    size = np.minimum(np.abs(x), 2)
    term = total = size.copy()
    for n in range(1, 70):  # erf = 2/sqrt(pi) exp(-x^2) sum 2^n x^(2n+1) / (2n+1)!!
        term = term * (2 * size * size) / (2 * n + 1)
        total = total + term
    near = total * np.exp(-size * size) * 2 / np.sqrt(constant(x, PI))
    right = np.where(np.abs(x) < 2, 1 - near, _erfc_tail(np.maximum(np.abs(x), 2)))
    return np.where(x < 0, 2 - right, right)


def erf(x):
    size = np.minimum(np.abs(x), 2)
    term = total = size.copy()
    for n in range(1, 70):
        term = term * (2 * size * size) / (2 * n + 1)
        total = total + term
    near = total * np.exp(-size * size) * 2 / np.sqrt(constant(x, PI))
    return np.where(np.abs(x) < 2, np.sign(x) * near, np.sign(x) * (1 - _erfc_tail(np.maximum(np.abs(x), 2))))


def gelu(x, a):
    if a["approximate"] == "tanh":
        inner = 2 * np.sqrt(2 / constant(x, PI)) * (x + constant(x, "0.044715") * x * x * x)
        return np.where(x < -1e3, 0, x * sigmoid(np.maximum(inner, -1e4)))
    return x * erfc(-x / np.sqrt(constant(x, "2"))) / 2


def _elu(x, outer, width, slope):
    return np.where(x < 0, outer * np.expm1(np.minimum(x, 0) / width), slope * x)


def _widen(x, value):
    return np.asarray(value).astype(x.dtype)


REFERENCE = {
    "Relu": lambda x, a: np.maximum(x, 0),
    "LeakyRelu": lambda x, a: np.where(x < 0, _widen(x, a["alpha"]) * x, x),
    "PRelu": lambda x, a: np.where(x < 0, _widen(x, a["slope"]) * x, x),
    "Abs": lambda x, a: np.abs(x),
    "Clip": lambda x, a: np.minimum(np.maximum(x, _widen(x, a["lower"])), _widen(x, a["upper"])),
    "HardSigmoid": lambda x, a: np.clip(_widen(x, a["alpha"]) * x + _widen(x, a["beta"]), 0, 1),
    "HardSwish": lambda x, a: x * np.clip(x + 3, 0, 6) / 6,
    "Sigmoid": lambda x, a: sigmoid(x),
    "Tanh": lambda x, a: np.tanh(x),
    "Atan": lambda x, a: np.arctan(x),
    "Erf": lambda x, a: erf(x),
    "Softsign": lambda x, a: x / (1 + np.abs(x)),
    "Exp": lambda x, a: np.exp(x),
    "Log": lambda x, a: np.log(x),
    "Sqrt": lambda x, a: np.sqrt(x),
    "Reciprocal": lambda x, a: 1 / x,
    "Softplus": lambda x, a: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "Pow": lambda x, a: np.power(x, _widen(x, a["exponent"])),
    "Elu": lambda x, a: _elu(x, _widen(x, a["alpha"]), 1, 1),
    "Selu": lambda x, a: _elu(x, _widen(x, a["gamma"]) * _widen(x, a["alpha"]), 1, _widen(x, a["gamma"])),
    "Celu": lambda x, a: _elu(x, _widen(x, a["alpha"]), _widen(x, a["alpha"]), 1),
    "Gelu": gelu,
    "Silu": lambda x, a: x * sigmoid(x),
    "Sin": lambda x, a: np.sin(x),
    "Cos": lambda x, a: np.cos(x),
    "Sign": lambda x, a: np.sign(x),
    "Floor": lambda x, a: np.floor(x),
    "Ceil": lambda x, a: np.ceil(x),
    "Round": lambda x, a: np.round(x),
    "Greater": lambda x, a: (x > a["threshold"]).astype(x.dtype),
    "GreaterEqual": lambda x, a: (x >= a["threshold"]).astype(x.dtype),
}


def _between(x, low, high):
    return min(max(x, Fraction(low) if np.isfinite(low) else x), Fraction(high) if np.isfinite(high) else x)


#: rational functions of rational numbers, exactly; they settle ties in the last bit
EXACT = {
    "Relu": lambda x, a: max(x, Fraction(0)),
    "LeakyRelu": lambda x, a: x if x >= 0 else Fraction(a["alpha"]) * x,
    "PRelu": lambda x, a: x if x >= 0 else Fraction(float(a["slope"])) * x,
    "Abs": lambda x, a: abs(x),
    "Clip": lambda x, a: _between(x, float(a["lower"]), float(a["upper"])),
    "HardSigmoid": lambda x, a: _between(Fraction(a["alpha"]) * x + Fraction(a["beta"]), 0.0, 1.0),
    "HardSwish": lambda x, a: x * _between(x + 3, 0.0, 6.0) / 6,
    "Softsign": lambda x, a: x / (1 + abs(x)),
    "Reciprocal": lambda x, a: 1 / x,
}


def exactly(op, x, attrs, column):
    """f(x) as a Fraction, or None where it is not rational; array attributes take entry `column`."""
    picked = {k: v.reshape(-1)[column if v.size > 1 else 0] for k, v in attrs.items() if isinstance(v, np.ndarray)}
    picked = {**attrs, **picked}
    if op == "Pow" and picked["exponent"] == int(picked["exponent"]):
        return fraction(x) ** int(picked["exponent"])
    return EXACT[op](fraction(x), picked) if op in EXACT else None


def fraction(x):
    """The exact value of a float of any precision."""
    numerator, denominator = x.as_integer_ratio()
    return Fraction(int(numerator), int(denominator))
