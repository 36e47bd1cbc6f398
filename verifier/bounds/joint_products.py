"""A weighted sum of products bounded as one quadratic form in the inputs, instead of product by product.

McCormick planes let every factor be anywhere in its interval, so a sum such as x^T P x pays for corners
that its factors, all functions of the same few inputs, never reach together. Here each factor has an
affine enclosure around its value at the middle of the box, z = p + a @ t + e with t in [-1, 1]^n and
|e| <= noise; then with centres p of x and q of y

    sum k x y = sum k (q x + p y - p q) + sum k (x - p)(y - q),

where the linear part goes on backwards as that of any plane does, and the rest is at least

    min_t t^T (sum k a b^T) t - sum |k| (|a|_1 noise_y + |b|_1 noise_x + noise_x noise_y).

What is convex in it stays a quadratic form until the row's linear part is known (curvature.py), so a convex
sum of products of linear functions is bounded exactly. The form's negative part and the noise are charged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.bounds.backward import LinearForm, Planes, backward, relax
from verifier.bounds.curvature import Cube, Curvature
from verifier.bounds.interval import Enclosure
from verifier.bounds.network import Network
from verifier.bounds.quadratic_form import convex_part, termwise_minimum
from verifier.ops.elementwise import ELEMENTWISE
from verifier.ops.product import centred_offsets

#: Inputs of nonzero width up to which a matrix of their pairs, and its eigenvectors, cost little beside the passes.
MOST_INPUTS = 16


def pays(network: Network, lower: Tensor, upper: Tensor) -> bool:
    """Whether products occur and few enough inputs move on boxes [B, N_in]."""
    if not any(network.graph[name].op == "Mul" for name in network.relaxed):
        return False
    return int((lower < upper).any(0).sum()) <= MOST_INPUTS


@dataclass(frozen=True)
class AffineEnclosure:
    """|z - center - coeffs @ t| <= noise for t in [-1, 1]^n, t the inputs in half-widths from the box's middle.

    Attributes:
        center: in the engine's dtype, [B, N]; coeffs: float64 [B, N, n]; noise: float64 [B, N], may be inf.
    """

    center: Tensor
    coeffs: Tensor
    noise: Tensor

    @classmethod
    def of(cls, form: LinearForm, cube: Cube, low: Tensor, high: Tensor) -> AffineEnclosure:
        """From the forms of N elements' unit rows; low, high: their bounds [B, N], which hold the center."""
        count = form.coeffs.shape[1] // 2
        coeffs, offset = form.coeffs.double(), form.offset - form.error
        value = (coeffs @ cube.middle.unsqueeze(-1)).squeeze(-1) + offset
        size = (coeffs.abs() @ cube.magnitude.unsqueeze(-1)).squeeze(-1) + form.offset.abs() + form.error
        below, above = value[:, :count], -value[:, count:]
        center = torch.fmin(torch.fmax((0.5 * (below + above)).to(low.dtype), low), high)
        wide = coeffs * cube.radius.unsqueeze(1)
        mean = 0.5 * (wide[:, :count] - wide[:, count:])
        rounding = (coeffs.shape[-1] + 16) * 2.0**-51 * (size[:, :count] + size[:, count:] + center.double().abs())
        down = center - below + (wide[:, :count] - mean).abs().sum(-1)
        up = above - center + (wide[:, count:] + mean).abs().sum(-1)
        noise = torch.maximum(down, up).clamp(min=0) + rounding
        mean = mean[:, :, cube.moving]
        lost = ~torch.isfinite(noise) | ~torch.isfinite(mean).all(-1)
        return cls(center, mean.masked_fill(lost.unsqueeze(-1), 0.0), noise.masked_fill(lost, torch.inf))

    def at(self, index: Tensor | None) -> AffineEnclosure:
        """The enclosure of the elements `index`, None for all."""
        if index is None:
            return self
        return AffineEnclosure(self.center[:, index], self.coeffs[:, index], self.noise[:, index])


@dataclass(frozen=True)
class JointProduct:
    """How the elements of one product node go together on B boxes."""

    x: AffineEnclosure
    y: AffineEnclosure
    cube: Cube

    def offset(self, rows: Tensor) -> tuple[Tensor, Curvature | None]:
        """What rows [B, S, *shape] of the products leave besides the slopes; see `Planes.together`."""
        k = rows.flatten(2).double()
        b, s, count = k.shape
        n = len(self.cube.moving)
        found = torch.full((b, s), -torch.inf, dtype=torch.float64, device=k.device)
        used = (k != 0).any(-1).any(0)
        k = k[:, used]
        form = torch.einsum("bsi,bij,bik->bsjk", k, self.x.coeffs, self.y.coeffs)
        reach_x, reach_y = self.x.coeffs.abs().sum(-1), self.y.coeffs.abs().sum(-1)
        p, q = self.x.center.double(), self.y.center.double()
        noise = _total(k.abs(), reach_x * self.y.noise + reach_y * self.x.noise + self.x.noise * self.y.noise)
        size = noise + _total(k.abs(), reach_x * reach_y + (p * q).abs())
        # One product curves down as much as up.
        convex, least = convex_part(form) if count > 1 else (None, termwise_minimum(form))
        offset = least - noise - _total(k, p * q) - (2 * count + n * n + 32) * 2.0**-52 * size
        found[:, used] = torch.nan_to_num(offset, nan=-torch.inf, posinf=-torch.inf)
        if convex is None:
            return found, None
        matrix = torch.zeros(b, s, n, n, dtype=torch.float64, device=k.device)
        matrix[:, used] = convex
        return found, Curvature(self.cube, matrix)


def _total(k: Tensor, weight: Tensor) -> Tensor:
    """sum_i k[b, s, i] weight[b, i]; an infinite weight counts only where used."""
    return torch.where(k == 0, 0.0, k * weight.unsqueeze(1)).sum(-1)


class JointProducts:
    """Planes of the product nodes of a network on some boxes that know how their elements go together.

    Args:
        planes: of every relaxed node, those of products from here.
        domain: lower, upper [B, N_in].
    """

    def __init__(self, network: Network, box: Enclosure, planes: Mapping[str, Planes], domain: tuple[Tensor, Tensor]):
        self._network, self._box, self._cube = network, box, Cube.of(*domain)
        self._enclosures: dict[str, AffineEnclosure] = {}
        self._parallel = _ParallelPlanes(network, box, planes)

    def relax(self, name: str) -> Planes | None:
        """Planes through the factors' centres; None for other nodes, and where a factor is not bounded."""
        network, box = self._network, self._box
        node = network.graph[name]
        if node.op != "Mul" or any(network.graph[i].shape != node.shape for i in node.inputs):
            return None
        ends = [(box.lower[i], box.upper[i]) for i in node.inputs]
        if not all(bool(torch.isfinite(end).all()) for pair in ends for end in pair):
            return None
        x, y = (self._enclosure(i) for i in node.inputs)
        p, q = (z.center.reshape(-1, *node.shape) for z in (x, y))
        below, above = centred_offsets(*ends[0], *ends[1], p, q)
        slopes = (q.unsqueeze(1), p.unsqueeze(1))
        return Planes(slopes, below.unsqueeze(1), slopes, above.unsqueeze(1), JointProduct(x, y, self._cube).offset)

    def _enclosure(self, name: str) -> AffineEnclosure:
        origin, index = self._network.moved.get(name, (name, None))
        if origin not in self._enclosures:
            low, high = self._box.lower[origin].flatten(1), self._box.upper[origin].flatten(1)
            self._enclosures[origin] = AffineEnclosure.of(self._pass_back(origin), self._cube, low, high)
        return self._enclosures[origin].at(index)

    def _pass_back(self, name: str) -> LinearForm:
        network, b = self._network, len(self._cube.middle)
        node = network.graph[name]
        unit = torch.eye(node.size, dtype=network.dtype, device=network.device)
        rows = torch.cat([unit, -unit]).expand(b, -1, -1).reshape(b, -1, *node.shape)
        return backward(network, {name: rows}, self._box, self._parallel)


class _ParallelPlanes(Mapping[str, Planes]):
    """The planes between which each neuron varies least; products keep theirs."""

    def __init__(self, network: Network, box: Enclosure, planes: Mapping[str, Planes]):
        self._network, self._box, self._planes = network, box, planes
        self._made: dict[str, Planes] = {}

    def __getitem__(self, name: str) -> Planes:
        if name not in self._made:
            node = self._network.graph[name]
            rule = ELEMENTWISE.get(node.op)
            if rule is None:
                self._made[name] = self._planes[name]
            else:
                low, high = self._box.lower[node.inputs[0]], self._box.upper[node.inputs[0]]
                free = rule.parallel(low.unsqueeze(1), high.unsqueeze(1), node)
                self._made[name] = relax(self._network, self._box, name, free)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)
