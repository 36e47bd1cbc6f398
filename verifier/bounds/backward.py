"""Backward linear bound propagation (CROWN): rows over any nodes become linear forms in the inputs.

One side only: a row r gives A, d with r @ z >= A @ x + d on the box; upper bounds are lower bounds
of negated rows. The traversal knows linear nodes (transposed maps) and relaxed nodes (planes).
Source: Zhang et al. 2018, arXiv:1811.00866; splits: Wang et al. 2021, arXiv:2103.06624.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.bounds.curvature import Curvature
from verifier.bounds.interval import Enclosure
from verifier.bounds.network import Network
from verifier.bounds.partition import common_part
from verifier.bounds.product_step import FreeProduct
from verifier.bounds.relax_step import RelaxStep, dot, sum_of_used
from verifier.bounds.rounding import gamma
from verifier.bounds.row_map import RowMap
from verifier.ops.base import may_hold
from verifier.ops.elementwise import ELEMENTWISE
from verifier.ops.linear import LINEAR
from verifier.ops.product import product_planes


@dataclass(frozen=True)
class Planes:
    """Linear enclosure of one relaxed node: one slope per input; tensors [B, 1 or S, *shape].

    Attributes:
        together: rows [B, S, *shape] -> a rigorous offset of each under slopes that are the same above and below,
            float64 [B, S], -inf where nothing is known, and the curvature, if any, that comes with it.
    """

    lower_slopes: tuple[Tensor, ...]
    lower_offset: Tensor
    upper_slopes: tuple[Tensor, ...]
    upper_offset: Tensor
    together: Callable[[Tensor], tuple[Tensor, Curvature | None]] | None = None


@dataclass(frozen=True)
class Split:
    """Half-spaces sign * (z - point) >= 0 on a node's neurons, with multipliers.

    sign: [B, *shape] in {-1, 0, +1}; point: [B, *shape]; multiplier >= 0: [B, S, *shape].
    """

    sign: Tensor
    point: Tensor
    multiplier: Tensor


@dataclass(frozen=True)
class LinearForm:
    """rows @ z >= coeffs @ x + offset - error. coeffs [B, S, N_in]; offset, error float64 [B, S].

    `visits` keeps the coefficients that arrived at relaxed nodes, for branching scores; empty
    unless asked for.
    """

    coeffs: Tensor
    offset: Tensor
    error: Tensor
    visits: Mapping[str, Tensor]


def relax(network: Network, box: Enclosure, name: str, free: tuple[Tensor, Tensor] | None = None) -> Planes:
    """Planes of relaxed node `name` from the bounds of its inputs.

    Args:
        free: free parameters for the lower and upper plane, [B, S, *shape]; None for the rule's start.
    """
    node = network.graph[name]
    bounds = [(box.lower[i].unsqueeze(1), box.upper[i].unsqueeze(1)) for i in node.inputs]
    if node.op == "Mul":
        (xl, xu), (yl, yu) = bounds
        if free is None:
            half = torch.full_like(xl, 0.5)
            free = (half, half)
        below, above = product_planes(xl, xu, yl, yu, *free)
        return Planes((below.slope_x, below.slope_y), below.offset, (above.slope_x, above.slope_y), above.offset)
    lower, upper = bounds[0]
    lines = ELEMENTWISE[node.op].lines(lower, upper, node, *(free or (None, None)))
    return Planes((lines.slope_lower,), lines.offset_lower, (lines.slope_upper,), lines.offset_upper)


@dataclass
class Sums:
    """What rows collected on their way, float64 [B, S] each; rounding of `offset` scales with `magnitude`."""

    offset: Tensor
    magnitude: Tensor
    error: Tensor
    curvature: Curvature | None = None

    def better(self, term: Tensor, joint: Tensor, curvature: Curvature | None) -> Tensor:
        """The larger of two offsets; the curvature that comes with the second is kept where that was it."""
        if curvature is not None:
            chosen = (joint >= term)[..., None, None]
            kept = Curvature(curvature.cube, torch.where(chosen, curvature.matrix, 0.0))
            self.curvature = kept.plus(self.curvature)
        return torch.maximum(term, joint)

    def constant(self, term: Tensor) -> None:
        """Add terms to the offset."""
        self.offset = self.offset + term
        self.magnitude = self.magnitude + term.abs()

    def rounded_up(self, network: Network) -> Tensor:
        """The error with its own rounding (it is summed in the engine's dtype) and that of the float64 offset."""
        return self.error * (1 + 4 * gamma(network.widest + 64, network.own_unit)) + 2.0**-45 * self.magnitude


def backward(
    network: Network,
    start: Mapping[str, Tensor],
    box: Enclosure,
    planes: Mapping[str, Planes],
    splits: Mapping[str, Split] | None = None,
    *,
    keep_visits: bool = False,
    rigorous: bool = True,
    shortcuts: Mapping[str, Shortcut] | None = None,
    products: Mapping[str, FreeProduct] | None = None,
) -> LinearForm:
    """Carry rows back to the inputs.

    Args:
        start: name -> coefficients [B, S, *shape]; the bounded quantity is their sum over names.
        box: supplies the rounding slack.
        planes: enclosures of the relaxed nodes that can be met.
        splits: half-spaces known to hold, with multipliers.
        rigorous: False leaves `error` at 0 (inside an optimisation loop; never for a claim).
        shortcuts: ready-made maps across parts of the network, made from the same box and planes.
        products: products without planes; never for a claim.
    """
    visits: dict[str, Tensor] | None = {} if keep_visits else None
    known = {} if shortcuts is None else shortcuts  # not `or`: an empty one fills itself as rows pass
    domain = _Domain(network, box, planes, splits or {}, known, rigorous, {} if rigorous else products or {})
    coeffs, sums = _carry(domain, start, frozenset(network.graph.inputs), visits)
    b, s = sums.offset.shape
    parts = []
    for name in network.graph.inputs:
        a = coeffs.get(name)
        if a is None:
            a = torch.zeros(b, s, *network.graph[name].shape, dtype=network.dtype, device=network.device)
        elif rigorous or name in domain.splits:
            a = _arrive(domain, name, a, sums)
        parts.append(a.flatten(2))
    flat = torch.cat(parts, dim=2)
    if sums.curvature is not None:
        added, offset, error = sums.curvature.tangent(flat, network.own_unit)
        flat = flat + added
        sums.constant(offset)
        sums.error = sums.error + error
    error = sums.rounded_up(network) if rigorous else sums.error
    return LinearForm(flat, sums.offset, error, visits or {})


@dataclass(frozen=True)
class _Domain:
    """What a pass needs to know besides its rows; see `backward`."""

    network: Network
    box: Enclosure
    planes: Mapping[str, Planes]
    splits: Mapping[str, Split]
    shortcuts: Mapping[str, Shortcut]
    rigorous: bool
    products: Mapping[str, FreeProduct]


def _carry(
    domain: _Domain, start: Mapping[str, Tensor], stop: frozenset[str], visits: dict[str, Tensor] | None = None
) -> tuple[dict[str, Tensor], Sums]:
    """Carry rows down to the nodes of `stop`, whose own rounding and splits are left to the caller."""
    network = domain.network
    coeffs: dict[str, Tensor] = dict(start)
    b, s = next(iter(start.values())).shape[:2]
    zero = torch.zeros(b, s, dtype=torch.float64, device=network.device)
    sums = Sums(zero, zero, zero)

    def add(name: str, value: Tensor) -> None:
        if name not in coeffs:
            coeffs[name] = value
            return
        if domain.rigorous:
            # Two contributions may cancel, so their rounding is charged before they are summed.
            size = coeffs[name].abs() + value.abs()
            sums.error = sums.error + 2 * network.own_unit * weigh(size, domain.box.magnitude(name))
        coeffs[name] = coeffs[name] + value

    for node in reversed(network.order):
        name = node.name
        if name not in coeffs or name in stop:
            continue
        a = coeffs.pop(name)
        shortcut = domain.shortcuts.get(name)
        if shortcut is not None:
            for source, part in shortcut.apply(domain, a, sums).items():
                add(source, part)
            continue
        a = _arrive(domain, name, a, sums)
        if node.op in LINEAR:
            rule, at = LINEAR[node.op], network.at[name]
            constant = rule.constant(at)
            if constant is not None:
                sums.constant(dot(a, constant.broadcast_to(node.shape)))
            for source, part in zip(node.inputs, rule.transpose(at, a.flatten(0, 1)), strict=True):
                add(source, part.reshape(b, s, *part.shape[1:]))
            continue
        if name in domain.products:
            *both, term = domain.products[name].step(a)
            for source, part in zip(node.inputs, both, strict=True):
                add(source, part)
            sums.constant(term)
            continue
        plane = domain.planes[name]
        if name in network.partitions:
            a = _recentre(domain, name, a, sums)
        if visits is not None:
            visits[name] = a
        if len(node.inputs) == 1:
            part, term = RelaxStep.apply(
                a, plane.lower_slopes[0], plane.lower_offset, plane.upper_slopes[0], plane.upper_offset
            )
            add(node.inputs[0], part)
        else:
            positive, negative = a.clamp(min=0), a.clamp(max=0)
            for k, source in enumerate(node.inputs):
                add(source, positive * plane.lower_slopes[k] + negative * plane.upper_slopes[k])
            term = dot(positive, plane.lower_offset) + dot(negative, plane.upper_offset)
            if plane.together is not None:
                term = sums.better(term, *plane.together(a))
        sums.constant(term)
    return coeffs, sums


def _arrive(domain: _Domain, name: str, a: Tensor, sums: Sums) -> Tensor:
    """Apply a node's split to the rows that reached it, and charge the node's rounding."""
    network = domain.network
    split = domain.splits.get(name)
    if split is not None:
        step = split.multiplier * split.sign.unsqueeze(1)
        a = a - step
        sums.offset = sums.offset + dot(step, split.point.unsqueeze(1))
        if domain.rigorous:
            size = domain.box.magnitude(name) + split.point.abs()
            sums.error = sums.error + 4 * network.own_unit * weigh(split.multiplier, size)
    if domain.rigorous:
        sums.error = sums.error + weigh(a.abs(), element_slack(network, name, domain.box, domain.planes))
    return a


def _recentre(domain: _Domain, name: str, a: Tensor, sums: Sums) -> Tensor:
    """Move what the coefficients on weights that sum to one have in common into the offset.

    The weights meant are those of exact arithmetic, which the planes bound, too; how far the deployed
    program's are from them was charged with the rows as they arrived.
    """
    box, unit = domain.box, domain.network.own_unit
    mu = common_part(a, box.upper[name] - box.lower[name])
    flat = mu.flatten(2).double()
    sums.offset, sums.magnitude = sums.offset + flat.sum(-1), sums.magnitude + flat.abs().sum(-1)
    a = a - mu
    if domain.rigorous:
        plane = domain.planes[name]
        offsets = torch.maximum(plane.lower_offset.abs(), plane.upper_offset.abs())
        size = box.magnitude(name).unsqueeze(1) + offsets  # [B, 1 or S, *shape]
        sums.error = sums.error + 8 * unit * weigh(a.abs(), size.squeeze(1) if size.shape[1] == 1 else size)
    return a


@dataclass(frozen=True)
class Shortcut:
    """A rigorous linear enclosure, from below, of a node's elements and of their negations, as matrices.

    For element i of the node and the nodes X it is made of:
         y_i >= sum_X maps[X][i] @ x + offset[0, i] - error[0, i],
        -y_i >= sum_X maps[X][N + i] @ x + offset[1, i] - error[1, i].
    Rows then cross a large elementwise part of a network, such as attention, as small matrix products.

    Attributes:
        maps: name -> [2 N, N_X]; offset, error, magnitude: float64 [2, N]; reach: float64 [N],
            sum |coefficients| |x|, what the rounding of the products scales with.
    """

    maps: Mapping[str, RowMap]
    offset: Tensor
    error: Tensor
    magnitude: Tensor
    reach: Tensor

    @property
    def flops(self) -> float:
        """Floating-point operations for one row."""
        return 2.0 * sum(part.entries for part in self.maps.values())

    def apply(self, domain: _Domain, a: Tensor, sums: Sums) -> dict[str, Tensor]:
        """Carry rows [B, S, *shape of the node] across; returns name -> [B, S, *shape].

        The enclosure holds on every box inside the one it was made from.
        """
        b, s = a.shape[:2]
        rows = a.flatten(0, 1).flatten(1)
        signs = torch.cat([rows.clamp(min=0), -rows.clamp(max=0)], dim=1)
        precise = signs.double()

        def total(pair: Tensor) -> Tensor:
            return (precise @ pair.reshape(-1)).reshape(b, s)

        sums.offset = sums.offset + total(self.offset)
        if domain.rigorous:
            sums.magnitude = sums.magnitude + total(self.magnitude)
            own = 2 * gamma(2 * rows.shape[1] + 4, domain.network.own_unit)
            sums.error = sums.error + total(self.error) + own * total(self.reach.repeat(2))
        return {
            name: part.apply(signs).reshape(b, s, *domain.network.graph[name].shape) for name, part in self.maps.items()
        }

    @staticmethod
    def across(
        network: Network, box: Enclosure, planes: Mapping[str, Planes], name: str, stop: frozenset[str]
    ) -> Shortcut:
        """The enclosure of one box's node `name` in terms of the nodes `stop`."""
        node = network.graph[name]
        unit = torch.eye(node.size, dtype=network.dtype, device=network.device)
        both = torch.cat([unit, -unit]).reshape(1, 2 * node.size, *node.shape)
        coeffs, sums = _carry(_Domain(network, box, planes, {}, {}, True, {}), {name: both}, stop)
        matrices = {source: rows.flatten(2)[0] for source, rows in coeffs.items()}
        offset, error, magnitude = (t.reshape(2, node.size) for t in (sums.offset, sums.error, sums.magnitude))
        return Shortcut.of(network, box, matrices, offset, error, magnitude)

    @staticmethod
    def of(
        network: Network,
        box: Enclosure,
        matrices: Mapping[str, Tensor],
        offset: Tensor,
        error: Tensor,
        magnitude: Tensor,
    ) -> Shortcut:
        """From dense matrices name -> [2 N, N_X], and the rest as described for the class."""
        reach = torch.zeros(offset.shape[1], dtype=torch.float64, device=network.device)
        for source, matrix in matrices.items():
            larger = torch.maximum(*matrix.abs().chunk(2)).double()
            reach = reach + larger @ box.magnitude(source).double().reshape(-1)
        maps = {source: RowMap.of(matrix) for source, matrix in matrices.items()}
        return Shortcut(maps, offset, error, magnitude, reach)


def element_slack(network: Network, name: str, box: Enclosure, planes: Mapping[str, Planes]) -> Tensor:
    """Rounding slack per unit of coefficient on a node, the product with its planes' offsets included.

    [B, *shape], or [B, S, *shape] where the planes differ between rows.
    """
    slack = box.slack[name]
    plane = planes.get(name)
    if plane is None:
        return slack
    offsets = torch.maximum(plane.lower_offset.abs(), plane.upper_offset.abs())
    if offsets.shape[1] == 1:
        return slack + 4 * network.own_unit * offsets.squeeze(1)
    return slack.unsqueeze(1) + 4 * network.own_unit * offsets


def weigh(size: Tensor, weight: Tensor) -> Tensor:
    """sum(size * weight) over the node's axes, float64 [B, S]; infinite weights count only where used.

    size [B, S, *shape]; weight [B or 1, *shape] or [B, S, *shape].
    """
    rows = size.flatten(2)
    if weight.ndim == size.ndim:
        return sum_of_used(rows, rows * weight.flatten(2))
    weight = weight.flatten(1).unsqueeze(2)  # [B or 1, N, 1]
    if weight.shape[0] == 1:
        weight = weight[0]
    endless = ~torch.isfinite(weight)
    if may_hold(endless):
        total, used = (rows @ torch.cat([torch.where(endless, 0.0, weight), endless.to(weight.dtype)], -1)).unbind(-1)
        return torch.where(used > 0, torch.inf, total).double()
    return (rows @ weight).squeeze(-1).double()
