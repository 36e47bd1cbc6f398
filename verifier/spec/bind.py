"""The declarations of a VNN-LIB 2.0 query matched with the user's networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from verifier.errors import ShapeError, SpecError
from verifier.graph.ir import Graph, Node
from verifier.spec.query import Variable

_TYPES = {"F32": "float32", "F64": "float64", "Real": "real"}
_OTHER_TYPES = {
    "F16": "float16", "BF16": "bfloat16", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64", "U8": "uint8",
    "U16": "uint16", "U32": "uint32", "U64": "uint64", "C64": "complex64", "C128": "complex128", "Bool": "bool",
}  # fmt: skip


@dataclass(frozen=True)
class Declarations:
    """Declared variables and the graph of every declared network, in declaration order.

    Attributes:
        variables: in declaration order; offsets count over all networks.
        graphs: declared name -> graph with exactly the declared outputs.
        dtype: number type of the deployed programs.
        exact_real: every variable is declared `real`.
        notes: remarks about the match.
        equal_to: name of an `equal-to` network -> name of the network whose model it shares.
    """

    variables: tuple[Variable, ...]
    graphs: Mapping[str, Graph]
    dtype: str
    exact_real: bool
    notes: tuple[str, ...]
    equal_to: Mapping[str, str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {v.name: v for v in self.variables})

    @property
    def input_size(self) -> int:
        """Entries of all declared inputs."""
        return sum(v.size for v in self.variables if v.kind == "input")

    @property
    def output_size(self) -> int:
        """Entries of all declared outputs."""
        return sum(v.size for v in self.variables if v.kind == "output")

    def locate(self, reference: Any) -> tuple[Variable, int]:
        """The variable a parsed reference names, and the row-major index in it."""
        variable: Variable = self._by_name[reference.name]  # type: ignore[attr-defined]
        index = 0
        for position, size in zip(reference.indices, variable.shape, strict=True):
            index = index * size + position
        return variable, index

    def input_entry(self, reference: Any) -> int | None:
        """Position in the concatenated inputs of a reference to an input, else None."""
        if type(reference).__name__ != "Var":
            return None
        variable, index = self.locate(reference)
        return variable.offset + index if variable.kind == "input" else None

    def input_name(self, entry: int) -> str:
        """How the query calls an entry of the concatenated inputs."""
        for variable in self.variables:
            if variable.kind == "input" and variable.offset <= entry < variable.offset + variable.size:
                if not variable.shape:
                    return variable.name
                indices = np.unravel_index(entry - variable.offset, variable.shape)
                return f"{variable.name}[{','.join(str(int(i)) for i in indices)}]"
        raise SpecError(f"input entry {entry} belongs to no declared variable")


def bind(tree: Any, networks: Mapping[str, Graph] | Graph) -> Declarations:
    """Match every declared network with a graph and check sizes and element types.

    Args:
        tree: the parsed query.
        networks: declared name -> graph; a lone Graph stands for the only network that needs one.
    Raises:
        SpecError: missing or superfluous networks, unsupported element types, mixed number types.
        ShapeError: other numbers or sizes of inputs, outputs or hidden tensors than the graph's.
    """
    given = _graphs_by_name(tree, networks)
    equal_to: dict[str, str] = {}
    variables: list[Variable] = []
    graphs: dict[str, Graph] = {}
    notes: dict[str, None] = {}
    inputs = outputs = 0
    for network in tree.networks:
        if network.equal_to:
            equal_to[network.name] = equal_to.get(network.equal_to, network.equal_to)
        graph = given[equal_to.get(network.name, network.name)]
        hidden = [_variable(d, "hidden", network.name, 0) for d in network.hidden]
        graph = _with_declared_outputs(graph, len(network.outputs), hidden, network.name)
        own: list[Variable] = []
        for definition in network.inputs:
            own.append(_variable(definition, "input", network.name, inputs))
            inputs += own[-1].size
        own.extend(hidden)
        for definition in network.outputs:
            own.append(_variable(definition, "output", network.name, outputs))
            outputs += own[-1].size
        _check_shapes(network.name, own, graph, notes)
        _check_types(own, graph)
        variables.extend(own)
        graphs[network.name] = graph
    dtypes = {graph.dtype for graph in graphs.values()}
    if len(dtypes) > 1:
        raise SpecError(f"the networks compute in different number types ({sorted(dtypes)}); this is not supported")
    exact_real = all(v.element_type == "real" for v in variables)
    return Declarations(tuple(variables), graphs, dtypes.pop(), exact_real, tuple(notes), equal_to)


def _graphs_by_name(tree: Any, networks: Mapping[str, Graph] | Graph) -> dict[str, Graph]:
    names = [network.name for network in tree.networks]
    needed = [network.name for network in tree.networks if not network.equal_to]
    if isinstance(networks, Graph):
        if len(needed) != 1:
            raise SpecError(f"the property declares networks {names} and needs a model for each of {needed}, got one")
        return {needed[0]: networks}
    if set(networks) != set(needed):
        raise SpecError(f"the property needs models for the networks {needed}, got {sorted(networks)}")
    return dict(networks)


def _variable(definition: Any, kind: str, network: str, offset: int) -> Variable:
    code = getattr(definition.dtype, "name", str(definition.dtype))
    if code not in _TYPES:
        raise SpecError(
            f"variable {definition.name}: element type {_OTHER_TYPES.get(code, 'unknown or misspelt')} cannot be "
            "analysed soundly; supported are float32, float64 and real"
        )
    tensor = (definition.onnx_name or "").strip('"') if kind == "hidden" else ""
    shape = tuple(int(d) for d in definition.shape)
    return Variable(definition.name, kind, network, _TYPES[code], shape, offset, tensor)


def _with_declared_outputs(graph: Graph, count: int, hidden: list[Variable], network: str) -> Graph:
    """The graph without hidden tensors among its outputs, each reachable as a node of its own name."""
    nodes = dict(graph.nodes)
    found = dict(zip(graph.output_names, graph.outputs, strict=True))
    for variable in hidden:
        if variable.tensor in nodes:
            continue
        if variable.tensor not in found:
            raise SpecError(
                f"hidden variable {variable.name}: the graph of network '{network}' has no tensor "
                f"'{variable.tensor}'; it does not exist, or was fused with its neighbours when the file was read"
            )
        source = found[variable.tensor]
        nodes[variable.tensor] = Node(variable.tensor, "Reshape", (source,), nodes[source].shape)
    trailing = graph.output_names[count:]
    if len(graph.outputs) < count or not set(trailing) <= {v.tensor for v in hidden}:
        raise ShapeError(
            f"network '{network}': the property declares {count} outputs, the model has {len(graph.outputs)}"
        )
    if not trailing and len(nodes) == len(graph.nodes):
        return graph
    return replace(graph, nodes=nodes, outputs=graph.outputs[:count], output_names=graph.output_names[:count])


def _check_shapes(network: str, own: list[Variable], graph: Graph, notes: dict[str, None]) -> None:
    inputs = [v for v in own if v.kind == "input"]
    if len(inputs) != len(graph.inputs):
        raise ShapeError(
            f"network '{network}': the property declares {len(inputs)} inputs, the model has {len(graph.inputs)}"
        )
    outputs = [v for v in own if v.kind == "output"]
    hidden = [v for v in own if v.kind == "hidden"]
    pairs = [*zip(inputs, graph.inputs, strict=True), *zip(outputs, graph.outputs, strict=True)]
    for variable, node in [*pairs, *((v, v.tensor) for v in hidden)]:
        shape = graph[node].shape
        if graph[node].size != variable.size:
            raise ShapeError(
                f"{variable.kind} {variable.name} of network '{network}': declared {list(variable.shape)}, "
                f"the model's tensor '{node}' has shape {list(shape)}"
            )
        if [d for d in shape if d != 1] != [d for d in variable.shape if d != 1]:
            notes[f"{variable.name}: declared {list(variable.shape)}, read row-major as {list(shape)}"] = None


def _check_types(own: list[Variable], graph: Graph) -> None:
    for variable in own:
        if variable.element_type not in ("real", graph.dtype):
            raise SpecError(
                f"variable {variable.name} is declared {variable.element_type}, the network computes in {graph.dtype}; "
                f"declare it {graph.dtype}, or `real` to accept an analysis over the reals"
            )
