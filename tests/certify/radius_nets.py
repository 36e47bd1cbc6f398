"""Small classifiers with known or enumerable radii."""

from itertools import pairwise

import numpy as np

from verifier.graph.ir import Graph, GraphBuilder


def dense_network(layers: list[tuple[np.ndarray, np.ndarray]]) -> Graph:
    """relu between layers (weight [in, out], bias [out]); float32 arithmetic."""
    builder = GraphBuilder()
    name = builder.add("Input", (), (1, layers[0][0].shape[0]), "x")
    for k, (weight, bias) in enumerate(layers):
        shape = (1, weight.shape[1])
        weight, bias = weight.astype(np.float32).astype(np.float64), bias.astype(np.float32).astype(np.float64)
        name = builder.add("Dense", (name,), shape, f"dense{k}", weight=weight, bias=bias)
        if k < len(layers) - 1:
            name = builder.add("Relu", (name,), shape, f"relu{k}")
    return builder.finish(("x",), (name,))


def linear(seed: int, features: int, classes: int) -> tuple[Graph, np.ndarray, np.ndarray]:
    """A linear classifier, its weight [N_in, K] and bias [K] as the program holds them."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((features, classes)).astype(np.float32)
    bias = (0.3 * rng.standard_normal(classes)).astype(np.float32)
    return dense_network([(weight, bias)]), weight.astype(np.float64), bias.astype(np.float64)


def planar(seed: int, classes: int = 3, width: int = 8) -> Graph:
    """Two inputs, two hidden relu layers."""
    rng = np.random.default_rng(seed)
    sizes = (2, width, width, classes)
    layers = []
    for a, b in pairwise(sizes):
        layers.append((rng.standard_normal((a, b)) * 1.5 / np.sqrt(a), 0.4 * rng.standard_normal(b)))
    return dense_network(layers)
