"""Walks a proof's tree: what every leaf assumes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from verifier.errors import VerifierError
from verifier.proof.format import INPUT, LEAF, NEURON, Tree


class Rejected(VerifierError):
    """The proof does not prove what it says; the message says where."""


@dataclass(frozen=True)
class Leaf:
    """One leaf: its box [N_in] each, splits of neurons from the top (number, sign), multipliers, row of slopes or -1.

    `box`: numbers the boxes, 0 is the whole one; leaves with the same number have the same.
    """

    lower: np.ndarray
    upper: np.ndarray
    box: int
    splits: tuple[tuple[int, int], ...]
    multipliers: np.ndarray
    slopes: int


def leaves(tree: Tree, lower: np.ndarray, upper: np.ndarray, neurons: int) -> Iterator[Leaf]:
    """The leaves of a tree over a box [N_in], in its order.

    Raises:
        Rejected: a tree that ends too early or too late, or names what does not exist.
    """
    if not tree.kind.shape == tree.number.shape == tree.at.shape:
        raise Rejected("the tree's arrays do not fit together")
    waiting: list[tuple[np.ndarray, np.ndarray, int, tuple[tuple[int, int], ...]]] = [(lower, upper, 0, ())]
    boxes, number, used = 1, 0, 0
    for kind, index, at in zip(tree.kind.tolist(), tree.number.tolist(), tree.at.tolist(), strict=True):
        if not waiting:
            raise Rejected("the tree goes on after its last leaf")
        low, high, box, splits = waiting.pop()
        if kind == LEAF:
            if number >= len(tree.leaf) or used + len(splits) > len(tree.multipliers):
                raise Rejected(f"leaf {number}: no slopes or multipliers are given for it")
            yield Leaf(low, high, box, splits, tree.multipliers[used : used + len(splits)], int(tree.leaf[number]))
            number, used = number + 1, used + len(splits)
        elif kind == NEURON:
            if not 0 <= index < neurons:
                raise Rejected(f"a split names neuron {index} of {neurons}")
            waiting += [(low, high, box, (*splits, (index, -1))), (low, high, box, (*splits, (index, 1)))]
        elif kind == INPUT:
            if not 0 <= index < len(low):
                raise Rejected(f"a split names input {index} of {len(low)}")
            if not low[index] <= at <= high[index]:
                raise Rejected(f"input {index} is split at {at}, outside [{low[index]}, {high[index]}]")
            left, right = high.copy(), low.copy()
            left[index] = right[index] = at
            waiting += [(right, high, boxes + 1, splits), (low, left, boxes, splits)]
            boxes += 2
        else:
            raise Rejected(f"a node of kind {kind}")
    if waiting:
        raise Rejected("the tree is cut short: some of its subdomains are not covered")
    if number != len(tree.leaf) or used != len(tree.multipliers):
        raise Rejected("slopes or multipliers are left over")
