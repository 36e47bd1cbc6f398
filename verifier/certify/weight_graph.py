"""A network with its weights as inputs: the graph that proofs about perturbed weights bound.

The sample becomes a constant and the chosen weights and biases become the input vector. A layer
fed with the sample itself is then linear in its weights; a deeper one multiplies weights by varying
numbers, which is one product node a weight and position. Every node is one the deployed program
has, with its usual rounding, so bounds hold for that program in any summation order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from verifier.errors import ShapeError, SpecError
from verifier.graph.evaluate import evaluate_all
from verifier.graph.grammar import check
from verifier.graph.ir import Graph, Node
from verifier.graph.lowering.arithmetic import add
from verifier.graph.lowering.layout import concat, expand, reshape, select
from verifier.graph.lowering.linear import matmul
from verifier.graph.lowering.values import Ref, Tracer, Value, is_constant

#: Most products of two varying numbers; more would not fit into memory as coefficients.
MOST_PRODUCTS = 1 << 22
_LAYERS = ("Dense", "Conv")
_MOVES = ("Reshape", "Transpose", "Select", "Concat")


@dataclass(frozen=True)
class Site:
    """A tensor that may move: attribute "weight" or "bias" of a Dense or Conv node, in the node's own layout."""

    node: str
    attribute: str

    @property
    def name(self) -> str:
        """ "node.weight" or "node.bias"."""
        return f"{self.node}.{self.attribute}"

    def value(self, graph: Graph) -> np.ndarray:
        """The tensor as the program holds it."""
        return np.asarray(graph[self.node].attrs[self.attribute])


def sites_of(graph: Graph) -> tuple[Site, ...]:
    """Every weight and bias of a dense or convolution layer, in order."""
    nodes = [n for n in graph.nodes.values() if n.op in _LAYERS]
    return tuple(Site(n.name, attribute) for n in nodes for attribute in ("weight", "bias"))


def weight_graph(graph: Graph, x: np.ndarray, sites: Sequence[Site]) -> Graph:
    """Outputs at the fixed input x as a function of the tensors at `sites`, flattened one after the other.

    Args:
        graph: with one input or several. x: flat [N_in], numbers of the network's dtype.
    Raises:
        ShapeError: x has the wrong size.
        SpecError: a layer whose stored numbers are not the program's own, or too many products.
    """
    if x.size != graph.input_size:
        raise ShapeError(f"input: expected {graph.input_size} features (N_in), got {x.size}")
    tracer = Tracer(stem="weights", operator="weights")
    flat = tracer.emit("Input", (), (sum(s.value(graph).size for s in sites),), graph.dtype)
    moving: dict[Site, Ref] = {}
    at = 0
    for site in sites:
        _check_stored(graph[site.node])
        shape = site.value(graph).shape
        count = int(np.prod(shape, dtype=np.int64))
        moving[site] = select(tracer, flat, np.arange(at, at + count).reshape(shape))
        at += count
    values: dict[str, Value] = {}
    at = 0
    for name in graph.inputs:
        values[name] = x[at : at + graph[name].size].reshape(graph[name].shape).astype(graph.dtype)
        at += graph[name].size
    for node in graph.nodes.values():
        if node.op != "Input":
            tracer.stem = node.name
            values[node.name] = _value(tracer, graph, node, [values[i] for i in node.inputs], moving)
    outputs = tuple(tracer.ref(values[name], graph.dtype).name for name in graph.outputs)
    source = f"weights of {graph.source or 'a network'}"
    result = Graph(tracer.builder.nodes, (flat.name,), outputs, dtype=graph.dtype, source=source).pruned()
    check(result)
    return result


def _value(t: Tracer, graph: Graph, node: Node, inputs: list[Value], moving: dict[Site, Ref]) -> Value:
    """The node's result: a constant where data only moves, else a node."""
    weight, bias = (moving.get(Site(node.name, attribute)) for attribute in ("weight", "bias"))
    if weight is None and bias is None:
        if node.op in _MOVES and is_constant(*inputs):
            return _moved(graph, node, inputs)
        refs = tuple(t.ref(v, graph.dtype) for v in inputs)
        return t.emit(node.op, refs, node.shape, graph.dtype, **node.attrs)
    (x,) = inputs
    product = _product(t, graph, node, x, weight)
    shape = (-1, *(1,) * (len(node.shape) - 2)) if node.op == "Conv" else (-1,)
    added: Value = np.asarray(node.attrs["bias"]) if bias is None else bias
    return add(t, product, expand(t, reshape(t, added, shape), node.shape))


def _moved(graph: Graph, node: Node, inputs: list[Value]) -> np.ndarray:
    """Data movement of constants, which rounds nothing."""
    feeds = {f"in{i}": Node(f"in{i}", "Input", (), v.shape) for i, v in enumerate(inputs)}
    small = Graph({**feeds, node.name: replace(node, inputs=tuple(feeds))}, tuple(feeds), (node.name,))
    given = {f"in{i}": v[None] for i, v in enumerate(inputs)}
    return evaluate_all(small, given, graph.dtype)[node.name][0]


def _product(t: Tracer, graph: Graph, node: Node, x: Value, weight: Ref | None) -> Ref:
    """The layer without its bias."""
    if weight is None:
        ref = t.ref(x, graph.dtype)
        attrs = {k: v for k, v in node.attrs.items() if k not in ("rounding_terms", "bias_magnitude")}
        attrs["bias"] = np.zeros_like(attrs["bias"])
        return t.emit(node.op, (ref,), node.shape, graph.dtype, **attrs)
    if not is_constant(x) and node.size * int(np.prod(weight.shape[1:], dtype=np.int64)) > MOST_PRODUCTS:
        raise SpecError(
            f"weights of '{node.name}': {node.size} results of {weight.shape} weights are too many products "
            f"(above {MOST_PRODUCTS}); perturb the first layer, or smaller ones, only"
        )
    return matmul(t, x, weight) if node.op == "Dense" else _convolved(t, node, x, weight)


def _convolved(t: Tracer, node: Node, x: Value, weight: Ref) -> Ref:
    """Kernels [out, in / groups * k] times columns [in / groups * k, positions], group by group."""
    groups, (out, per_group, *kernel) = int(node.attrs["groups"]), weight.shape
    columns = _columns(node, x.shape, kernel)
    rows = per_group * int(np.prod(kernel, dtype=np.int64))
    parts: list[Value] = []
    for g in range(groups):
        index = columns[g * rows : (g + 1) * rows]
        if isinstance(x, np.ndarray):
            patches: Value = np.where(index < 0, 0, x.reshape(-1)[np.maximum(index, 0)]).astype(x.dtype)
        else:
            patches = select(t, x, index)
        size = out // groups
        own = select(t, weight, np.arange(g * size * rows, (g + 1) * size * rows).reshape(size, rows))
        parts.append(matmul(t, own, patches))
    return reshape(t, concat(t, parts, 0), node.shape)


def _columns(node: Node, shape: tuple[int, ...], kernel: list[int]) -> np.ndarray:
    """int64 [C * k, positions]: flat place in x [1, C, *spatial] of every tap at every position, -1 in the padding."""
    attrs, spatial = node.attrs, shape[2:]
    d = len(spatial)
    if shape[0] != 1:
        raise SpecError(f"weights of '{node.name}': expected a batch of one, got {shape}")
    grid = np.indices((*kernel, *node.shape[2:]))
    inside: np.ndarray = np.ones(grid.shape[1:], dtype=bool)
    flat: np.ndarray = np.zeros(grid.shape[1:], dtype=np.int64)
    for i in range(d):
        place = grid[d + i] * attrs["strides"][i] + grid[i] * attrs["dilations"][i] - attrs["pads"][i]
        inside &= (place >= 0) & (place < spatial[i])
        flat = flat * spatial[i] + np.clip(place, 0, spatial[i] - 1)
    taps = int(np.prod(kernel, dtype=np.int64))
    flat, inside = flat.reshape(taps, -1), inside.reshape(taps, -1)
    size = int(np.prod(spatial, dtype=np.int64))
    planes = [np.where(inside, c * size + flat, -1) for c in range(shape[1])]
    return np.concatenate(planes)


def _check_stored(node: Node) -> None:
    """Refuse layers that hold products of the program's numbers rather than these themselves."""
    if int(node.attrs.get("rounding_terms", 0)) > 1:
        raise SpecError(
            f"weights of '{node.name}': this layer stores weights that a scale or a normalisation was folded into; "
            "perturb other layers, or export the network with the normalisation folded in"
        )
