"""Small graphs of every kind an engine meets, built by hand and seeded."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from verifier.graph.ir import Graph, GraphBuilder


def dense_net(activation: str, seed: int, sizes: tuple[int, ...] = (4, 8, 8, 3), **attrs: object) -> Graph:
    """Fully connected with one kind of activation."""
    rng = np.random.default_rng(seed)
    builder = GraphBuilder()
    name = builder.add("Input", (), (1, sizes[0]), "x")
    for i, (n, m) in enumerate(pairwise(sizes)):
        weight = (rng.standard_normal((n, m)) / np.sqrt(n) * 1.5).astype(np.float32)
        bias = rng.standard_normal(m).astype(np.float32) * 0.3
        name = builder.add("Dense", (name,), (1, m), f"z{i}", weight=weight, bias=bias)
        if i < len(sizes) - 2:
            name = builder.add(activation, (name,), (1, m), f"h{i}", **attrs)
    return builder.finish(("x",), (name,))


def residual_conv_net(seed: int) -> Graph:
    """Convolution, residual addition, strided convolution, max pooling, dense."""
    rng = np.random.default_rng(seed)
    builder = GraphBuilder()

    def conv(x: str, c: int, d: int, shape: tuple[int, ...], name: str, stride: int) -> str:
        weight = (rng.standard_normal((d, c, 3, 3)) / np.sqrt(9 * c)).astype(np.float32)
        return builder.add(
            "Conv", (x,), shape, name, weight=weight, bias=rng.standard_normal(d).astype(np.float32) * 0.1,
            strides=(stride, stride), pads=(1, 1, 1, 1), dilations=(1, 1), groups=1,
        )  # fmt: skip

    x = builder.add("Input", (), (1, 1, 6, 6), "x")
    a = conv(x, 1, 3, (1, 3, 6, 6), "a", 1)
    r = builder.add("Relu", (a,), (1, 3, 6, 6), "ra")
    b = conv(r, 3, 3, (1, 3, 6, 6), "b", 1)
    s = builder.add("Add", (b, a), (1, 3, 6, 6), "s")
    t = builder.add("Relu", (s,), (1, 3, 6, 6), "rs")
    c = conv(t, 3, 4, (1, 4, 3, 3), "c", 2)
    windows = np.arange(36).reshape(4, 9)
    w = builder.add("Select", (c,), (4, 9), "windows", indices=windows)
    m = builder.add("ReduceMax", (w,), (4,), "pool", axes=(1,), keepdims=False)
    m = builder.add("Reshape", (m,), (1, 4), "row")
    weight = rng.standard_normal((4, 3)).astype(np.float32)
    y = builder.add("Dense", (m,), (1, 3), "y", weight=weight, bias=np.zeros(3, np.float32))
    return builder.finish(("x",), (y,))


def attention_net(seed: int) -> Graph:
    """One softmax attention over three tokens of four numbers, written with Mul and ReduceSum."""
    rng = np.random.default_rng(seed)
    builder = GraphBuilder()
    x = builder.add("Input", (), (3, 4), "x")

    def dense(source: str, n: int, name: str) -> str:
        weight = (rng.standard_normal((4, n)) / 2).astype(np.float32)
        return builder.add("Dense", (source,), (3, n), name, weight=weight, bias=np.zeros(n, np.float32))

    q, k, v = dense(x, 4, "q"), dense(x, 4, "k"), dense(x, 4, "v")
    grid = np.arange(12).reshape(3, 4)
    qs = builder.add("Select", (q,), (3, 3, 4), "qs", indices=np.repeat(grid[:, None], 3, axis=1))
    ks = builder.add("Select", (k,), (3, 3, 4), "ks", indices=np.repeat(grid[None], 3, axis=0))
    products = builder.add("Mul", (qs, ks), (3, 3, 4), "qk")
    logits = builder.add("ReduceSum", (products,), (3, 3), "logits", axes=(2,), keepdims=False)
    p = builder.add("Softmax", (logits,), (3, 3), "p", axis=1)
    each = np.repeat(np.arange(9).reshape(3, 3)[:, :, None], 4, axis=2)
    ps = builder.add("Select", (p,), (3, 3, 4), "ps", indices=each)
    vs = builder.add("Select", (v,), (3, 3, 4), "vs", indices=np.repeat(grid[None], 3, axis=0))
    weighted = builder.add("Mul", (ps, vs), (3, 3, 4), "pv")
    mixed = builder.add("ReduceSum", (weighted,), (3, 4), "mixed", axes=(1,), keepdims=False)
    out = dense(mixed, 2, "out")
    return builder.finish(("x",), (out,))


CASES = {
    "relu": lambda: dense_net("Relu", 0),
    "leaky": lambda: dense_net("LeakyRelu", 1, alpha=0.1),
    "sigmoid": lambda: dense_net("Sigmoid", 2),
    "tanh": lambda: dense_net("Tanh", 3),
    "sin": lambda: dense_net("Sin", 4),
    "sign": lambda: dense_net("Sign", 5),
    "square": lambda: dense_net("Pow", 6, exponent=2.0),
    "gelu": lambda: dense_net("Gelu", 7, approximate="none"),
    "residual": lambda: residual_conv_net(8),
    "attention": lambda: attention_net(9),
}
