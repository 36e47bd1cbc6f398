"""The computation graph: frozen nodes in static single assignment form.

Shapes are the network's own, the leading batch axis (fixed to 1) included: an ONNX tensor
[1, 3, 32, 32] is a node of shape (1, 3, 32, 32). Evaluation and bounding add their own axis B
in front, so the meaning of every axis attribute stays what the exporter wrote, and a network
without a batch axis needs no special case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from verifier.errors import NetworkError


@dataclass(frozen=True)
class Node:
    """One operation with one result, called by the node's name.

    Attributes:
        name: unique in the graph; the ONNX tensor name where there is one.
        op: a key of `grammar.OPERATORS`, which lists each operator's inputs and attributes.
        inputs: names of earlier nodes.
        shape: static shape of the result, network's batch axis included.
        attrs: constants and settings, e.g. {"weight": ndarray, "axis": int}; never mutated.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "attrs", MappingProxyType(dict(self.attrs)))

    @property
    def size(self) -> int:
        """Number of scalars in the result."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Graph:
    """A network: nodes in topological order, with named inputs and outputs.

    Attributes:
        nodes: name -> Node, in evaluation order.
        inputs: names of the Input nodes, in model order. A flat input vector is their
            row-major concatenation, N_in numbers.
        outputs: names of the result nodes, in model order; flattened likewise.
        input_names / output_names: the model's own names, for witnesses and messages.
        dtype: "float32" or "float64", the arithmetic of the deployed program.
        source: where the graph came from, for messages.
    """

    nodes: Mapping[str, Node]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    dtype: str = "float32"
    source: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", MappingProxyType(dict(self.nodes)))
        if not self.input_names:
            object.__setattr__(self, "input_names", self.inputs)
        if not self.output_names:
            object.__setattr__(self, "output_names", self.outputs)

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    @property
    def input_size(self) -> int:
        """Length N_in of the flat input vector."""
        return sum(self[name].size for name in self.inputs)

    @property
    def output_size(self) -> int:
        """Length N_out of the flat output vector."""
        return sum(self[name].size for name in self.outputs)

    @property
    def parameter_count(self) -> int:
        """Number of scalars in `weight`, `bias`, `scale`, `shift` and `value` attributes."""
        keys = ("weight", "bias", "scale", "shift", "value")
        return sum(int(np.size(n.attrs[k])) for n in self.nodes.values() for k in keys if n.attrs.get(k) is not None)

    def consumers(self) -> dict[str, list[str]]:
        """Name -> names of the nodes that read it."""
        found: dict[str, list[str]] = {name: [] for name in self.nodes}
        for node in self.nodes.values():
            for source in node.inputs:
                found[source].append(node.name)
        return found

    def pruned(self) -> Graph:
        """The same graph without nodes that no output depends on; Input nodes stay."""
        needed: set[str] = set(self.inputs)
        stack = list(self.outputs)
        while stack:
            name = stack.pop()
            if name not in needed or name in self.inputs:
                needed.add(name)
                stack.extend(i for i in self[name].inputs if i not in needed)
        return replace(self, nodes={k: v for k, v in self.nodes.items() if k in needed})


class GraphBuilder:
    """Appends nodes in evaluation order; `finish` prunes, checks the grammar and freezes.

    `add` returns the new node's name, so importers and passes compose calls.
    """

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self._counter: dict[str, int] = {}

    def fresh(self, stem: str) -> str:
        """A name not in use yet: `stem`, else `stem__1`, `stem__2`, ..."""
        if stem not in self.nodes:
            return stem
        while True:
            self._counter[stem] = self._counter.get(stem, 0) + 1
            name = f"{stem}__{self._counter[stem]}"
            if name not in self.nodes:
                return name

    def add(self, op: str, inputs: tuple[str, ...], shape: tuple[int, ...], name: str, **attrs: Any) -> str:
        """Append a node called `name`, or a fresh variant of it, and return its name."""
        for source in inputs:
            if source not in self.nodes:
                raise NetworkError(f"node '{name}' ({op}) reads '{source}', which is not defined before it")
        name = self.fresh(name)
        self.nodes[name] = Node(name, op, tuple(inputs), tuple(int(d) for d in shape), attrs)
        return name

    def finish(self, inputs: tuple[str, ...], outputs: tuple[str, ...], **meta: Any) -> Graph:
        """The frozen graph, pruned and checked against the grammar."""
        from verifier.graph.grammar import check

        graph = Graph(self.nodes, tuple(inputs), tuple(outputs), **meta).pruned()
        check(graph)
        return graph
