"""A graph as the native engine's stages: z = sum_t W_t h_t + b, h = f(z), flat features.

Every linear node becomes a stage, with the activation that alone reads it; Reshape becomes nothing.
Maps are dense, diagonal or sparse. Error terms: see passes/rounding.py for what a node promises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from verifier.errors import UnsupportedOperator
from verifier.graph.ir import Graph, Node
from verifier.graph.passes.rounding import products
from verifier.kernels.sparse import Sparse, convolution_matrix, kronecker, transposed_convolution_matrix

#: Most nonzeros of one sparse map, and of all; larger convolutions are left to the torch engine.
SPARSE_LIMIT, SPARSE_TOTAL = 8_000_000, 28_000_000
#: Matrices with more entries, and a smaller share of nonzeros, than this are kept by their nonzeros.
SMALL_MATRIX, SPARSE_SHARE = 4096, 0.08
#: Smallest normal numbers: cover underflow in the deployed program, flushed to zero or not.
_TINY = {"float32": 2.0**-126, "float64": 2.0**-1022}
_UNIT = {"float32": 2.0**-24, "float64": 2.0**-53}

LINEAR = {
    "Input", "Constant", "Dense", "BlockDense", "Conv", "ConvTranspose", "Scale", "Add", "Sub", "Reshape", "Transpose",
    "Select", "Concat", "ReduceSum",
}  # fmt: skip
ACTIVATIONS = {"Relu": "relu", "LeakyRelu": "leaky_relu", "Sigmoid": "sigmoid", "Tanh": "tanh"}
#: Absolute error of the deployed sigmoid and tanh in unit round-offs, as in ops/sshaped.py.
_CURVED_ERROR = {"Sigmoid": 18.0, "Tanh": 32.0}


@dataclass(frozen=True)
class Map:
    """A linear map from stage `source`: a matrix [rows, cols], its diagonal [rows], or a Sparse."""

    source: int
    matrix: np.ndarray | Sparse

    @property
    def kind(self) -> str:
        """The compiled module's name for this form."""
        if isinstance(self.matrix, Sparse):
            return "sparse"
        return "diagonal" if self.matrix.ndim == 1 else "dense"

    def sparse(self) -> Sparse:
        """The same map in sparse form."""
        if isinstance(self.matrix, Sparse):
            return self.matrix
        return Sparse.diagonal(self.matrix) if self.matrix.ndim == 1 else Sparse.dense(self.matrix)

    def as_dict(self) -> dict[str, object]:
        """What the compiled module reads."""
        m = self.matrix
        if isinstance(m, Sparse):
            parts = {"values": m.values, "row_start": m.row_start, "columns": m.columns}
            return {"kind": "sparse", "source": self.source, "rows": m.rows, "cols": m.cols, **parts}
        values = np.ascontiguousarray(m, dtype=np.float64)
        return {"kind": self.kind, "source": self.source, "rows": m.shape[0], "cols": m.shape[-1], "values": values}


@dataclass
class StagePlan:
    """One stage, and how the deployed program rounds its z; see `SumError` in csrc/cpu/simd/forward.h.

    Attributes:
        unit: unit round-off of the sums of products, 0 where they are exact.
        products: most products behind one z; fused: roundings of each by operations fused into it.
        tiny, flush: absolute error, tiny + flush sum |h|.
    """

    size: int
    maps: list[Map]
    bias: np.ndarray
    bias_magnitude: np.ndarray
    unit: float = 0.0
    products: int = 0
    fused: int = 0
    tiny: float = 0.0
    flush: float = 0.0
    activation: str = "identity"
    alpha: float = 0.0
    activation_error: float = 0.0

    def as_dict(self) -> dict[str, object]:
        """What the compiled module reads."""
        return {
            "size": self.size,
            "activation": self.activation,
            "alpha": self.alpha,
            "activation_error": self.activation_error,
            "bias": np.ascontiguousarray(self.bias, dtype=np.float64),
            "bias_magnitude": np.ascontiguousarray(self.bias_magnitude, dtype=np.float64),
            "deployed_unit": self.unit,
            "products": self.products,
            "fused_roundings": self.fused,
            "deployed_tiny": self.tiny,
            "flush": self.flush,
            "maps": [m.as_dict() for m in self.maps],
        }


@dataclass
class Stager:
    """Builds stages from a graph, node by node.

    Attributes:
        rounded: count the deployed program's rounding; off for bounds in real arithmetic.
        stages: stage 0, the flat input, is not listed.
        stage_of: node name -> number of the stage whose h is the node's value.
    """

    graph: Graph
    rounded: bool
    stages: list[StagePlan] = field(default_factory=list)
    stage_of: dict[str, int] = field(default_factory=dict)

    def run(self) -> list[StagePlan]:
        """Stages 1, 2, ...; the last one is the flat output.

        Raises:
            UnsupportedOperator: a node outside the native engine's subset, or too large for it.
        """
        readers = self.graph.consumers()
        self._enter()
        for node in self.graph.nodes.values():
            if node.op == "Input":
                continue
            if node.op in ACTIVATIONS:
                alone = len(readers[node.inputs[0]]) == 1 and node.inputs[0] not in self.graph.outputs
                self._activation(node, alone)
            elif node.op == "Reshape":
                self.stage_of[node.name] = self.stage_of[node.inputs[0]]
            elif node.op in LINEAR:
                self.stage_of[node.name] = self._append(self._linear(node))
            else:
                raise UnsupportedOperator(node.op, node.name, "outside the native engine's subset")
        self._leave()
        return self.stages

    def size_of(self, stage: int) -> int:
        """Number of features of a stage."""
        return self.graph.input_size if stage == 0 else self.stages[stage - 1].size

    def _append(self, stage: StagePlan) -> int:
        self.stages.append(stage)
        return len(self.stages)

    def _copy(self, maps: list[Map]) -> int:
        """A stage that only moves data."""
        size = maps[0].matrix.rows if isinstance(maps[0].matrix, Sparse) else maps[0].matrix.shape[0]
        return self._append(StagePlan(size, maps, np.zeros(size), np.zeros(size)))

    def _enter(self) -> None:
        at = 0
        for name in self.graph.inputs:
            size = self.graph[name].size
            if size == self.graph.input_size:
                self.stage_of[name] = 0
            else:
                self.stage_of[name] = self._copy(
                    [Map(0, Sparse.select(np.arange(at, at + size), self.graph.input_size))]
                )
            at += size

    def _leave(self) -> None:
        outputs = [self.stage_of[name] for name in self.graph.outputs]
        last = len(self.stages)
        if outputs == [last] and last > 0 and self.stages[-1].activation == "identity":
            return
        total = sum(self.size_of(s) for s in outputs)
        maps, at = [], 0
        for stage in outputs:
            maps.append(Map(stage, Sparse.place(self.size_of(stage), total, at)))
            at += self.size_of(stage)
        self._copy(_merge(maps))

    def _activation(self, node: Node, alone: bool) -> None:
        source = self.stage_of[node.inputs[0]]
        if source == 0 or not alone or self.stages[source - 1].activation != "identity":
            source = self._copy([Map(source, np.ones(node.size))])
        stage = self.stages[source - 1]
        stage.activation = ACTIVATIONS[node.op]
        if node.op == "LeakyRelu":
            stage.alpha = float(node.attrs["alpha"])
            if self.rounded:  # alpha itself may be rounded to the program's type, then the product
                stage.activation_error = 3 * _UNIT[self.graph.dtype] * stage.alpha
        if node.op in _CURVED_ERROR and self.rounded:
            stage.activation_error = _CURVED_ERROR[node.op] * _UNIT[self.graph.dtype] + 8 * _TINY[self.graph.dtype]
        self.stage_of[node.name] = source

    def _linear(self, node: Node) -> StagePlan:
        maps = _merge(_MAPS[node.op](self, node))
        given = node.attrs.get("bias", node.attrs.get("shift", node.attrs.get("value", 0.0)))
        bias = _per_feature(node, given)
        magnitude = node.attrs.get("bias_magnitude")
        size = np.abs(bias) if magnitude is None else _per_feature(node, magnitude)
        stage = StagePlan(node.size, maps, bias, size)
        self._charge(node, stage)
        return stage

    def _charge(self, node: Node, stage: StagePlan) -> None:
        """Sets the error terms of the deployed program, or of fused real coefficients."""
        extra = int(node.attrs.get("rounding_terms", 0))
        fixed = node.attrs.get("deployed_error")
        terms = _summands(self.graph, node) if node.op == "ReduceSum" else _PRODUCTS[node.op](node)
        if fixed is not None:
            stage.tiny = float(fixed) if self.rounded else 0.0
        elif self.rounded and (terms or extra):
            stage.unit = _UNIT[self.graph.dtype]
            stage.flush = _TINY[self.graph.dtype]
            stage.tiny = (terms + 2) * _TINY[self.graph.dtype]
        if extra and not stage.unit:
            stage.unit = _UNIT["float64"]
        stage.products, stage.fused = terms, extra


def _per_feature(node: Node, given: object) -> np.ndarray:
    """A bias, shift or value as [node.size] in float64; a convolution's counts per channel."""
    array = np.asarray(given, dtype=np.float64)
    if node.op in ("Conv", "ConvTranspose") and array.ndim == 1:
        array = array.reshape(-1, *([1] * (len(node.shape) - 2)))
    return np.ascontiguousarray(np.broadcast_to(array, node.shape)).reshape(-1)


def _merge(maps: list[Map]) -> list[Map]:
    """One map per source: maps that share one are summed."""
    sources = sorted({m.source for m in maps})
    if len(sources) == len(maps):
        return maps
    merged = []
    for source in sources:
        parts = [m for m in maps if m.source == source]
        total = parts[0] if len(parts) == 1 else Map(source, Sparse.sum([p.sparse() for p in parts]))
        merged.append(total)
    return merged


def _dense(at: Stager, node: Node) -> list[Map]:
    source, weight = at.stage_of[node.inputs[0]], np.asarray(node.attrs["weight"], dtype=np.float64).T
    copies = at.graph[node.inputs[0]].size // weight.shape[1]
    if copies > 1:
        return [Map(source, kronecker(np.broadcast_to(weight, (copies, *weight.shape))))]
    sparse = weight.size > SMALL_MATRIX and np.count_nonzero(weight) < SPARSE_SHARE * weight.size
    return [Map(source, Sparse.dense(weight) if sparse else weight)]


def _block_dense(at: Stager, node: Node) -> list[Map]:
    weight = np.asarray(node.attrs["weight"], dtype=np.float64).transpose(0, 2, 1)
    copies = at.graph[node.inputs[0]].size // (weight.shape[0] * weight.shape[2])
    return [Map(at.stage_of[node.inputs[0]], kronecker(np.concatenate([weight] * copies)))]


def _conv(at: Stager, node: Node) -> list[Map]:
    return [Map(at.stage_of[node.inputs[0]], convolution_matrix(node, at.graph[node.inputs[0]].shape))]


def _conv_transpose(at: Stager, node: Node) -> list[Map]:
    return [Map(at.stage_of[node.inputs[0]], transposed_convolution_matrix(node, at.graph[node.inputs[0]].shape))]


def _scale(at: Stager, node: Node) -> list[Map]:
    return [Map(at.stage_of[node.inputs[0]], _per_feature(node, node.attrs["scale"]))]


def _add(at: Stager, node: Node) -> list[Map]:
    signs = (1.0, 1.0) if node.op == "Add" else (1.0, -1.0)
    return [Map(at.stage_of[i], np.full(node.size, s)) for i, s in zip(node.inputs, signs, strict=True)]


def _select(at: Stager, node: Node) -> list[Map]:
    size = at.graph[node.inputs[0]].size
    return [Map(at.stage_of[node.inputs[0]], Sparse.select(np.asarray(node.attrs["indices"]).reshape(-1), size))]


def _transpose(at: Stager, node: Node) -> list[Map]:
    shape = at.graph[node.inputs[0]].shape
    index = np.arange(node.size).reshape(shape).transpose(node.attrs["perm"]).reshape(-1)
    return [Map(at.stage_of[node.inputs[0]], Sparse.select(index, node.size))]


def _concat(at: Stager, node: Node) -> list[Map]:
    axis, maps, begin = node.attrs["axis"] % len(node.shape), [], 0
    positions = np.arange(node.size).reshape(node.shape)
    for name in node.inputs:
        width = at.graph[name].shape[axis]
        place = positions.take(range(begin, begin + width), axis).reshape(-1)
        maps.append(Map(at.stage_of[name], Sparse.scatter(place, node.size)))
        begin += width
    return maps


def _reduce_sum(at: Stager, node: Node) -> list[Map]:
    shape = at.graph[node.inputs[0]].shape
    kept = np.arange(node.size).reshape(
        [1 if i in {a % len(shape) for a in node.attrs["axes"]} else n for i, n in enumerate(shape)]
    )
    target = np.broadcast_to(kept, shape).reshape(-1)
    source = np.arange(target.size)
    return [
        Map(at.stage_of[node.inputs[0]], Sparse.build(target, source, np.ones(target.size), node.size, target.size))
    ]


_MAPS: dict[str, Callable[[Stager, Node], list[Map]]] = {
    "Constant": lambda at, node: [],
    "Dense": _dense,
    "BlockDense": _block_dense,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Scale": _scale,
    "Add": _add,
    "Sub": _add,
    "Transpose": _transpose,
    "Select": _select,
    "Concat": _concat,
    "ReduceSum": _reduce_sum,
}


def _dense_products(node: Node) -> int:
    """Most nonzero products behind one result of a Dense node: adding exact zeros rounds nothing."""
    return int(np.count_nonzero(node.attrs["weight"], axis=0).max(initial=0))


#: Most products behind one result; 0 where data only moves (Add and Sub round once, without a product).
_PRODUCTS: dict[str, Callable[[Node], int]] = {
    "Constant": lambda node: 0,
    "Dense": _dense_products,
    "BlockDense": lambda node: int(node.attrs["weight"].shape[1]),
    "Conv": products,
    "ConvTranspose": products,
    "Scale": products,
    "Add": lambda node: 1,
    "Sub": lambda node: 1,
    "Transpose": lambda node: 0,
    "Select": lambda node: 0,
    "Concat": lambda node: 0,
}


def _summands(graph: Graph, node: Node) -> int:
    """Numbers behind one result of a ReduceSum."""
    return graph[node.inputs[0]].size // max(node.size, 1)


def covers(graph: Graph) -> bool:
    """True when every node is in the native engine's subset and small enough for it."""
    for node in graph.nodes.values():
        if node.op in ACTIVATIONS:
            if node.attrs.get("deployed_error") or not 0 <= float(node.attrs.get("alpha", 0.0)) <= 1:
                return False
        elif node.op not in LINEAR or node.size == 0 or _nonzeros(graph, node) > SPARSE_LIMIT:
            return False
    return nonzeros(graph) <= SPARSE_TOTAL


def nonzeros(graph: Graph) -> int:
    """Nonzeros of a graph's sparse maps, at most."""
    return sum(_nonzeros(graph, node) for node in graph.nodes.values())


def _nonzeros(graph: Graph, node: Node) -> int:
    """Nonzeros of a node's sparse map, at most; 0 for the others."""
    if node.op == "Conv":
        return node.size * products(node)
    if node.op == "ConvTranspose":
        return graph[node.inputs[0]].size * int(np.prod(node.attrs["weight"].shape[1:]))
    if node.op == "BlockDense":
        return node.size * int(node.attrs["weight"].shape[1])
    if node.op == "Dense" and node.size > node.attrs["weight"].shape[1]:
        return node.size * int(node.attrs["weight"].shape[0])
    return (
        max([node.size, *(graph[i].size for i in node.inputs)]) if node.op in ("Select", "Transpose", "Concat") else 0
    )
