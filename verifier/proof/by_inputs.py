"""Grows a tree for all clauses of a case by splitting inputs."""

from __future__ import annotations

import numpy as np

from verifier.bounds.engine import BoxEngine
from verifier.proof.check import Checker
from verifier.proof.format import Tree
from verifier.proof.growth import LEAST_MARGIN, Growing, NotProved, grown, one_leaf
from verifier.proof.tree import Leaf
from verifier.run import Run
from verifier.search.input_split import bisect
from verifier.spec.groups import Group

#: Boxes bounded at once.
BOXES = 256


def input_tree(checker: Checker, engine: BoxEngine, group: Group, run: Run) -> Tree:
    """The tree of a group with one box; the engine bounds boxes first, so that the checker sees hopeful ones only.

    Raises:
        NotProved: the time was over, or a box is too small to split.
    """
    root, case = Growing(), int(group.case[0])
    waiting = [(group.lower, group.upper, [root])]
    while waiting:
        if run.stopped():
            raise NotProved(f"{sum(len(nodes) for *_, nodes in waiting)} boxes were left when the time was over")
        lower, upper, nodes = waiting.pop()
        if len(nodes) > BOXES:
            waiting.append((lower[BOXES:], upper[BOXES:], nodes[BOXES:]))
            lower, upper, nodes = lower[:BOXES], upper[:BOXES], nodes[:BOXES]
        bounds = engine.bound_boxes(lower, upper, group.rows.coeffs)
        margins = bounds.lower - group.limits
        # The engine does not know what cuts the boxes.
        hopeful = np.flatnonzero(group.rows.proved(margins).all(axis=1) | (group.inputs is not None))
        is_open = np.ones(len(nodes), dtype=bool)
        is_open[hopeful] = ~held(checker, case, lower[hopeful], upper[hopeful])
        run.visited += len(nodes)
        left = np.flatnonzero(is_open)
        if not len(left):
            continue
        margins = margins[left]
        margins[group.rows.proved(margins).all(axis=1)] = -1.0  # where only the checker's bounds are not enough
        low, high, _, stuck = bisect(bounds.pick(left), group, margins, lower[left], upper[left])
        if stuck.any():
            raise NotProved("a box is too small to split")
        children = []
        for k, parent in enumerate(left):
            axis = int(np.flatnonzero(high[k] < upper[parent])[0])
            children.append(nodes[parent].split_input(axis, float(high[k, axis])))
        waiting.append((low, high, [pair[0] for pair in children] + [pair[1] for pair in children]))
        run.tick(sum(len(nodes) for *_, nodes in waiting), float(margins.max()))
    return grown(root, case, checker.clauses_of(case), np.zeros(0))


def held(checker: Checker, case: int, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Which boxes [B, N_in] of a case are leaves with nothing given, bool [B]."""
    if not len(lower):
        return np.zeros(0, dtype=bool)
    none = np.zeros(0, np.float32)
    boxes = [Leaf(low, high, k, (), none, -1) for k, (low, high) in enumerate(zip(lower, upper, strict=True), 1)]
    return checker.margins(one_leaf(case, checker.clauses_of(case)), boxes) > LEAST_MARGIN
