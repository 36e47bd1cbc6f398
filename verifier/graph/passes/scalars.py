"""Give results without axes one axis of length 1, for engines whose rules need one."""

from __future__ import annotations

from typing import Any

from verifier.graph.ir import Graph, GraphBuilder, Node


def without_scalars(graph: Graph) -> Graph:
    """The same function; every node of shape () has shape (1,). Flat inputs and outputs are unchanged."""
    if all(node.shape for node in graph.nodes.values()):
        return graph
    builder = GraphBuilder()
    for node in graph.nodes.values():
        name, inputs, attrs = node.name, node.inputs, dict(node.attrs)
        if not node.shape:
            attrs = _reshaped(node, attrs)
            if node.op in ("ReduceSum", "ReduceMax"):
                size = graph[inputs[0]].size
                inputs = (builder.add("Reshape", inputs, (1, size), f"{name}/row"),)
                attrs |= {"axes": (1,), "keepdims": False}
        builder.add(node.op, inputs, node.shape or (1,), name, **attrs)
    return builder.finish(
        graph.inputs,
        graph.outputs,
        input_names=graph.input_names,
        output_names=graph.output_names,
        dtype=graph.dtype,
        source=graph.source,
    )


def _reshaped(node: Node, attrs: dict[str, Any]) -> dict[str, Any]:
    """Attributes whose shape is the node's."""
    key = {"Constant": "value", "Select": "indices"}.get(node.op)
    return attrs if key is None else attrs | {key: attrs[key].reshape(1)}
