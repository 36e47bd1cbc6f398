"""What a network is, for people: inputs, outputs, operators, sizes and neurons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from verifier.graph.grammar import OPERATORS
from verifier.graph.ir import Graph, Node

#: Names longer than this are cut in the table; --json has them in full.
_NAME_WIDTH = 40


class TensorInfo(NamedTuple):
    """An input or output of the model: its name and its static shape, unknown sizes fixed to 1."""

    name: str
    shape: tuple[int, ...]


class NodeInfo(NamedTuple):
    """One node of the imported graph.

    Attributes:
        name, operator, shape, inputs: as in the graph; the operator is a key of the grammar.
        parameters: numbers stored in the node.
        neurons: results whose relaxation depends on the bounds of their inputs; 0 for linear nodes.
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    inputs: tuple[str, ...]
    parameters: int
    neurons: int


@dataclass(frozen=True)
class Description:
    """A network as the verifier sees it; str() is the text that `verifier info` prints.

    Attributes:
        source: where the network came from.
        dtype: the deployed program's arithmetic, "float32" or "float64".
        inputs, outputs: the model's own, in order.
        parameters: numbers stored in the network; neurons: nonlinear results.
        operators: canonical operator -> number of nodes, in order of first use.
        nodes: in evaluation order.
    """

    source: str
    dtype: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    parameters: int
    neurons: int
    operators: Mapping[str, int]
    nodes: tuple[NodeInfo, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for `json.dumps`."""
        tensors = {key: [t._asdict() for t in getattr(self, key)] for key in ("inputs", "outputs")}
        nodes = [node._asdict() for node in self.nodes]
        return asdict(self) | tensors | {"operators": dict(self.operators), "nodes": nodes}

    def __str__(self) -> str:
        counts = ", ".join(f"{op} x{count}" if count > 1 else op for op, count in self.operators.items())
        head = [
            ("network", self.source or "(made in Python)"),
            *(("input", f"{t.name} {_shape(t.shape)} {self.dtype}") for t in self.inputs),
            *(("output", f"{t.name} {_shape(t.shape)} {self.dtype}") for t in self.outputs),
            ("parameters", f"{self.parameters:,}"),
            ("neurons", f"{self.neurons:,} nonlinear"),
            ("operators", counts),
        ]
        rows = [("node", "operator", "shape", "parameters", "neurons")]
        rows += [
            (_cut(n.name), n.operator, _shape(n.shape), f"{n.parameters:,}" if n.parameters else "-",
             f"{n.neurons:,}" if n.neurons else "-")
            for n in self.nodes
        ]  # fmt: skip
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        table = [
            "  ".join([*(row[i].ljust(widths[i]) for i in range(3)), *(row[i].rjust(widths[i]) for i in (3, 4))])
            for row in rows
        ]
        return "\n".join([*(f"{key:<10}  {value}" for key, value in head), "", *table])


def describe(graph: Graph) -> Description:
    """The description of an imported network."""
    nodes = tuple(
        NodeInfo(n.name, n.op, n.shape, n.inputs, _parameters(n), _neurons(n)) for n in graph.nodes.values()
    )  # fmt: skip
    return Description(
        source=graph.source,
        dtype=graph.dtype,
        inputs=tuple(TensorInfo(n, graph[i].shape) for n, i in zip(graph.input_names, graph.inputs, strict=True)),
        outputs=tuple(TensorInfo(n, graph[o].shape) for n, o in zip(graph.output_names, graph.outputs, strict=True)),
        parameters=graph.parameter_count,
        neurons=sum(n.neurons for n in nodes),
        operators=Counter(n.operator for n in nodes if n.operator != "Input"),
        nodes=nodes,
    )


def _parameters(node: Node) -> int:
    return Graph({node.name: node}, (), (node.name,)).parameter_count


def _neurons(node: Node) -> int:
    return 0 if OPERATORS[node.op].kind == "linear" else node.size


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _cut(name: str) -> str:
    """The end of a long name: exporters put the path first and what differs last."""
    return name if len(name) <= _NAME_WIDTH else f"...{name[3 - _NAME_WIDTH :]}"
