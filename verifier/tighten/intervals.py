"""Interval propagation in plain numpy: the bounds every optimisation model starts from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import sparse

from verifier.errors import NetworkError, ShapeError, UnsupportedOperator
from verifier.graph.ir import Graph, Node
from verifier.spec.problem import InputSet
from verifier.tighten.curves import CURVED, Curve, curve_of
from verifier.tighten.linear_maps import AFFINE, MOVES, affine_map, move_indices, reduction_groups
from verifier.tighten.rounding import dot_error, matvec_interval, row_terms

Interval = tuple[np.ndarray, np.ndarray]
Errors = Mapping[str, np.ndarray]


class Maps:
    """What does not depend on bounds: every node's matrix, positions or curve, made once per graph.

    Args:
        rounding_error: node name -> bound on |deployed result - exact result| of that node alone,
            an array of the node's size; None for real arithmetic.
    Raises:
        UnsupportedOperator: a node that no model here can hold.
    """

    activations = (*CURVED, "ReduceMax")

    def __init__(self, graph: Graph, rounding_error: Errors | None = None):
        self.graph = graph
        self.error: dict[str, np.ndarray] = {}
        for name, value in (rounding_error or {}).items():
            self.error[name] = checked_vector(graph, name, value, "rounding_error")
            if not np.all(self.error[name] >= 0.0):
                raise NetworkError(f"rounding_error of node '{name}': expected numbers >= 0")
        self.affine: dict[str, tuple[sparse.csr_matrix, np.ndarray]] = {}
        self.move: dict[str, np.ndarray] = {}
        self.groups: dict[str, np.ndarray] = {}
        self.curve: dict[str, Curve] = {}
        for name, node in graph.nodes.items():
            self._prepare(name, node)

    def _prepare(self, name: str, node: Node) -> None:
        if node.op in AFFINE:
            self.affine[name] = affine_map(self.graph, node)
        elif node.op in MOVES:
            self.move[name] = move_indices(self.graph, node)
        elif node.op == "ReduceMax":
            self.groups[name] = reduction_groups(self.graph, node)
        elif node.op in ("Mul", "Softmax"):
            raise UnsupportedOperator(node.op, name, "optimisation-based bounds take one variable at a time")
        elif node.op not in ("Input", "Constant"):
            self.curve[name] = curve_of(node, self.error.get(name))

    def error_of(self, name: str) -> np.ndarray:
        """Rounding error of a node, float64 [size]; zeros in real arithmetic."""
        return self.error.get(name, np.zeros(self.graph[name].size))


def checked_vector(graph: Graph, name: str, value: np.ndarray, what: str) -> np.ndarray:
    """`value` as float64 [size of node `name`].

    Raises:
        ShapeError: no such node, or another size.  NetworkError: NaN.
    """
    if name not in graph.nodes:
        raise ShapeError(f"{what}: the network has no node '{name}'")
    flat = np.asarray(value, dtype=np.float64).reshape(-1)
    if flat.size != graph[name].size:
        raise ShapeError(f"{what} of node '{name}': expected {graph[name].size} numbers, got {flat.size}")
    if np.any(np.isnan(flat)):
        raise NetworkError(f"{what} of node '{name}' holds NaN")
    return flat


def propagate(maps: Maps, inputs: InputSet, given: Mapping[str, Interval] | None = None) -> dict[str, Interval] | None:
    """Interval bounds of every node, flat float64 [size] each, intersected with the given ones.

    Args:
        given: node name -> (lower, upper) known for the points of interest, of the node's size.
    Returns:
        The bounds, or None when an intersection is empty: no point of interest exists.
    Raises:
        ShapeError: sizes do not fit.  NetworkError: a bound is infinite or NaN.
    Source: Gowal et al. 2018, arXiv:1810.12715; rounded outward.
    """
    graph = maps.graph
    if inputs.size != graph.input_size:
        raise ShapeError(f"input set: expected {graph.input_size} features (N_in), got {inputs.size}")
    starts = dict(zip(graph.inputs, np.cumsum([0, *(graph[i].size for i in graph.inputs)]), strict=False))
    found: dict[str, Interval] = {}
    for name, node in graph.nodes.items():
        if node.op == "Input":
            part = slice(starts[name], starts[name] + node.size)
            lower, upper = inputs.lower[part], inputs.upper[part]
        else:
            lower, upper = _image(maps, node, [found[i] for i in node.inputs])
        if given and name in given:
            known = [checked_vector(graph, name, v, "intermediate bounds") for v in given[name]]
            lower, upper = np.maximum(lower, known[0]), np.minimum(upper, known[1])
        if not (np.all(np.isfinite(lower)) and np.all(np.isfinite(upper))):
            raise NetworkError(f"node '{name}' ({node.op}): its bounds are not finite; shrink the input set")
        if np.any(lower > upper):
            return None
        found[name] = (lower, upper)
    return found


def _image(maps: Maps, node: Node, sources: list[Interval]) -> Interval:
    if node.op == "Constant":
        value = np.asarray(node.attrs["value"], dtype=np.float64).reshape(-1)
        return value, value.copy()
    lower = np.concatenate([s[0] for s in sources])
    upper = np.concatenate([s[1] for s in sources])
    if node.op in MOVES:
        index = maps.move[node.name]
        hidden = index < 0
        return np.where(hidden, 0.0, lower[index]), np.where(hidden, 0.0, upper[index])
    if node.op == "ReduceMax":
        groups = maps.groups[node.name]
        return lower[groups].max(axis=1), upper[groups].max(axis=1)
    if node.op in AFFINE:
        return _affine_image(maps, node.name, lower, upper)
    return maps.curve[node.name].range(lower, upper)


def _affine_image(maps: Maps, name: str, lower: np.ndarray, upper: np.ndarray) -> Interval:
    matrix, offset = maps.affine[name]
    low, high = matvec_interval(matrix, lower, upper)
    sizes = np.maximum(np.abs(low), np.abs(high)) + np.abs(offset) + maps.error_of(name)
    slack = dot_error(sizes, row_terms(matrix)) + maps.error_of(name)
    return low + offset - slack, high + offset + slack
