"""Small networks with hand-written nodes, and exact oracles for them in rational arithmetic."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise, product

import numpy as np
from scipy import optimize

from verifier.graph.ir import Graph, GraphBuilder


def dense_net(sizes, seed=0, activation="Relu", quantum=None, **attrs) -> Graph:
    """Fully connected network with random weights; `quantum` rounds them to multiples (few bits)."""
    rng = np.random.default_rng(seed)
    builder = GraphBuilder()
    last = builder.add("Input", (), (1, sizes[0]), "x")
    for k, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        weight = rng.normal(size=(fan_in, fan_out)) / np.sqrt(fan_in)
        bias = rng.normal(size=fan_out) * 0.3
        if quantum:
            weight, bias = np.round(weight / quantum) * quantum, np.round(bias / quantum) * quantum
        last = builder.add("Dense", (last,), (1, fan_out), f"z{k}", weight=weight, bias=bias)
        if k + 2 < len(sizes):
            last = builder.add(activation, (last,), (1, fan_out), f"h{k}", **attrs)
    return builder.finish(("x",), (last,), dtype="float64")


def layers_of(graph: Graph) -> list[tuple[np.ndarray, np.ndarray]]:
    """(weight, bias) of every Dense node in order."""
    return [(n.attrs["weight"], n.attrs["bias"]) for n in graph.nodes.values() if n.op == "Dense"]


def exact_minimum(graph: Graph, inputs, row) -> float:
    """min row @ outputs of a dense relu net over a box, by one LP per activation pattern (float LPs)."""
    layers, best = layers_of(graph), np.inf
    hidden = [len(b) for _, b in layers[:-1]]
    for pattern in product((0, 1), repeat=sum(hidden)):
        matrix, offset = np.eye(inputs.size), np.zeros(inputs.size)
        limits_a, limits_b, at = [], [], 0
        for (weight, bias), size in zip(layers[:-1], hidden, strict=True):
            matrix, offset = weight.T @ matrix, weight.T @ offset + bias
            on = np.array(pattern[at : at + size])
            at += size
            sign = np.where(on, -1.0, 1.0)
            limits_a.append(sign[:, None] * matrix)
            limits_b.append(-sign * offset)
            matrix, offset = on[:, None] * matrix, on * offset
        weight, bias = layers[-1]
        cost, constant = row @ weight.T @ matrix, row @ (weight.T @ offset + bias)
        found = optimize.linprog(
            cost,
            A_ub=np.concatenate(limits_a),
            b_ub=np.concatenate(limits_b),
            bounds=list(zip(inputs.lower, inputs.upper, strict=True)),
        )
        if found.status == 0:
            best = min(best, found.fun + constant)
    return best


def exact_value(graph: Graph, x, row) -> Fraction:
    """row @ network(x) of a dense relu net in exact arithmetic."""
    values = [Fraction(float(v)) for v in x]
    layers = layers_of(graph)
    for k, (weight, bias) in enumerate(layers):
        values = [
            sum((Fraction(float(weight[i, j])) * values[i] for i in range(len(values))), Fraction(float(bias[j])))
            for j in range(len(bias))
        ]
        if k + 1 < len(layers):
            values = [max(v, Fraction(0)) for v in values]
    return sum((Fraction(float(r)) * v for r, v in zip(row, values, strict=True)), Fraction(0))
