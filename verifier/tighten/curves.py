"""Functions of one variable with known curvature: rigorous minima and piecewise linear enclosures.

A curve is cut at its knots into segments on which it is convex, concave or straight. So the
minimum of a*x + b*f(x) over an interval is at an end of a segment, or, on a segment where the
sum is convex, bounded below by a tangent at any point. Everything else here (ranges,
enclosing lines, Lagrangian terms) is such a minimum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import special

from verifier.errors import UnsupportedOperator
from verifier.graph.elementwise import ELEMENTWISE
from verifier.graph.ir import Node
from verifier.tighten.rounding import TINY

CONCAVE, STRAIGHT, CONVEX = -1, 0, 1
# Errors of values and derivatives as computed here, relative to intermediate results; many ulps on purpose.
_PIECEWISE_REL = 2.0**-50
_SMOOTH_REL = 2.0**-46
# A tangent is valid anywhere; at this many halvings it loses about 1e-10 of the interval.
_BISECTIONS = 34


@dataclass(frozen=True)
class Curve:
    """y = f(x) for N neurons of one node, elementwise.

    Attributes:
        value, slope: f and its derivative, float64 [N, K] -> [N, K]; slope is read only inside
            curved segments.
        knots: float64 [N, P] ascending; curvature: one entry for each of the P + 1 segments.
        between: |intermediate results| of f, [N, K] -> [N, K], None where f(x) is the only one; errors are relative to
            their sum.
        identity: interval (low, high) on which f(x) = x exactly, arrays [N]; empty where low > high.
        deployed_error: float64 [N], |deployed f - f|; 0 for real arithmetic.
    """

    value: Callable[[np.ndarray], np.ndarray]
    knots: np.ndarray
    curvature: tuple[int, ...]
    slope: Callable[[np.ndarray], np.ndarray]
    between: Callable[[np.ndarray], np.ndarray] | None
    identity: tuple[np.ndarray, np.ndarray]
    deployed_error: np.ndarray

    @property
    def piecewise_linear(self) -> bool:
        """True when every segment is straight."""
        return all(c == STRAIGHT for c in self.curvature)

    def at(self, keep: np.ndarray) -> Curve:
        """The curve of the neurons `keep` (int indices)."""
        if keep.size == self.knots.shape[0] and np.array_equal(keep, np.arange(keep.size)):
            return self

        def pick(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
            def picked(x: np.ndarray) -> np.ndarray:
                full = np.zeros((self.knots.shape[0], x.shape[1]))
                full[keep] = x
                return function(full)[keep]

            return picked

        return replace(
            self,
            value=pick(self.value),
            slope=pick(self.slope),
            between=None if self.between is None else pick(self.between),
            knots=self.knots[keep],
            identity=(self.identity[0][keep], self.identity[1][keep]),
            deployed_error=self.deployed_error[keep],
        )

    def segment_ends(self, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """[N, P + 2]: lower, the knots moved into [lower, upper], upper."""
        inner = np.clip(self.knots, lower[:, None], upper[:, None])
        return np.concatenate([lower[:, None], inner, upper[:, None]], axis=1)

    def minimum(self, a: np.ndarray, b: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """A lower bound of min over [lower, upper] of a*x + b*f(x), tight to round-off; all arrays [N].

        Method: ends of segments; tangents at the stationary point where the sum is convex.
        Property: sound for any float inputs, `deployed_error` included; NaN inputs give NaN.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            return self._minimum(a, b, lower, upper)

    def _minimum(self, a: np.ndarray, b: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        ends = self.segment_ends(lower, upper)
        a2, b2 = a[:, None], b[:, None]
        found = np.min(self._below(a2, b2, ends), axis=1)
        for k, curvature in enumerate(self.curvature):
            if curvature == STRAIGHT:
                continue
            convex = (b * curvature > 0) & (ends[:, k] < ends[:, k + 1])
            if np.any(convex):
                bowl = self._tangent_bound(a2, b2, ends[:, k : k + 1], ends[:, k + 1 : k + 2])
                found = np.where(convex, np.minimum(found, bowl), found)
        return found - np.abs(b) * self.deployed_error * (1.0 + 2.0**-50)

    def minimiser(self, a: np.ndarray, b: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """A point of [lower, upper] near where a*x + b*f(x) is smallest, [N]; for choosing, not for bounds."""
        candidates = [self.segment_ends(lower, upper)]
        a2, b2 = a[:, None], b[:, None]
        if not self.piecewise_linear:
            ends = candidates[0]
            candidates += [
                self._stationary(a2, b2, ends[:, k : k + 1], ends[:, k + 1 : k + 2]) for k in range(len(self.curvature))
            ]
        points = np.concatenate(candidates, axis=1)
        best = (a2 * points + b2 * self.value(points)).argmin(axis=1)
        return np.take_along_axis(points, best[:, None], axis=1)[:, 0]

    def range(self, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Enclosure of f([lower, upper]), rounded outward (exact for pieces that are exact), [N] each."""
        zero, one = np.zeros_like(lower), np.ones_like(lower)
        return self.minimum(zero, one, lower, upper), -self.minimum(zero, -one, lower, upper)

    def _below(self, a: np.ndarray, b: np.ndarray, x: np.ndarray) -> np.ndarray:
        """a*x + b*f(x) less all that rounding can have added to it."""
        rel = _PIECEWISE_REL if self.piecewise_linear else _SMOOTH_REL
        value, line = self.value(x), a * x
        magnitude = np.abs(value) if self.between is None else np.abs(value) + self.between(x)
        exact_zero = ((a == 0.0) | (x == 0.0)) & ((b == 0.0) | (magnitude == 0.0))
        error = rel * (np.abs(line) + np.abs(b) * magnitude) + TINY
        return line + b * value - np.where(exact_zero, 0.0, error)

    def _tangent_bound(self, a: np.ndarray, b: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Lower bound of the convex a*x + b*f(x) on [left, right] by a tangent near its minimum, [N]."""
        x = self._stationary(a, b, left, right)
        slope = a + b * self.slope(x)
        doubt = _SMOOTH_REL * (np.abs(a) + np.abs(b) * (1.0 + np.abs(self.slope(x))))
        value = self._below(a, b, x)
        fall = np.maximum(slope + doubt, 0.0) * (x - left) + np.maximum(doubt - slope, 0.0) * (right - x)
        return (value - fall * (1.0 + 2.0**-40) - TINY)[:, 0]

    def _stationary(self, a: np.ndarray, b: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Where the slope of a*x + b*f(x) changes sign on [low, high] if the sum is convex there, [N, 1]."""
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            rising = a + b * self.slope(middle) > 0
            low, high = np.where(rising, low, middle), np.where(rising, middle, high)
        return 0.5 * (low + high)


def curve_of(node: Node, deployed_error: np.ndarray | None = None) -> Curve:
    """The curve of an elementwise node.

    Args:
        deployed_error: bound on the rounding of the deployed function, broadcastable to [size].
    Raises:
        UnsupportedOperator: the operator is discontinuous, has several inputs, or its curvature is not known.
    """
    make = _CURVES.get(node.op)
    if make is None:
        raise UnsupportedOperator(node.op, node.name, "optimisation-based bounds need a continuous curve")
    size = node.size
    knots, curvature, slope, extra = make(node)
    columns = [np.broadcast_to(np.asarray(k, dtype=np.float64), node.shape).reshape(size) for k in knots]
    attrs = {k: _column(v, node) for k, v in node.attrs.items()}
    formula = ELEMENTWISE[node.op]

    def value(x: np.ndarray) -> np.ndarray:
        return formula(x, attrs)

    low, high = (np.asarray(v, dtype=np.float64) for v in extra.get("identity", (np.inf, -np.inf)))
    error = np.zeros(size) if deployed_error is None else np.asarray(deployed_error, dtype=np.float64)
    return Curve(
        value=value,
        knots=np.stack(columns, axis=1) if columns else np.zeros((size, 0)),
        curvature=curvature,
        slope=slope,
        between=extra.get("between"),
        identity=(np.broadcast_to(low, node.shape).reshape(size), np.broadcast_to(high, node.shape).reshape(size)),
        deployed_error=np.broadcast_to(error.reshape(-1), (size,)),
    )


def _column(value: object, node: Node) -> object:
    """An attribute array as float64 [N, 1], so that it broadcasts against [N, K]; others unchanged."""
    if not isinstance(value, np.ndarray) and not isinstance(value, (float, int, np.floating)):
        return value
    array = np.asarray(value, dtype=np.float64)
    return array.item() if array.ndim == 0 else np.broadcast_to(array, node.shape).reshape(-1, 1)


def _flat(x: np.ndarray) -> np.ndarray:
    return np.zeros_like(x)


def _absolute(x: np.ndarray) -> np.ndarray:
    return np.abs(x) + 1.0


_Recipe = tuple[tuple, tuple[int, ...], Callable[[np.ndarray], np.ndarray], dict]
_ON = (0.0, np.inf)


def _kinked(node: Node) -> _Recipe:
    return (0.0,), (STRAIGHT, STRAIGHT), _flat, {"identity": _ON}


def _clip(node: Node) -> _Recipe:
    low, high = np.asarray(node.attrs["lower"], np.float64), np.asarray(node.attrs["upper"], np.float64)
    # An infinite limit is no knot; a far finite one changes nothing after clipping to [lower, upper].
    ends = tuple(np.where(np.isfinite(v), v, 0.0) for v in (low, np.maximum(low, high)))
    ends = (np.where(np.isfinite(low), ends[0], ends[1]), np.where(np.isfinite(high), ends[1], ends[0]))
    return (np.minimum(*ends), np.maximum(*ends)), (STRAIGHT,) * 3, _flat, {"identity": (low, high)}


def _hard_sigmoid(node: Node) -> _Recipe:
    alpha, beta = float(node.attrs["alpha"]), float(node.attrs["beta"])
    if not alpha > 0:
        raise UnsupportedOperator(node.op, node.name, f"alpha must be positive, got {alpha}")
    knots = (-beta / alpha, (1.0 - beta) / alpha)
    # The knots are rounded, which moves the curve by about u |beta|: covered by `between`.
    extra = {"between": lambda x: np.abs(alpha * x) + abs(beta) + 1.0}
    return knots, (STRAIGHT,) * 3, _flat, extra


def _s_shaped(slope: Callable[[np.ndarray], np.ndarray]) -> Callable[[Node], _Recipe]:
    return lambda node: ((0.0,), (CONVEX, CONCAVE), slope, {"between": _absolute})


def _convex(slope: Callable[[np.ndarray], np.ndarray]) -> Callable[[Node], _Recipe]:
    return lambda node: ((), (CONVEX,), slope, {"between": _absolute})


def _bump(inflection: float, slope: Callable[[np.ndarray], np.ndarray]) -> _Recipe:
    return (-inflection, inflection), (CONCAVE, CONVEX, CONCAVE), slope, {"between": _absolute}


def _gelu(node: Node) -> _Recipe:
    if node.attrs["approximate"] != "none":
        raise UnsupportedOperator(node.op, node.name, "the curvature of the tanh approximation is not known")
    return _bump(np.sqrt(2.0), lambda x: special.ndtr(x) + x * np.exp(-0.5 * x * x) / np.sqrt(2.0 * np.pi))


def _silu_slope(x: np.ndarray) -> np.ndarray:
    s = special.expit(x)
    return s + x * s * special.expit(-x)


def _exponential_unit(node: Node) -> _Recipe:
    alpha = float(node.attrs["alpha"])
    scale = alpha * float(node.attrs.get("gamma", 1.0)) if node.op != "Celu" else 1.0
    rate = alpha if node.op == "Celu" else 1.0
    if node.op == "Celu" and not alpha > 0:
        raise UnsupportedOperator(node.op, node.name, f"alpha must be positive, got {alpha}")
    bend = CONVEX if scale > 0 else CONCAVE if scale < 0 else STRAIGHT
    extra: dict[str, Any] = {"between": lambda x: abs(scale) + 1.0 + np.abs(x)}
    if node.op != "Selu":
        extra["identity"] = _ON
    return (0.0,), (bend, STRAIGHT), lambda x: scale * np.exp(np.minimum(x, 0.0) / rate), extra


def _power(node: Node) -> _Recipe:
    n = float(node.attrs["exponent"])
    if n not in (2.0, 3.0, 4.0):
        raise UnsupportedOperator(node.op, node.name, f"only exponents 2, 3 and 4 are covered, got {n:g}")
    bends = (CONCAVE, CONVEX) if n == 3.0 else (CONVEX, CONVEX)
    return (0.0,), bends, lambda x: n * x ** (n - 1.0), {"between": _absolute}


def _hard_swish(node: Node) -> _Recipe:
    extra = {"between": _absolute, "identity": (3.0, np.inf)}
    return (-3.0, 3.0), (STRAIGHT, CONVEX, STRAIGHT), lambda x: (2.0 * x + 3.0) / 6.0, extra


_CURVES: dict[str, Callable[[Node], _Recipe]] = {
    "Relu": _kinked,
    "LeakyRelu": _kinked,
    "PRelu": _kinked,
    "Abs": _kinked,
    "Clip": _clip,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Sigmoid": _s_shaped(lambda x: special.expit(x) * special.expit(-x)),
    "Tanh": _s_shaped(lambda x: 4.0 * special.expit(2.0 * x) * special.expit(-2.0 * x)),
    "Atan": _s_shaped(lambda x: 1.0 / (1.0 + x * x)),
    "Erf": _s_shaped(lambda x: 2.0 / np.sqrt(np.pi) * np.exp(-x * x)),
    "Softsign": _s_shaped(lambda x: 1.0 / (1.0 + np.abs(x)) ** 2),
    "Softplus": _convex(special.expit),
    "Exp": _convex(np.exp),
    "Elu": _exponential_unit,
    "Celu": _exponential_unit,
    "Selu": _exponential_unit,
    "Silu": lambda node: _bump(2.399357280520547, _silu_slope),
    "Gelu": _gelu,
    "Pow": _power,
}

# Operators that `curve_of` covers.
CURVED = tuple(_CURVES)
