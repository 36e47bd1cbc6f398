"""Trees: every leaf knows what it assumes, and malformed ones are rejected."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.proof.nets import leaf
from verifier.proof.growth import Growing, grown
from verifier.proof.tree import Rejected, leaves

LOWER, UPPER = np.zeros(3), np.ones(3)


def walked(tree, neurons=10):
    return list(leaves(tree, LOWER, UPPER, neurons))


def a_tree():
    root = Growing()
    left, _ = root.split_input(1, 0.25)
    above, below = left.split_neuron(7)
    above.slopes, above.multipliers = np.array([3], np.uint8), np.array([0.5], np.float32)
    below.multipliers = np.array([0.75], np.float32)
    return grown(root, 0, np.array([0]), np.array([7]))


def test_leaves_know_their_boxes_splits_and_parameters():
    first, second, third = walked(a_tree())
    assert first.splits == ((7, 1),) and second.splits == ((7, -1),) and third.splits == ()
    assert first.box == second.box != third.box
    assert np.array_equal(first.upper, [1, 0.25, 1]) and np.array_equal(first.lower, LOWER)
    assert np.array_equal(third.lower, [0, 0.25, 0]) and np.array_equal(third.upper, UPPER)
    assert (first.slopes, second.slopes, third.slopes) == (0, -1, -1)
    assert first.multipliers.tolist() == [0.5] and second.multipliers.tolist() == [0.75]


@given(st.data())
def test_leaves_cover_every_point(data):
    """Random trees: each point of the box with signs of neurons lies in some leaf."""
    root = Growing()
    leaves_left = [(root, LOWER, UPPER)]
    for _ in range(data.draw(st.integers(0, 8))):
        at = data.draw(st.integers(0, len(leaves_left) - 1))
        node, low, high = leaves_left.pop(at)
        if data.draw(st.booleans()):
            for child in node.split_neuron(data.draw(st.integers(0, 3))):
                leaves_left.append((child, low, high))
            continue
        axis = data.draw(st.integers(0, 2))
        middle = float(low[axis] + data.draw(st.floats(0, 1)) * (high[axis] - low[axis]))
        left, right = node.split_input(axis, middle)
        ends = high.copy(), low.copy()
        ends[0][axis] = ends[1][axis] = middle
        leaves_left += [(left, low, ends[0]), (right, ends[1], high)]
    for node, *_ in leaves_left:
        node.multipliers = np.zeros(20, np.float32)
    waiting = [(root, 0)]
    while waiting:  # as many multipliers as splits of neurons lie above
        node, depth = waiting.pop()
        node.multipliers = node.multipliers[:depth] if not node.children else node.multipliers
        waiting += [(c, depth + (node.kind == 2)) for c in node.children]
    found = walked(grown(root, 0, np.array([0]), np.zeros(0)))
    assert len(found) == len(leaves_left)
    x = np.array(data.draw(st.lists(st.floats(0, 1), min_size=3, max_size=3)))
    z = np.array(data.draw(st.lists(st.sampled_from([-1, 1]), min_size=4, max_size=4)))
    assert any(
        np.all(leaf.lower <= x) and np.all(x <= leaf.upper) and all(z[n] == s for n, s in leaf.splits) for leaf in found
    )


WRONG = {
    "cut short": lambda t: replace(t, kind=t.kind[:-1], number=t.number[:-1], at=t.at[:-1]),
    "goes on": lambda t: replace(
        t, kind=np.append(t.kind, t.kind[-1:]), number=np.append(t.number, 0), at=np.append(t.at, 0.0)
    ),
    "names neuron 99": lambda t: replace(t, number=np.where(t.kind == 2, 99, t.number)),
    "names neuron -1": lambda t: replace(t, number=np.where(t.kind == 2, -1, t.number)),
    "names input 3": lambda t: replace(t, number=np.where(t.kind == 1, 3, t.number)),
    "outside": lambda t: replace(t, at=np.where(t.kind == 1, 1.5, t.at)),
    "outside ": lambda t: replace(t, at=np.where(t.kind == 1, np.nan, t.at)),
    "kind 9": lambda t: replace(t, kind=np.where(t.kind == 2, 9, t.kind)),
    "no slopes or multipliers": lambda t: replace(t, multipliers=t.multipliers[:-1]),
    "left over": lambda t: replace(t, leaf=np.append(t.leaf, 0)),
    "left over ": lambda t: replace(t, multipliers=np.append(t.multipliers, 0)),
}


@pytest.mark.parametrize("message", WRONG)
def test_malformed_trees_are_rejected(message):
    with pytest.raises(Rejected, match=message.strip()):
        walked(WRONG[message](a_tree()))


def test_an_empty_tree_is_rejected():
    none = np.zeros(0)
    with pytest.raises(Rejected, match="cut short"):
        walked(replace(leaf(), kind=none, number=none, at=none))


def test_arrays_of_different_lengths_are_rejected():
    with pytest.raises(Rejected, match="do not fit"):
        walked(replace(a_tree(), at=np.zeros(2)))
