"""Recognise activations that exporters write out in pieces: squares, Silu and Gelu."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from verifier.graph.ir import Graph, Node
from verifier.graph.passes.rewrite import View, rewrite

# A float32 sqrt(2), or a product with its inverse, is within a few units in the last place.
_SQRT_HALF_TOLERANCE = 4 * 2.0**-24


def recognize_activations(graph: Graph) -> Graph:
    """x * x -> Pow 2, x * sigmoid(x) -> Silu, c * x * (1 + erf(x / sqrt 2)) -> Gelu times 2c."""
    return rewrite(graph, _recognize)


def _recognize(node: Node, view: View) -> Node | str:
    if node.op != "Mul" or node.attrs.get("deployed_error") is not None:
        return node
    if node.inputs[0] == node.inputs[1]:
        view.reads(node.inputs[0], -1)
        return replace(node, op="Pow", inputs=node.inputs[:1], attrs={"exponent": 2.0})
    for x, gate in (node.inputs, node.inputs[::-1]):
        other = view.nodes[gate]
        if other.op == "Sigmoid" and other.inputs[0] == x and view.only_reader(gate):
            view.reads(x, -1)
            return replace(node, op="Silu", inputs=(x,), attrs={})
        found = _gelu(node, view, x, gate)
        if found is not None:
            return found
    return node


def _factor(node: Node, view: View) -> tuple[float, str]:
    """(c, y) when the node is y times one number c, else (1, itself)."""
    if node.op == "Scale" and np.size(node.attrs["scale"]) == 1 and not np.any(node.attrs["shift"]):
        return float(np.reshape(node.attrs["scale"], -1)[0]), node.inputs[0]
    return 1.0, node.name


def _gelu(node: Node, view: View, x: str, gate: str) -> Node | None:
    """Gelu, times a number, when `gate` is a + a * erf(y / sqrt 2) and x is a multiple of y."""
    outer = view.nodes[gate]
    if outer.op != "Scale" or not view.only_reader(gate) or view.producer(outer).op != "Erf":
        return None
    erf = view.producer(outer)
    slopes, shifts = np.unique(outer.attrs["scale"]), np.unique(outer.attrs["shift"])
    if slopes.size != 1 or shifts.size != 1 or slopes[0] != shifts[0] or not view.only_reader(erf.name):
        return None
    inner, y = _factor(view.producer(erf), view)
    if abs(inner * math.sqrt(2.0) - 1.0) > _SQRT_HALF_TOLERANCE:
        return None
    multiple, base = (1.0, x) if x == y else _factor(view.nodes[x], view)
    if base != y:
        return None
    total = 2.0 * float(slopes[0]) * multiple
    view.reads(y, 1)
    view.reads(x, -1)
    view.reads(gate, -1)
    gelu = replace(node, op="Gelu", inputs=(y,), attrs={"approximate": "none"})
    if total == 1.0:
        return gelu
    name = f"{node.name}/gelu"
    view.nodes[name] = replace(gelu, name=name)
    view.uses[name] = 1
    factor = np.asarray(total, dtype=np.float32)
    if float(factor) != total:
        factor = np.asarray(total)
    return replace(node, op="Scale", inputs=(name,), attrs={"scale": factor, "shift": np.zeros((), np.float32)})
