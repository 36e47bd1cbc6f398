"""Merge neighbouring Reshape, Transpose and Select nodes; drop those that change nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from verifier.graph.ir import Graph, Node
from verifier.graph.passes.rewrite import View, rewrite


def merge_layout(graph: Graph) -> Graph:
    """Every chain of layout nodes becomes as few nodes as it needs."""
    return rewrite(graph, _merge)


def _merge(node: Node, view: View) -> Node | str:
    if node.op == "Concat" and len(node.inputs) == 1:
        return node.inputs[0]
    if node.op not in ("Reshape", "Transpose", "Select"):
        return node
    above = view.producer(node)
    while (merged := _pair(node, above, view.only_reader(above.name))) is not None:
        if not view.only_reader(above.name):
            view.reads(above.name, -1)
            view.reads(above.inputs[0], 1)
        node, above = merged, view.nodes[above.inputs[0]]
    return node.inputs[0] if _changes_nothing(node, above) else _plain(node, above)


def _changes_nothing(node: Node, above: Node) -> bool:
    if node.shape != above.shape:
        return False
    if node.op == "Select":
        return _is_copy(node, above)
    return node.op == "Reshape" or node.attrs["perm"] == tuple(range(len(node.shape)))


def _is_copy(node: Node, above: Node) -> bool:
    return node.size == above.size and np.array_equal(node.attrs["indices"].reshape(-1), np.arange(above.size))


def _plain(node: Node, above: Node) -> Node:
    """A Select that copies everything in order is a Reshape."""
    return replace(node, op="Reshape", attrs={}) if node.op == "Select" and _is_copy(node, above) else node


def _pair(node: Node, above: Node, alone: bool) -> Node | None:
    """`node` reading what `above` reads, or None; `alone`: nothing else reads `above`.

    Reading through a Reshape is free; a Select is composed only where that removes a node.
    """
    if above.op == "Reshape" and node.op in ("Reshape", "Select"):
        return replace(node, inputs=above.inputs)
    if not alone:
        return None
    if above.op == "Transpose" and node.op == "Transpose":
        perm = tuple(above.attrs["perm"][p] for p in node.attrs["perm"])
        return replace(node, inputs=above.inputs, attrs={"perm": perm})
    if above.op == "Select":
        indices = above.attrs["indices"]
        if node.op == "Reshape":
            moved = indices.reshape(node.shape)
        elif node.op == "Transpose":
            moved = indices.transpose(node.attrs["perm"])
        else:
            outer = node.attrs["indices"]
            moved = np.where(outer < 0, -1, indices.reshape(-1)[np.maximum(outer, 0)])
        return replace(node, op="Select", inputs=above.inputs, attrs={"indices": np.ascontiguousarray(moved)})
    if above.op == "Transpose" and node.op == "Select":
        perm = above.attrs["perm"]
        before = [above.shape[i] for i in np.argsort(perm)]
        source = np.arange(above.size, dtype=np.int64).reshape(before).transpose(perm).reshape(-1)
        outer = node.attrs["indices"]
        moved = np.where(outer < 0, -1, source[np.maximum(outer, 0)])
        return replace(node, inputs=above.inputs, attrs={"indices": moved})
    return None
