"""Small networks for the native engine's tests, an independent CROWN, and float32 in any order."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from verifier.graph.ir import Graph, GraphBuilder


def chain(
    rng: np.random.Generator, sizes: list[int], activation: str = "Relu", dtype: str = "float32", **attrs: float
) -> Graph:
    """Dense layers of the given sizes with an activation between them."""
    b = GraphBuilder()
    x = b.add("Input", (), (1, sizes[0]), "x")
    for k, (n, m) in enumerate(pairwise(sizes)):
        weight = (rng.normal(size=(n, m)) / np.sqrt(n)).astype(dtype)
        x = b.add("Dense", (x,), (1, m), f"dense{k}", weight=weight, bias=(0.2 * rng.normal(size=m)).astype(dtype))
        if k < len(sizes) - 2:
            x = b.add(activation, (x,), (1, m), f"act{k}", **attrs)
    return b.finish(("x",), (x,), dtype=dtype)


def residual(rng: np.random.Generator) -> Graph:
    """Two inputs, convolution, strided convolution, skip, concat, select, transpose, sum: every linear operator."""
    b = GraphBuilder()
    image = b.add("Input", (), (1, 2, 4, 4), "image")
    extra = b.add("Input", (), (1, 3), "extra")
    x = b.add("Scale", (image,), (1, 2, 4, 4), "norm", scale=np.float32([[[0.5]], [[2.0]]]), shift=np.float32(0.1))
    conv = dict(strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1), groups=1)
    w1, w2 = rng.normal(size=(4, 2, 3, 3)) / 4, rng.normal(size=(4, 4, 3, 3)) / 6
    y = b.add(
        "Conv", (x,), (1, 4, 4, 4), "conv1", weight=np.float32(w1), bias=np.float32(rng.normal(size=4) / 5), **conv
    )
    y = b.add("Relu", (y,), (1, 4, 4, 4), "r1")
    z = b.add("Conv", (y,), (1, 4, 4, 4), "conv2", weight=np.float32(w2), bias=np.zeros(4, np.float32), **conv)
    z = b.add("Add", (z, y), (1, 4, 4, 4), "skip")
    z = b.add("LeakyRelu", (z,), (1, 4, 4, 4), "r2", alpha=0.1)
    half = dict(strides=(2, 2), pads=(0, 1, 1, 0), dilations=(1, 1), groups=2)
    w3 = rng.normal(size=(6, 2, 3, 2)) / 4
    z = b.add("Conv", (z,), (1, 6, 2, 2), "conv3", weight=np.float32(w3), bias=np.zeros(6, np.float32), **half)
    z = b.add("Relu", (z,), (1, 6, 2, 2), "r3")
    z = b.add("Transpose", (z,), (1, 2, 2, 6), "t", perm=(0, 2, 3, 1))
    pooled = b.add("ReduceSum", (z,), (1, 6), "pool", axes=(1, 2), keepdims=False)
    picked = b.add("Select", (z,), (1, 4), "pick", indices=np.array([[0, 23, -1, 7]]))
    w4 = np.float32(rng.normal(size=(3, 4)) / 2)
    side = b.add("Dense", (extra,), (1, 4), "side", weight=w4, bias=np.zeros(4, np.float32))
    side = b.add("Relu", (side,), (1, 4), "r4")
    both = b.add("Sub", (picked, side), (1, 4), "minus")
    joined = b.add("Concat", (pooled, both, side), (1, 14), "cat", axis=1)
    flat = b.add("Reshape", (joined,), (14,), "flat")
    w5 = np.float32(rng.normal(size=(14, 5)) / 3)
    out = b.add("Dense", (flat,), (5,), "out", weight=w5, bias=np.float32(rng.normal(size=5)))
    return b.finish(("image", "extra"), (out,))


def upsampling(rng: np.random.Generator) -> Graph:
    """A generator's transposed convolutions: strides, padding, output padding and groups."""
    b = GraphBuilder()
    x = b.add("Input", (), (1, 4, 2, 2), "x")
    attrs = dict(strides=(2, 1), pads=(1, 0, 0, 1), dilations=(1, 2), groups=2, output_padding=(1, 0))
    w1 = np.float32(rng.normal(size=(4, 3, 3, 2)) / 3)
    y = b.add("ConvTranspose", (x,), (1, 6, 5, 3), "up1", weight=w1, bias=np.float32(rng.normal(size=6) / 3), **attrs)
    y = b.add("Relu", (y,), (1, 6, 5, 3), "r1")
    plain = dict(strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), groups=1, output_padding=(0, 0))
    w2 = np.float32(rng.normal(size=(6, 1, 2, 2)) / 3)
    y = b.add("ConvTranspose", (y,), (1, 1, 6, 4), "up2", weight=w2, bias=np.zeros(1, np.float32), **plain)
    return b.finish(("x",), (y,))


def layers(graph: Graph) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(op, weight, bias) of a chain's nodes; weight and bias of activations hold alpha."""
    found = []
    for node in graph.nodes.values():
        if node.op == "Dense":
            found.append(("Dense", node.attrs["weight"], node.attrs["bias"]))
        elif node.op in ("Relu", "LeakyRelu"):
            found.append(("act", np.float64(node.attrs.get("alpha", 0.0)), np.zeros(0)))
    return found


def float32_in_order(graph: Graph, points: np.ndarray, rng: np.random.Generator, fused: bool) -> np.ndarray:
    """A chain evaluated in float32 with every sum in a random order; fused: one rounding per multiply-add."""
    h = points.astype(np.float32)
    for op, weight, bias in layers(graph):
        if op == "act":
            h = np.where(h > 0, h, (np.float32(weight) * h).astype(np.float32))
            continue
        terms = [*range(weight.shape[0]), -1]
        rng.shuffle(terms)
        total = np.zeros((len(h), weight.shape[1]), np.float32)
        for j in terms:
            if j == -1:
                total = total + bias
            elif fused:
                total = (total.astype(np.float64) + h[:, j : j + 1].astype(np.float64) * weight[j]).astype(np.float32)
            else:
                total = total + h[:, j : j + 1] * weight[j]
        h = total.astype(np.float32)
    return h


#: Networks that the compiled engine splits, one of each kind.
SPLITTABLE: dict[str, Callable[[np.random.Generator], Graph]] = {
    "dense": lambda rng: chain(rng, [6, 30, 25, 30, 3]),
    "leaky": lambda rng: chain(rng, [4, 17, 19, 3], "LeakyRelu", alpha=0.1),
    "double": lambda rng: chain(rng, [5, 20, 20, 4], dtype="float64"),
    "sigmoid": lambda rng: chain(rng, [5, 12, 12, 3], "Sigmoid"),
    "residual": residual,
}


def never() -> bool:
    return False


def crown(graph: Graph, lower: np.ndarray, upper: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Lower bounds [S] over one box in float64: intervals, then backward bounds of the neurons left open."""
    steps = layers(graph)
    pre: list[tuple[np.ndarray, np.ndarray]] = []
    known: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def descend(coeffs: np.ndarray, offset: np.ndarray, start: int) -> np.ndarray:
        for k in range(start - 1, -1, -1):
            op, weight, bias = steps[k]
            if op == "Dense":
                offset = offset + coeffs @ bias.astype(np.float64)
                coeffs = coeffs @ weight.astype(np.float64).T
            else:
                l, u = known[k]
                crossing = (l < 0) & (u > 0)
                width = np.where(crossing, u - l, 1.0)
                chord = np.where(crossing, (u - weight * l) / width, np.where(l >= 0, 1.0, weight))
                gap = np.where(crossing, (weight - 1) * u * l / width, 0.0)
                low = np.where(crossing, np.where(u > -l, 1.0, weight), chord)
                offset = offset + np.minimum(coeffs, 0) @ gap
                coeffs = np.maximum(coeffs, 0) * low + np.minimum(coeffs, 0) * chord
        return np.maximum(coeffs, 0) @ lower + np.minimum(coeffs, 0) @ upper + offset

    low, high = lower, upper
    for k, (op, weight, bias) in enumerate(steps):
        if op == "Dense":
            center, radius = (low + high) / 2, (high - low) / 2
            middle, reach = center @ weight + bias, radius @ np.abs(weight)
            low, high = middle - reach, middle + reach
            continue
        open_now = (low < 0) & (high > 0) & (len(pre) > 0)
        eye = np.eye(len(low))[open_now]
        low, high = low.copy(), high.copy()
        low[open_now] = np.maximum(low[open_now], descend(eye, np.zeros(len(eye)), k))
        high[open_now] = np.minimum(high[open_now], -descend(-eye, np.zeros(len(eye)), k))
        known[k] = (low, high)
        pre.append(known[k])
        low, high = np.where(low > 0, low, weight * low), np.where(high > 0, high, weight * high)
    return descend(rows.astype(np.float64), np.zeros(len(rows)), len(steps))
