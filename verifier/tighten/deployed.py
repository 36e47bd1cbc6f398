"""Rounding of the deployed program inside each node, from the sizes of what nodes read; in NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from verifier.errors import UnsupportedOperator
from verifier.graph.ir import Graph, Node
from verifier.graph.passes.rounding import magnitude, roundings
from verifier.tighten.linear_maps import affine_map
from verifier.tighten.rounding import WIDEN, dot_error

#: Operators the deployed program computes without rounding: they pass numbers on.
EXACT = ("Input", "Constant", "Relu", "Abs", "Clip", "Reshape", "Transpose", "Select", "Concat")


def rounding_errors(graph: Graph, sizes: Mapping[str, np.ndarray], *, real: bool) -> dict[str, np.ndarray]:
    """Node name -> |deployed - exact| of the node's own operation on the deployed inputs, float64 [size].

    Args:
        sizes: node name -> at least |value| of each of its numbers, [size], for nodes that others read.
        real: for real arithmetic; what remains is the rounding of arrays that passes fused.
    Raises:
        UnsupportedOperator: anything but dense layers, convolutions, scales, sums, relus and what moves data.
    Source: `graph/passes/rounding.py`.
    """
    return {n.name: _error(graph, n, sizes, real) for n in graph.nodes.values() if n.op not in EXACT}


def _error(graph: Graph, node: Node, sizes: Mapping[str, np.ndarray], real: bool) -> np.ndarray:
    kind = np.finfo(np.float64 if graph.dtype == "float64" else np.float32)
    unit, tiny = 0.5 * float(kind.eps), float(kind.tiny)
    read = [np.asarray(sizes[name], dtype=np.float64).reshape(-1) for name in node.inputs]
    fixed = node.attrs.get("deployed_error")
    if node.op in ("Dense", "Scale", "Conv", "ConvTranspose"):
        total, terms = _terms(graph, node, read[0]), roundings(node)
    elif node.op in ("Add", "Sub"):
        total, terms = sum((np.broadcast_to(r, node.size) for r in read), np.zeros(node.size)), 1
    elif node.op == "LeakyRelu":
        total, terms = abs(float(node.attrs["alpha"])) * read[0], 3
    else:
        raise UnsupportedOperator(node.op, node.name, "its rounding is not known here")
    if fixed is not None:
        return np.full(node.size, 0.0 if real else float(fixed))
    if terms == 0 or (real and not node.attrs.get("rounding_terms")):
        return np.zeros(node.size)
    share = (terms + 1) * (2.0**-53 if real else unit)  # the bias is added as well
    error: np.ndarray = share / (1 - share) * WIDEN * total + (terms + 8) * tiny * (1 + total)
    return error


def _terms(graph: Graph, node: Node, size: np.ndarray) -> np.ndarray:
    """Sum of |terms| of every result, rounded up."""
    own = np.asarray(magnitude(node), dtype=np.float64)
    if node.op in ("Conv", "ConvTranspose"):
        own = own.reshape(1, -1, *(1,) * (len(node.shape) - 2))
        product = abs(affine_map(graph, node)[0]) @ size
    elif node.op == "Scale":
        product = np.abs(np.broadcast_to(node.attrs["scale"], node.shape).reshape(-1).astype(np.float64)) * size
    else:
        weight = np.abs(np.asarray(node.attrs["weight"], dtype=np.float64))
        product = (size.reshape(-1, weight.shape[0]) @ weight).reshape(-1)
    own = np.broadcast_to(own, node.shape).reshape(-1)
    total = product + own
    return total + dot_error(total, size.size + 2)
