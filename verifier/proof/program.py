"""A network as the checker sees it: sums of products, functions of one number, maxima; and how each is rounded.

Errors follow `graph/passes/rounding.py`: the deployed program's result of a linear step differs from the exact one on
the same inputs by at most gamma_R (|W| |x| + magnitude), in any summation order.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from verifier.errors import UnsupportedOperator
from verifier.graph.ir import Graph, Node
from verifier.graph.passes.rounding import SHIFT, magnitude, roundings
from verifier.proof.curves import CENTER, DEPLOYED
from verifier.proof.linear import Matrix, matrices, offset, per_number, reduced

#: Unit round-off of the checker's own float64 arithmetic.
UNIT = 2.0**-53
_DEPLOYED = {"float32": (2.0**-24, 2.0**-126), "float64": (2.0**-53, 2.0**-1022)}
#: Linear operators that the deployed program computes without rounding.
_EXACT = ("Constant", "Reshape", "Transpose", "Select", "Concat")
KINKED = ("Relu", "LeakyRelu")


def gamma(terms: float, unit: float = UNIT) -> float:
    """gamma_n = n u / (1 - n u) of a sum of n products, rounded up; inf where it says nothing."""
    product = terms * unit
    return product / (1 - product) * (1 + 1e-12) if product < 0.5 else np.inf


@dataclass(frozen=True)
class Step:
    """One node. `sources` are the steps it reads.

    Attributes:
        parts: of a linear step, one matrix [size, size of the source] for each source; () for Input and Constant.
        added: float64 [size]. magnitude: [size], |terms| behind it before they cancel.
        share: deployed error relative to |W| |x| + magnitude; least: absolute, for every unit of 1 + |x| + |W|.
        alpha: of a kinked step, its slope below zero. curve: of an S-shaped one, its operator.
        groups: of a maximum, int [size, K], what each result is the largest of. All three None for a linear step.
    """

    name: str
    size: int
    sources: tuple[str, ...]
    parts: tuple[Matrix, ...] = ()
    added: np.ndarray = field(default_factory=lambda: np.zeros(0))
    magnitude: np.ndarray = field(default_factory=lambda: np.zeros(0))
    share: float = 0.0
    least: float = 0.0
    alpha: float | None = None
    curve: str | None = None
    groups: np.ndarray | None = None

    @cached_property
    def sizes(self) -> tuple[Matrix, ...]:
        """|W| of every part."""
        return tuple(abs(part) for part in self.parts)

    @cached_property
    def largest(self) -> float:
        """The largest |coefficient|."""
        entries = (size if isinstance(size, np.ndarray) else size.data for size in self.sizes)
        return max((float(np.max(e, initial=0.0)) for e in entries), default=0.0)

    @cached_property
    def most_met(self) -> int:
        """Of a maximum, most results that one number of the source may be."""
        return int(np.bincount(np.asarray(self.groups).reshape(-1)).max())

    @cached_property
    def row_terms(self) -> int:
        """Most products behind one result."""
        return sum(_most(part, 1) for part in self.parts)

    @cached_property
    def column_terms(self) -> int:
        """Most results that one number of a source is part of."""
        return max((_most(part, 0) for part in self.parts), default=0)


def _most(part: Matrix, axis: int) -> int:
    if isinstance(part, np.ndarray):
        return int(part.shape[axis])
    return int(np.max(part.getnnz(axis=axis), initial=0))


class Program:
    """The steps of a graph in evaluation order.

    Args:
        rounded: count the deployed program's rounding; off for bounds in real arithmetic.
    Raises:
        UnsupportedOperator: another node than linear ones, Relu, LeakyRelu with a slope in [0, 1], Sigmoid, Tanh and
            ReduceMax.
    """

    def __init__(self, graph: Graph, *, rounded: bool):
        self.graph, self.rounded = graph, rounded
        self.unit, self.tiny = _DEPLOYED[graph.dtype]
        self.steps: dict[str, Step] = {name: self._step(node) for name, node in graph.nodes.items()}
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self.readers = {name: len(found) for name, found in graph.consumers().items()}
        self.widest = max(s.size for s in self.steps.values())
        self.curved = frozenset(s.sources[0] for s in self.steps.values() if s.curve is not None)
        #: What functions of one number read, in evaluation order: the neurons that proofs split, and their numbers.
        self.neurons: dict[str, slice] = {}
        self.neuron_count = 0
        for step in self.steps.values():
            if (step.alpha is not None or step.curve is not None) and step.sources[0] not in self.neurons:
                first, self.neuron_count = self.neuron_count, self.neuron_count + step.size
                self.neurons[step.sources[0]] = slice(first, self.neuron_count)

    def _step(self, node: Node) -> Step:
        if node.op == "Input":
            return Step(node.name, node.size, ())
        if node.op in KINKED:
            alpha = float(node.attrs.get("alpha", 0.0))
            if not 0.0 <= alpha <= 1.0:
                raise UnsupportedOperator(node.op, node.name, f"proofs need a slope in [0, 1], got {alpha}")
            share = 3 * self.unit * (1 + 1e-6) if alpha > 0 and self.rounded else 0.0
            return Step(node.name, node.size, node.inputs, share=share, least=self.tiny * (share > 0), alpha=alpha)
        if node.op in CENTER:
            share = DEPLOYED[node.op] * self.unit if self.rounded else 0.0
            return Step(node.name, node.size, node.inputs, share=share, curve=node.op)
        if node.op == "ReduceMax":
            return Step(node.name, node.size, node.inputs, groups=reduced(self.graph, node))
        parts, added = matrices(self.graph, node), offset(node)
        size = np.abs(added)
        if node.op in SHIFT:
            size = np.maximum(per_number(node, magnitude(node)), size)
        step = Step(node.name, node.size, node.inputs, parts, added, size)
        share, least = self._rounding(node, step.row_terms)
        return replace(step, share=share, least=least)

    def _rounding(self, node: Node, terms: int) -> tuple[float, float]:
        """(share, least) of a linear step."""
        fixed, fused = node.attrs.get("deployed_error"), int(node.attrs.get("rounding_terms", 0))
        if node.op in _EXACT:
            return 0.0, 0.0
        if not self.rounded or fixed == 0.0:  # the coefficients themselves are rounded where something was fused
            return (gamma(terms + fused + 1) if fused else 0.0), 0.0
        count = roundings(node) if node.op in SHIFT else terms + fused
        if fixed is not None:
            raise UnsupportedOperator(node.op, node.name, "proofs do not know this node's rounding")
        # Products, operands and sums below the smallest normal number may be flushed.
        return (gamma(count + 1, self.unit) if count else 0.0), 4 * (terms + 4) * self.tiny


def product(values: np.ndarray, matrix: Matrix) -> np.ndarray:
    """values [R, rows] @ matrix [rows, columns]."""
    if isinstance(matrix, np.ndarray):
        return values @ matrix
    return np.ascontiguousarray((matrix.T @ values.T).T)


def image(matrix: Matrix, values: np.ndarray) -> np.ndarray:
    """The matrix [rows, columns] on every row of values [R, columns]: [R, rows]."""
    if isinstance(matrix, np.ndarray):
        return values @ matrix.T
    return np.ascontiguousarray((matrix @ values.T).T)
