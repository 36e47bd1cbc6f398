"""A proof's tree while it grows: nodes that become leaves or splits, written down in preorder at the end."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from verifier.errors import VerifierError
from verifier.proof.format import INPUT, LEAF, NEURON, Tree

#: A leaf is kept when its margin is larger, so that another machine's rounding does not turn it.
LEAST_MARGIN = 1e-9


class NotProved(VerifierError):
    """The time was over, or a subdomain was left that cannot be split; says which."""


@dataclass
class Growing:
    """A subdomain. `children`: none while it is open or a leaf; first x_i <= at or z >= 0, then the other side.

    `slopes`: uint8 [F] of a leaf, None for the default; `multipliers`: one for each split of a neuron above it.
    """

    kind: int = LEAF
    number: int = 0
    at: float = 0.0
    children: tuple[Growing, ...] = ()
    slopes: np.ndarray | None = None
    multipliers: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def split_input(self, number: int, at: float) -> tuple[Growing, ...]:
        """The children left and right of `at`."""
        self.kind, self.number, self.at, self.children = INPUT, number, at, (Growing(), Growing())
        return self.children

    def split_neuron(self, number: int) -> tuple[Growing, ...]:
        """The children above and below zero."""
        self.kind, self.number, self.children = NEURON, number, (Growing(), Growing())
        return self.children


def one_leaf(case: int, clauses: np.ndarray) -> Tree:
    """The tree of a box that is not split, with default slopes."""
    return grown(Growing(), case, clauses, np.zeros(0))


def grown(root: Growing, case: int, clauses: np.ndarray, free: np.ndarray) -> Tree:
    """The tree of a finished `root`; `free` are the neurons whose slopes its leaves give."""
    kind, number, at, leaf = [], [], [], []
    slopes: list[np.ndarray] = []
    multipliers: list[np.ndarray] = []
    waiting = [root]
    while waiting:
        node = waiting.pop()
        kind.append(node.kind)
        number.append(node.number)
        at.append(node.at)
        waiting += reversed(node.children)
        if node.children:
            continue
        leaf.append(-1 if node.slopes is None else len(slopes))
        if node.slopes is not None:
            slopes.append(node.slopes)
        multipliers.append(node.multipliers)
    return Tree(
        case,
        np.asarray(clauses, dtype=np.int32),
        np.array(kind, dtype=np.uint8),
        np.array(number, dtype=np.int32),
        np.array(at, dtype=np.float64),
        np.asarray(free, dtype=np.int32),
        np.array(slopes, dtype=np.uint8).reshape(len(slopes), len(free)),
        np.array(leaf, dtype=np.int32),
        np.concatenate([*multipliers, np.zeros(0, np.float32)]).astype(np.float32),
    )
