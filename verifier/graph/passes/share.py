"""Compute equal subexpressions once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from verifier.graph.ir import Graph, Node
from verifier.graph.passes.rewrite import View, rewrite

# Weighted layers are left alone: comparing their weights would cost more than it finds.
_SKIPPED = ("Input", "Dense", "Conv", "ConvTranspose", "BlockDense")


def share_equal(graph: Graph) -> Graph:
    """Alias every node that repeats an earlier one: same operator, inputs, shape and attributes."""
    first: dict[Hashable, str] = {}

    def rule(node: Node, view: View) -> Node | str:
        if node.op in _SKIPPED:
            return node
        key = (node.op, node.inputs, node.shape, *sorted((k, _key(v)) for k, v in node.attrs.items()))
        earlier = first.setdefault(key, node.name)
        return node if earlier == node.name else earlier

    return rewrite(graph, rule)


def _key(value: Any) -> Hashable:
    if isinstance(value, np.ndarray):
        return ("array", str(value.dtype), value.shape, value.tobytes())
    return (type(value).__name__, repr(value))
