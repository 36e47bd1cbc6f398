"""The one traversal that every pass uses: front to back, each node offered to a rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from verifier.graph.ir import Graph, Node


class View:
    """The nodes rewritten so far, and how often each is read.

    Attributes:
        nodes: name -> node, in evaluation order. A rule may replace a node that it is the only
            reader of; the replacement keeps the name and must read earlier nodes only.
    """

    def __init__(self, graph: Graph):
        self.nodes: dict[str, Node] = {}
        self.uses: dict[str, int] = {name: 0 for name in graph.nodes}
        for node in graph.nodes.values():
            for source in node.inputs:
                self.uses[source] += 1
        for name in graph.outputs:
            self.uses[name] += 1

    def producer(self, node: Node, index: int = 0) -> Node:
        """The node behind input `index`."""
        return self.nodes[node.inputs[index]]

    def only_reader(self, name: str) -> bool:
        """True when one node reads `name` and no output is it."""
        return self.uses[name] == 1

    def reads(self, name: str, change: int) -> None:
        """Record that `change` more (or fewer) places read `name`."""
        self.uses[name] += change


Rule = Callable[[Node, View], "Node | str"]


def rewrite(graph: Graph, rule: Rule) -> Graph:
    """Offer every node to `rule`, which returns it, its replacement, or the name to use instead.

    A rule that changes what a node reads keeps `view.uses` right through `reads`, except where
    it merges a producer it is the only reader of: that producer's reads become its own.
    """
    view = View(graph)
    alias: dict[str, str] = {}
    for original in graph.nodes.values():
        node = original
        if any(i in alias for i in node.inputs):
            node = replace(node, inputs=tuple(alias.get(i, i) for i in node.inputs))
        result = rule(node, view)
        if isinstance(result, str):
            alias[original.name] = result
            view.reads(result, view.uses[original.name])
            for source in node.inputs:
                view.reads(source, -1)
        else:
            view.nodes[original.name] = result
    outputs = tuple(alias.get(name, name) for name in graph.outputs)
    return replace(graph, nodes=view.nodes, outputs=outputs).pruned()
