"""Interval propagation with rounding slack, and the place where tighter bounds are asked for.

Source: Gowal et al. 2018, arXiv:1810.12715; rounding terms: METHODS section 7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from verifier.bounds.network import MOVES, Network
from verifier.bounds.rounding import cast_up, gamma
from verifier.bounds.summation import ordered_error
from verifier.graph.ir import Node
from verifier.ops.base import NodeTensors
from verifier.ops.elementwise import ELEMENTWISE
from verifier.ops.linear import LINEAR
from verifier.ops.product import product_interval


@dataclass
class Enclosure:
    """Bounds on every value the deployed program computes, for B boxes.

    Attributes:
        lower, upper: name -> [B, *shape].
        slack: name -> [B, *shape] >= 0: per unit of coefficient on this node, what rounding can take
            from a bound: the deployed program's error at the node, and our own in applying it.
    """

    lower: dict[str, Tensor] = field(default_factory=dict)
    upper: dict[str, Tensor] = field(default_factory=dict)
    slack: dict[str, Tensor] = field(default_factory=dict)

    def magnitude(self, name: str) -> Tensor:
        """max(|lower|, |upper|)."""
        return torch.maximum(self.lower[name].abs(), self.upper[name].abs())

    def tighten(self, name: str, lower: Tensor, upper: Tensor) -> None:
        """Intersect with other valid bounds of the same node; NaN tightens nothing."""
        self.lower[name] = torch.fmax(self.lower[name], lower)
        self.upper[name] = torch.fmin(self.upper[name], upper)


Refine = Callable[[str, Enclosure], None]


def propagate(
    network: Network,
    lower: Tensor,
    upper: Tensor,
    refine: Refine | None = None,
    known: Enclosure | None = None,
) -> Enclosure:
    """Bound every node over boxes [B, N_in].

    Args:
        refine: called as refine(name, enclosure so far) for each node that a nonlinear node reads;
            may tighten that node in place.
        known: valid bounds to intersect with (a parent's).
    """
    box = Enclosure(network.split_inputs(lower), network.split_inputs(upper))
    for name in network.graph.inputs:
        # The deployed program reads the input exactly; our slopes on it are rounded once each.
        box.slack[name] = 4 * network.own_unit * box.magnitude(name)
    bounded = set(network.bounded)
    for name in network.graph.inputs:
        if name in bounded and refine is not None:
            refine(name, box)
    for node in network.order:
        _bound_node(network, node, box)
        name = node.name
        if known is not None and name in known.lower:
            box.tighten(name, known.lower[name], known.upper[name])
        if name in bounded:
            box.slack[name] = box.slack[name] + 4 * network.own_unit * box.magnitude(name) + network.tiny
            if refine is not None:
                refine(name, box)
    return box


def follow(network: Network, box: Enclosure, name: str) -> None:
    """Carry tighter bounds of a node on: to nodes that move its data, and across elementwise functions."""
    changed = {name}
    for node in network.order:
        if changed.isdisjoint(node.inputs) or not (node.op in MOVES or node.op in ELEMENTWISE):
            continue
        low, high, slack = box.lower[node.name], box.upper[node.name], box.slack[node.name]
        _bound_node(network, node, box)
        box.tighten(node.name, low, high)
        box.slack[node.name] = slack
        changed.add(node.name)


def _bound_node(network: Network, node: Node, box: Enclosure) -> None:
    name = node.name
    if node.op in LINEAR:
        lower, upper, slack = _linear(network, node, box)
    else:
        if node.op == "Mul":
            x, y = node.inputs
            lower, upper = product_interval(box.lower[x], box.upper[x], box.lower[y], box.upper[y])
            slack = network.deployed_unit * torch.maximum(lower.abs(), upper.abs())
        else:
            source = node.inputs[0]
            rule = ELEMENTWISE[node.op]
            lower, upper = rule.interval(box.lower[source], box.upper[source], node)
            unit = network.deployed_unit
            slack = (
                rule.deployed_error(box.lower[source], box.upper[source], node, unit)
                if unit
                else torch.zeros_like(lower)
            )
        slack = _override(network, node, slack)
        slack = slack * (1 + 8 * network.own_unit)
        lower, upper = _widen(network, lower, upper, slack)
        if node.op in ELEMENTWISE and ELEMENTWISE[node.op].never_negative(node):
            lower = lower.clamp(min=0)
    if network.largest < torch.finfo(network.dtype).max:
        # What the engine can still represent may be infinite in the deployed program.
        lower = lower.masked_fill(lower < -network.largest, -torch.inf)
        upper = upper.masked_fill(upper > network.largest, torch.inf)
    undefined = torch.isnan(lower) | torch.isnan(upper)
    box.lower[name] = lower.masked_fill(undefined, -torch.inf)
    box.upper[name] = upper.masked_fill(undefined, torch.inf)
    box.slack[name] = torch.nan_to_num(slack, nan=torch.inf, posinf=torch.inf)


def _override(network: Network, node: Node, slack: Tensor) -> Tensor:
    fixed = node.attrs.get("deployed_error")
    if fixed is None:
        return slack
    return torch.full_like(slack, float(fixed) if network.deployed_unit else 0.0)


def _widen(network: Network, lower: Tensor, upper: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    """Move both ends outward by `by`, rounded outward."""
    step = 2 * network.own_unit
    down = lower - by
    up = upper + by
    moved = by > 0
    down = torch.where(moved, down - down.abs() * step, down)
    up = torch.where(moved, up + up.abs() * step, up)
    return down, up


def _linear(network: Network, node: Node, box: Enclosure) -> tuple[Tensor, Tensor, Tensor]:
    rule, at = LINEAR[node.op], network.at[node.name]
    lows, highs = [box.lower[i] for i in node.inputs], [box.upper[i] for i in node.inputs]
    if rule.terms(at) == 0 and at.extra_roundings == 0 and (node.op != "Constant"):
        low = rule.value(at, lows)
        return low, rule.value(at, highs), torch.zeros_like(low)
    summands, fixed = rule.summands(at), node.attrs.get("deployed_error")
    roundings = summands + 1 + at.extra_roundings if summands or at.extra_roundings else 0  # else data only moves
    own = gamma(roundings + 4, network.own_unit)
    # What a backward pass loses here: its own sums, and the constants' roundings where they were fused.
    carry = gamma(rule.carried(at) + 4, network.own_unit) + gamma(roundings, 2.0**-53)
    deployed = gamma(roundings, network.deployed_unit) * (1 + 4 * network.own_unit)
    constant = rule.constant_magnitude(at)

    def magnitude(sizes: list[Tensor]) -> Tensor:
        """Sum of |terms| where the inputs have these magnitudes, constants included."""
        total = rule.magnitude(at, sizes)
        if constant is not None:
            total = total + constant
        # Sums of magnitudes are themselves rounded: 1 + 2 gamma covers it.
        return (total * (1 + 2 * own) + (summands + 2) * network.tiny).broadcast_to(total.shape[0], *node.shape)

    def theirs(total: Tensor) -> Tensor:
        """Rounding of the deployed program, whatever the order of its sums."""
        if node.op == "Constant" or not network.deployed_unit:
            return torch.zeros_like(total)
        return torch.full_like(total, float(fixed)) if fixed is not None else deployed * total

    ends = rule.ends(at, lows, highs)
    if ends is not None:
        size = magnitude([torch.maximum(low.abs(), high.abs()) for low, high in zip(lows, highs, strict=True)])
        low_size, high_size = (magnitude([x.abs() for x in end]) for end in ends)
        least, most = rule.value(at, ends[0]), rule.value(at, ends[1])
        low = _widen(network, least, least, theirs(low_size) + 3 * own * low_size)[0]
        high = _widen(network, most, most, theirs(high_size) + 3 * own * high_size)[1]
        if rule.keeps_sign(at):
            # Neither program's rounding takes such a sum below 0, where a square root would end.
            negative = rule.magnitude(at, [(~(x >= 0)).to(x.dtype) for x in lows])
            low = torch.where(negative == 0, low.clamp(min=0), low)
        low = low.masked_fill(low_size > network.largest, -torch.inf)
        high = high.masked_fill(high_size > network.largest, torch.inf)
        return low, high, (theirs(size) + carry * size).masked_fill(size > network.largest, torch.inf)
    centers, radii = [], []
    for low, high in zip(lows, highs, strict=True):
        finite = torch.isfinite(low) & torch.isfinite(high)
        center = torch.where(finite, 0.5 * low + 0.5 * high, 0.0)
        radius = torch.maximum(high - center, center - low) * (1 + 4 * network.own_unit) + network.tiny
        centers.append(center)
        radii.append(torch.where(low == high, torch.zeros_like(radius), radius))
    size = magnitude([torch.maximum(low.abs(), high.abs()) for low, high in zip(lows, highs, strict=True)])
    middle = rule.value(at, centers)
    reach = rule.magnitude(at, radii) * (1 + 2 * own) + 3 * own * size
    slack = theirs(size)
    if network.deployed_unit and fixed is None and node.op != "Constant":
        halved = _partial_sums(network, at.extra_roundings, summands, size, middle.abs() + reach, constant)
        slack = torch.fmin(slack, halved)
        if _sums_inputs(network, node, summands) and lows[0].shape[0] == 1:
            slack = torch.fmin(slack, _ordered_sums(network, at, lows[0], highs[0], constant, size))
    slack = slack.masked_fill(size > network.largest, torch.inf)  # some partial sum may overflow
    lower, upper = _widen(network, middle, middle, reach + slack)
    return lower, upper, slack + carry * size


#: Sums of at least this many inputs are worth a closer look at their rounding, up to this many numbers.
_LONG_SUM, _MOST_TERMS = 64, 1 << 22


def _sums_inputs(network: Network, node: Node, terms: int) -> bool:
    """Long sums over the inputs themselves: their rounding is carried through everything that follows."""
    if terms < _LONG_SUM or len(node.inputs) != 1 or node.inputs[0] not in network.graph.inputs:
        return False
    return node.size * network.graph[node.inputs[0]].size <= _MOST_TERMS


def _ordered_sums(
    network: Network, at: NodeTensors, low: Tensor, high: Tensor, constant: Tensor | None, size: Tensor
) -> Tensor:
    """Rounding of a sum of products in any order, from its own terms on one box; see `ordered_error`.

    Args:
        low, high: the input, [1, *shape]; constant: magnitude of what is added; size: sum of |terms|, [1, *shape].
    """
    node = at.node
    unit_rows = torch.eye(node.size, dtype=network.dtype, device=network.device)
    (weights,) = LINEAR[node.op].transpose(at, unit_rows.reshape(-1, *node.shape))
    weights = weights.flatten(1).double()
    summands = int((weights != 0).sum(1).max())  # adding a zero rounds nothing
    order = weights.abs().topk(summands, dim=1).indices
    weights = weights.gather(1, order)
    ends = [weights * x.double().reshape(1, -1).expand(node.size, -1).gather(1, order) for x in (low, high)]
    least, most = torch.minimum(*ends), torch.maximum(*ends)
    own = None if constant is None else constant.double().broadcast_to(node.shape).reshape(-1).cpu().numpy()
    parts = (least.cpu().numpy(), most.cpu().numpy(), own, size.double().reshape(-1).cpu().numpy())
    error = ordered_error(*parts, fused=at.extra_roundings, unit=network.deployed_unit)
    error += (summands + 3 + at.extra_roundings) * float(np.finfo(network.source.dtype).tiny)
    return cast_up(torch.as_tensor(error), network.dtype, network.device).reshape(1, *node.shape)


def _partial_sums(
    network: Network, extra: int, terms: int, size: Tensor, reach: Tensor, constant: Tensor | None
) -> Tensor:
    """Rounding of a sum of products in any order, from the largest partial sum there can be.

    A partial sum holds some of the terms, so it lies between minus the sum N of the negative ones and
    the sum P of the positive ones, and max(P, N) = (|terms| + |result|) / 2: half of what the usual
    bound gamma_n |terms| takes it for where terms cancel. Every term is rounded once as a product, and
    once for each operation fused into it; second-order terms are below 4 n u of the whole.

    Args:
        size: sum of |terms|; reach: at least |result|; constant: magnitude of what is added at the end.
    """
    most = 0.5 * (size + reach)
    if constant is not None:
        most = most + constant
    unit = network.deployed_unit
    return ((2 + extra) * size + (terms + 1) * most) * (unit * (1 + 8 * (terms + 2 + extra) * unit))
