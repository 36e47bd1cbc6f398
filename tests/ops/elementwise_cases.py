"""Attribute settings of every elementwise operator, and intervals that are hard for them."""

import numpy as np

from verifier.graph.ir import Node

F32 = np.float32

#: operator -> attribute settings; every operator of the table has at least one
CASES = {
    "Relu": [{}],
    "LeakyRelu": [{"alpha": float(F32(a))} for a in (0.01, 0.5, 1.0, 1.5, -0.3, 0.0)] + [{"alpha": 0.1}],
    "PRelu": [
        {"slope": np.float32(0.25)},
        {"slope": np.array([0.1, -0.7, 1.9, 1.0, 0.0], F32)},
        {"slope": np.array([0.1, -0.7, 1.9, 1.0, 0.0])},
    ],
    "Abs": [{}],
    "Clip": [
        {"lower": np.float32(0), "upper": np.float32(6)},
        {"lower": np.float32(-1.5), "upper": np.float32(np.inf)},
        {"lower": np.float32(-np.inf), "upper": np.float32(0.1)},
        {"lower": np.array([-1, -0.1, 0, 2, -3], F32), "upper": np.array([1, 0.1, np.inf, 1, -3], F32)},
        {"lower": -0.1, "upper": 0.7},
    ],
    "HardSigmoid": [
        {"alpha": float(F32(0.2)), "beta": 0.5},
        {"alpha": 1 / 6, "beta": 0.5},
        {"alpha": -0.3, "beta": 0.1},
        {"alpha": 0.0, "beta": 0.25},
    ],
    "HardSwish": [{}],
    "Sigmoid": [{}],
    "Tanh": [{}],
    "Atan": [{}],
    "Erf": [{}],
    "Softsign": [{}],
    "Exp": [{}],
    "Log": [{}],
    "Sqrt": [{}],
    "Reciprocal": [{}],
    "Softplus": [{}],
    "Pow": [{"exponent": e} for e in (2.0, 3.0, 4.0, 5.0, 0.5, 1.5, 0.3, -1.0, -2.0, -0.5, 1.0, 0.0)],
    "Elu": [{"alpha": a} for a in (1.0, 0.5, 2.0, -0.5, 0.0, 0.1)],
    "Selu": [{"alpha": float(F32(1.67326319)), "gamma": float(F32(1.05070102))}, {"alpha": 0.3, "gamma": 0.9}],
    "Celu": [{"alpha": a} for a in (1.0, 0.25, 2.5, 0.1)],
    "Gelu": [{"approximate": "none"}, {"approximate": "tanh"}],
    "Silu": [{}],
    "Sin": [{}],
    "Cos": [{}],
    "Sign": [{}],
    "Floor": [{}],
    "Ceil": [{}],
    "Round": [{}],
    "Greater": [{"threshold": 0.0}, {"threshold": 0.1}],
    "GreaterEqual": [{"threshold": -1.0}, {"threshold": 0.1}],
}

ALL = [(op, k) for op in CASES for k in range(len(CASES[op]))]
#: array attributes have this many entries, so intervals come in rows of it
ROW = 5


def node(op, k):
    """The case as a graph node."""
    return Node(op.lower(), op, ("x",), (1, ROW), CASES[op][k])


def defined(op, attrs, lower, upper):
    """Mask of intervals on which the function is defined and finite."""
    inside = np.ones(lower.shape, bool)
    if op == "Log" or (op == "Pow" and attrs["exponent"] < 0 and attrs["exponent"] % 1):
        inside = lower > 0
    elif op == "Sqrt" or (op == "Pow" and attrs["exponent"] % 1):
        inside = lower >= 0
    elif op == "Reciprocal" or (op == "Pow" and attrs["exponent"] < 0):
        inside = (lower > 0) | (upper < 0)
    return inside


def intervals(rng, dtype, rows):
    """[2, rows, ROW] ends: sizes from denormal to huge, all relations to zero, steps, neighbours, points."""
    info = np.finfo(dtype)
    n = rows * ROW

    def ends():
        kind = rng.integers(0, 9, n)
        normal = rng.normal(0, 2, n)
        scale = rng.normal(0, 1, n) * 10.0 ** rng.uniform(-12, 4, n)
        wild = np.sign(normal) * 2.0 ** rng.uniform(np.log2(float(info.tiny)) - 5, np.log2(float(info.max)) - 1, n)
        special = rng.choice([0, -0.0, 1, -1, 0.5, 2.5, -1.5, 3, -3, 6, 1.4142135, -2.3993572, np.pi, np.pi / 2], n)
        choices = [normal, normal, normal * 5, normal * 30, scale, scale, wild, special, special]
        return np.choose(kind, choices).astype(dtype)

    a, b = ends(), ends()
    how = rng.integers(0, 7, n)
    near = np.nextafter(a, dtype(np.inf))
    short = (a + np.abs(a) * (10.0 ** rng.uniform(-7, 0, n)).astype(dtype)).astype(dtype)
    step = (a + np.abs(rng.normal(0, 1, n))).astype(dtype)
    b = np.select([how == 0, how == 1, how == 2, how == 3], [a, near, short, step], b)
    lower, upper = np.minimum(a, b), np.maximum(a, b)
    return lower.reshape(rows, ROW), upper.reshape(rows, ROW)


def points(rng, lower, upper, count, wide):
    """[count, *lower.shape] points of [lower, upper] in `wide` precision, the ends first."""
    l, u = lower.astype(wide), upper.astype(wide)
    share = rng.uniform(0, 1, (count, *lower.shape)).astype(wide)
    share[::3] **= 6
    share[1::3] = 1 - share[1::3] ** 6
    x = np.clip(l * (1 - share) + u * share, l, u)
    for k, special in enumerate((0.0, 1.0, -1.0, 2.5, np.pi / 2, -np.pi / 2)):
        x[2 + k] = np.clip(wide(special), l, u)
    middle = np.clip(np.round(0.5 * l + 0.5 * u), l, u)
    x[8], x[9] = np.clip(np.nextafter(middle, wide(np.inf)), l, u), np.clip(np.nextafter(middle, wide(-np.inf)), l, u)
    x[0], x[1] = l, u
    return x
