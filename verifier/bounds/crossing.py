"""The matrices of a `Shortcut`, element by element: rows that each meet few elements need no wide passes.

What lies between a sum and the nodes it is made of adds up and moves elements, bends them one by one,
and multiplies them in pairs, so an element on the way belongs to one row (or to a few). The rows are
carried as lists of such elements, with the same planes and the same rounding terms as `backward`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.bounds.backward import Planes, Shortcut, element_slack
from verifier.bounds.interval import Enclosure
from verifier.bounds.network import Network
from verifier.bounds.rounding import gamma
from verifier.graph.ir import Node
from verifier.ops.linear import LINEAR

#: linear nodes that move, scale or add up single elements
_SIMPLE = frozenset(("Reshape", "Transpose", "Select", "ReduceSum", "Add", "Sub", "Scale"))


@dataclass(frozen=True)
class _Elements:
    """Coefficients [2, E] of the rows +e and -e of which output [E], on which flat element of a node [E]."""

    coeffs: Tensor
    row: Tensor
    at: Tensor

    def moved(self, at: Tensor) -> _Elements:
        """The same coefficients on other elements; those at -1 are dropped."""
        if bool((at < 0).any()):
            kept = at >= 0
            return _Elements(self.coeffs[:, kept], self.row[kept], at[kept])
        return _Elements(self.coeffs, self.row, at)

    def times(self, factor: Tensor | float) -> _Elements:
        """Coefficients multiplied by a factor [E] or [2, E]."""
        return _Elements(self.coeffs * factor, self.row, self.at)


class _Totals:
    """Sums over each row, float64 [2, N]."""

    def __init__(self, size: int, device: torch.device):
        self.offset, self.error, self.magnitude = torch.zeros(3, 2, size, dtype=torch.float64, device=device).unbind()

    def charge(self, elements: _Elements, weight: Tensor) -> None:
        """Rounding that costs `weight` [E] per unit of coefficient."""
        term = torch.where(elements.coeffs == 0, 0.0, elements.coeffs.abs() * weight)
        self.error.index_add_(1, elements.row, term.double())

    def constant(self, elements: _Elements, term: Tensor) -> None:
        """Add terms [2, E] to the offsets."""
        term = torch.where(elements.coeffs == 0, 0.0, term).double()
        self.offset.index_add_(1, elements.row, term)
        self.magnitude.index_add_(1, elements.row, term.abs())


def shortcut_across(
    network: Network, box: Enclosure, planes: Mapping[str, Planes], name: str, stop: frozenset[str]
) -> Shortcut:
    """The enclosure of one box's node `name` in terms of the nodes `stop`, by elements where that can be."""
    return cross(network, box, planes, name, stop) or Shortcut.across(network, box, planes, name, stop)


def cross(
    network: Network, box: Enclosure, planes: Mapping[str, Planes], name: str, stop: frozenset[str]
) -> Shortcut | None:
    """`Shortcut.across` for one box, or None where some node on the way mixes elements."""
    size, device = network.graph[name].size, network.device
    totals = _Totals(size, device)
    ones = torch.ones(size, dtype=network.dtype, device=device)
    each = torch.arange(size, device=device)
    waiting: dict[str, list[_Elements]] = {name: [_Elements(torch.stack([ones, -ones]), each, each)]}
    for node in reversed(network.order):
        if node.name in stop or node.name not in waiting:
            continue
        if node.op in LINEAR and node.op not in _SIMPLE:
            return None
        slack = element_slack(network, node.name, box, planes).reshape(-1)
        for elements in waiting.pop(node.name):
            totals.charge(elements, slack[elements.at])
            step = _linear if node.op in LINEAR else _relaxed
            for source, part in step(network, node, planes, elements, totals):
                waiting.setdefault(source, []).append(part)
    matrices = {}
    for source, parts in waiting.items():
        width = network.graph[source].size
        both = torch.zeros(2, size * width, dtype=network.dtype, device=device)
        most = int(torch.bincount(torch.cat([p.row * width + p.at for p in parts])).max())
        weight = 2 * gamma(most + 1, network.own_unit) * box.magnitude(source).reshape(-1)
        for part in parts:
            both.index_add_(1, part.row * width + part.at, part.coeffs)
            if most > 1:
                totals.charge(part, weight[part.at])
        matrices[source] = both.reshape(2 * size, width)
    return Shortcut.of(network, box, matrices, totals.offset, totals.error, totals.magnitude)


def _linear(
    network: Network, node: Node, planes: Mapping[str, Planes], elements: _Elements, totals: _Totals
) -> list[tuple[str, _Elements]]:
    """The elements of a node's inputs behind these of a linear node."""
    at, source = network.at[node.name], node.inputs[0]
    inner = network.graph[source].shape
    if node.op == "Select":
        return [(source, elements.moved(at["indices"].reshape(-1)[elements.at]))]
    if node.op in ("Reshape", "Transpose"):
        flat = torch.arange(node.size, device=network.device).reshape(1, *inner)
        return [(source, elements.moved(LINEAR[node.op].value(at, [flat]).reshape(-1)[elements.at]))]
    if node.op == "ReduceSum":
        axes = sorted(a % len(inner) for a in node.attrs["axes"])
        kept = [i for i in range(len(inner)) if i not in axes]
        flat = torch.arange(network.graph[source].size, device=network.device).reshape(inner)
        cells = flat.permute(*kept, *axes).reshape(node.size, -1)[elements.at]
        count = cells.shape[1]
        coeffs = elements.coeffs.repeat_interleave(count, dim=1)
        return [(source, _Elements(coeffs, elements.row.repeat_interleave(count), cells.reshape(-1)))]
    if node.op == "Scale":
        scale, shift = (at[k].broadcast_to(node.shape).reshape(-1)[elements.at] for k in ("scale", "shift"))
        totals.constant(elements, elements.coeffs * shift)
        return [(source, elements.times(scale))]
    second = elements if node.op == "Add" else elements.times(-1.0)
    return [(source, elements), (node.inputs[1], second)]


def _relaxed(
    network: Network, node: Node, planes: Mapping[str, Planes], elements: _Elements, totals: _Totals
) -> list[tuple[str, _Elements]]:
    """The elements behind these of a nonlinear node, by its planes."""
    plane = planes[node.name]

    def chosen(lower: Tensor, upper: Tensor) -> Tensor:
        below, above = (t.broadcast_to(1, 1, *node.shape).reshape(-1)[elements.at] for t in (lower, upper))
        return torch.where(elements.coeffs >= 0, below, above)

    totals.constant(elements, elements.coeffs * chosen(plane.lower_offset, plane.upper_offset))
    slopes = zip(plane.lower_slopes, plane.upper_slopes, strict=True)
    return [(source, elements.times(chosen(*pair))) for source, pair in zip(node.inputs, slopes, strict=True)]
