"""Rewrites that make a graph smaller without changing what it computes, in one fixed order."""

from __future__ import annotations

from collections.abc import Callable

from verifier.graph.grammar import check
from verifier.graph.ir import Graph
from verifier.graph.passes.activations import recognize_activations
from verifier.graph.passes.affine import fold_affine
from verifier.graph.passes.layout import merge_layout
from verifier.graph.passes.share import share_equal

#: Layout first, so that folding sees neighbours; once more after activations were recognised,
#: because their leftover factors fold in turn.
PASSES: tuple[Callable[[Graph], Graph], ...] = (
    merge_layout,
    share_equal,
    fold_affine,
    recognize_activations,
    fold_affine,
    merge_layout,
    share_equal,
)


def simplify(graph: Graph) -> Graph:
    """Apply every pass and check the result against the grammar after each (the weights' values at the end).

    Returns:
        An equivalent graph: `evaluate` agrees to float64 round-off, and the rounding attributes
        still cover the deployed program (passes/rounding.py).
    Raises:
        NetworkError, ShapeError: a rewrite produced an illegal graph.
    """
    for rewrite in PASSES:
        graph = rewrite(graph)
        check(graph, constants=False)
    check(graph)
    return graph
