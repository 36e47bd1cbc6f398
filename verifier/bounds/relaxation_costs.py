"""What each relaxation costs a linear bound where that bound is smallest: a score for splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from verifier.bounds.backward import Planes
from verifier.bounds.interval import Enclosure
from verifier.bounds.network import Network
from verifier.ops.elementwise import ELEMENTWISE

#: Share of the widest gap of a relaxation in its cost.
WIDEST_SHARE = 0.01


def costs(
    network: Network,
    visits: Mapping[str, Tensor],
    planes: Mapping[str, Planes],
    box: Enclosure,
    best: Tensor,
    values: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Bounded node -> [B, size]: what the relaxations that read each element cost the row `best` [B].

    With `values` the network's own at the point where the bound is smallest, |A| * |plane - f| summed
    over all relaxations is all that the bound of an unsplit box is below the row there. The widest gaps,
    which the scores of BaBSR and kFSB go by, only break ties: a relaxation may be loose far from that point.

    Args:
        visits: coefficients A that arrived at relaxed nodes, [B, S, *shape]; planes: what they met.
        values: name -> [B, *shape].
    """
    rows = torch.arange(len(best), device=best.device)
    found: dict[str, Tensor] = {}
    for name, coeffs in visits.items():
        node, plane, a = network.graph[name], planes[name], coeffs[rows, best]
        # The point may break splits made before: what they made exact costs nothing more.
        at = [values[i].clamp(box.lower[i], box.upper[i]) for i in node.inputs]
        here = _gaps(plane, best, at, network.node_value(node, at))
        below, above = (
            gap + WIDEST_SHARE * most for gap, most in zip(here, _widest(network, name, plane, box, best), strict=True)
        )
        cost = torch.nan_to_num((a.clamp(min=0) * below - a.clamp(max=0) * above).flatten(1), nan=0.0, posinf=1e30)
        for source in node.inputs:
            origin, index = network.moved.get(source, (source, None))
            if origin not in found:
                found[origin] = cost.new_zeros(len(best), network.graph[origin].size)
            found[origin] = found[origin] + cost if index is None else found[origin].index_add(1, index, cost)
    return found


def _widest(network: Network, name: str, plane: Planes, box: Enclosure, best: Tensor) -> tuple[Tensor, Tensor]:
    """Largest distance of each plane from the function, sampled at the ends and the split point."""
    node = network.graph[name]
    ends = [(box.lower[i], box.upper[i]) for i in node.inputs]
    if node.op == "Mul":
        area = (ends[0][1] - ends[0][0]) * (ends[1][1] - ends[1][0]) * 0.25
        return area, area
    rule, (low, high) = ELEMENTWISE[node.op], ends[0]
    sampled = [_gaps(plane, best, [x], rule.value(x, node)) for x in (low, rule.split_point(low, high, node), high)]
    below, above = (torch.stack(torch.broadcast_tensors(*side)).amax(0) for side in zip(*sampled, strict=True))
    return below, above


def _gaps(plane: Planes, best: Tensor, inputs: Sequence[Tensor], value: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of the best rows' planes below and above from the value at a point, [B, *shape] each."""
    rows = torch.arange(len(best), device=best.device)

    def at(slopes: Sequence[Tensor], offset: Tensor) -> Tensor:
        own = [t[:, 0] if t.shape[1] == 1 else t[rows, best] for t in (*slopes, offset)]
        return sum((slope * x for slope, x in zip(own[:-1], inputs, strict=True)), own[-1])

    below = value - at(plane.lower_slopes, plane.lower_offset)
    return below.clamp(min=0), (at(plane.upper_slopes, plane.upper_offset) - value).clamp(min=0)
