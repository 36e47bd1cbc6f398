"""Fold Scale nodes into the Dense, Conv, ConvTranspose or Scale next to them.

Covers a shift or normalisation before the first layer, MatMul followed by Add, and batch
normalisation before or after a layer, also where a Reshape or Transpose stands in between.
Two Dense layers are never multiplied together: that would change rounding by more than it saves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from verifier.graph.ir import Graph, Node
from verifier.graph.passes.rewrite import View, rewrite
from verifier.graph.passes.rounding import FACTOR, SHIFT, fused_attrs, is_exact, magnitude, products, roundings

_WEIGHTED = ("Dense", "Conv", "ConvTranspose")


@dataclass(frozen=True)
class Scaling:
    """A Scale's arrays, seen from another place: x * scale + shift, with its roundings."""

    scale: np.ndarray
    shift: np.ndarray
    magnitude: np.ndarray
    roundings: int

    @property
    def only_shifts(self) -> bool:
        """True when the factor is 1 everywhere."""
        return bool(np.all(self.scale == 1))


def fold_affine(graph: Graph) -> Graph:
    """Fold every Scale that has a linear neighbour to itself; drop x * 1 + 0."""
    return rewrite(graph, _fold)


def _fold(node: Node, view: View) -> Node | str:
    if node.op == "Scale":
        if is_exact(node) and np.all(node.attrs["scale"] == 1) and roundings(node) == 0:
            return node.inputs[0]
        return _fold_backward(node, view) or node
    if node.op in _WEIGHTED:
        return _fold_forward(node, view) or node
    return node


def _chain(node: Node, view: View) -> tuple[list[Node], Node] | None:
    """(Reshape and Transpose nodes between, nearest last, the linear node above), all read once."""
    between: list[Node] = []
    while True:
        if not view.only_reader(node.inputs[0]):
            return None
        node = view.producer(node)
        if node.op not in ("Reshape", "Transpose"):
            return between, node
        between.append(node)


def _fold_backward(scale: Node, view: View) -> Node | None:
    """The Scale's effect moved into the linear node before it."""
    found = _chain(scale, view)
    if found is None or found[1].op not in FACTOR:
        return None
    between, target = found
    scaling = _scaling(scale)
    below = scale
    for move in between:
        above = view.producer(move)
        scaling = _moved(scaling, below.shape, lambda a, m=move, s=above.shape: _undo(a, m, s))
        below = above
    fused = _after(target, scaling)
    if fused is None:
        return None
    if not between:
        return replace(fused, name=scale.name)
    view.nodes[target.name] = fused
    return replace(between[0], name=scale.name)


def _fold_forward(node: Node, view: View) -> Node | None:
    """The effect of a Scale above moved into this linear node."""
    found = _chain(node, view)
    if found is None or found[1].op != "Scale":
        return None
    between, scale = found
    scaling = _scaling(scale)
    shape = scale.shape
    for move in reversed(between):
        scaling = _moved(scaling, shape, lambda a, m=move: _redo(a, m))
        shape = move.shape
    fused = _before(node, scaling, shape)
    if fused is None:
        return None
    if not between:
        return replace(fused, inputs=scale.inputs)
    view.nodes[between[-1].name] = replace(between[-1], inputs=scale.inputs)
    return fused


def _scaling(node: Node) -> Scaling:
    return Scaling(node.attrs["scale"], node.attrs["shift"], magnitude(node), roundings(node))


def _moved(scaling: Scaling, shape: tuple[int, ...], move) -> Scaling:  # type: ignore[no-untyped-def]
    """The scaling's arrays carried through a Reshape or Transpose; single numbers need no carrying."""

    def carry(a: np.ndarray) -> np.ndarray:
        return a if a.size == 1 else move(np.broadcast_to(a, shape))

    return replace(scaling, scale=carry(scaling.scale), shift=carry(scaling.shift), magnitude=carry(scaling.magnitude))


def _undo(array: np.ndarray, move: Node, shape: tuple[int, ...]) -> np.ndarray:
    return array.reshape(shape) if move.op == "Reshape" else array.transpose(np.argsort(move.attrs["perm"]))


def _redo(array: np.ndarray, move: Node) -> np.ndarray:
    return array.reshape(move.shape) if move.op == "Reshape" else array.transpose(move.attrs["perm"])


def _along(array: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray | None:
    """`array` as a vector over `axis` of `shape`, or None when it varies along another axis."""
    if array.size == 1:
        return np.full(shape[axis], array.reshape(-1)[0])
    full = array.reshape((1,) * (len(shape) - array.ndim) + array.shape)
    line = full[tuple(slice(None) if i == axis else slice(0, 1) for i in range(len(shape)))]
    if not np.array_equal(full, np.broadcast_to(line, full.shape)):
        return None
    return np.broadcast_to(line.reshape(-1), (shape[axis],))


def _vectors(scaling: Scaling, shape: tuple[int, ...], axis: int) -> Scaling | None:
    arrays = [_along(a, shape, axis) for a in (scaling.scale, scaling.shift, scaling.magnitude)]
    if any(a is None for a in arrays):
        return None
    return Scaling(arrays[0], arrays[1], arrays[2], scaling.roundings)  # type: ignore[arg-type]


def _wide(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, dtype=np.float64)


def _shifted(bias: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, int]:
    """(bias + shift, roundings it cost); an absent bias costs none and keeps the file's array."""
    if not np.any(shift):
        return bias, 0
    if not np.any(bias):
        return np.broadcast_to(shift, np.broadcast_shapes(np.shape(bias), np.shape(shift))), 0
    return _wide(bias) + _wide(shift), 1


def _after(target: Node, scaling: Scaling) -> Node | None:
    """`target` followed by the scaling."""
    factor, added = FACTOR[target.op], SHIFT[target.op]
    if target.op == "Scale":
        s: Scaling | None = scaling
    else:
        s = _vectors(scaling, target.shape, len(target.shape) - 1 if target.op == "Dense" else 1)
    if s is None:
        return None
    weight, bias, cost = target.attrs[factor], target.attrs[added], 0
    if not s.only_shifts:
        weight, cost = _wide(weight) * _spread(s.scale, target), 1
        if np.any(bias):
            bias, cost = _wide(bias) * s.scale, 2
    bias, rounded = _shifted(bias, s.shift)
    size = np.abs(s.scale) * _wide(magnitude(target)) + s.magnitude
    total = roundings(target) + s.roundings + cost + rounded
    attrs = dict(target.attrs) | {factor: weight, added: np.array(bias)}
    attrs.pop("deployed_error", None)
    return replace(target, attrs=attrs | fused_attrs(target, total, size))


def _spread(vector: np.ndarray, target: Node) -> np.ndarray:
    """A vector over output channels, shaped to multiply the weight."""
    vector = _wide(vector)
    if target.op == "Conv":
        return vector.reshape(-1, *(1,) * (target.attrs["weight"].ndim - 1))
    if target.op == "ConvTranspose":
        weight, groups = target.attrs["weight"], target.attrs["groups"]
        per_input = np.repeat(vector.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        return per_input.reshape(*per_input.shape, *(1,) * (weight.ndim - 2))
    return vector


def _before(target: Node, scaling: Scaling, shape: tuple[int, ...]) -> Node | None:
    """The scaling, then `target`; zero padding must not meet a shift."""
    s = _vectors(scaling, shape, len(shape) - 1 if target.op == "Dense" else 1)
    if s is None:
        return None
    shifts = bool(np.any(s.shift) or np.any(s.magnitude))
    if shifts and (target.op == "ConvTranspose" or (target.op == "Conv" and any(target.attrs["pads"]))):
        return None
    weight, bias, cost = target.attrs["weight"], target.attrs["bias"], 0
    size = _wide(magnitude(target))
    if shifts:
        bias, cost = _wide(bias) + _through(target, s.shift, _wide(weight)), products(target) + 1
        size = size + _through(target, s.magnitude, np.abs(_wide(weight)))
    if not s.only_shifts:
        weight, cost = _wide(weight) * _spread_inputs(s.scale, target), cost + 1
    total = roundings(target) + s.roundings + cost
    attrs = dict(target.attrs) | {"weight": weight, "bias": bias} | fused_attrs(target, total, size)
    attrs.pop("deployed_error", None)
    return replace(target, attrs=attrs)


def _through(target: Node, vector: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What a constant [in] per channel contributes to every output [out]."""
    vector = _wide(vector)
    if target.op == "Dense":
        return vector @ weight
    groups = target.attrs["groups"]
    taps = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).sum(axis=3)
    return np.einsum("goi,gi->go", taps, vector.reshape(groups, -1)).reshape(-1)


def _spread_inputs(vector: np.ndarray, target: Node) -> np.ndarray:
    """A vector over input channels, shaped to multiply the weight."""
    vector, weight = _wide(vector), target.attrs["weight"]
    if target.op == "Dense":
        return vector[:, None]
    if target.op == "ConvTranspose":
        return vector.reshape(-1, *(1,) * (weight.ndim - 1))
    groups = target.attrs["groups"]
    per_output = np.repeat(vector.reshape(groups, -1), weight.shape[0] // groups, axis=0)
    return per_output.reshape(*per_output.shape, *(1,) * (weight.ndim - 2))
