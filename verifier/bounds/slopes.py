"""Free parameters of the relaxations (alpha) and multipliers of splits (beta), and their ascent.

Parameters are kept for open neurons only, in one flat axis over all relaxed nodes, so that a
subdomain is a row. Any value in range is sound, so the ascent itself needs no rigour: whoever
claims a bound evaluates once more with `rigorous=True`.
Source: Xu et al. 2021, arXiv:2011.13824 (alpha); Wang et al. 2021, arXiv:2103.06624 (beta).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.bounds.backward import LinearForm, Planes, Shortcut, backward, relax
from verifier.bounds.clause_rows import ClauseRows
from verifier.bounds.concretize import InputShape, climb, concretize
from verifier.bounds.interval import Enclosure
from verifier.bounds.network import Network
from verifier.bounds.product_step import FreeProduct
from verifier.bounds.repeated import WORTH_RECORDING, Repeated
from verifier.ops.elementwise import ELEMENTWISE


@dataclass(frozen=True)
class _Segment:
    """Where one relaxed node's parameters live: flat open elements, and slices of the flat axis."""

    name: str
    elements: Tensor
    lower: slice | None
    upper: slice | None


class SlopeSpace:
    """The flat axis of free parameters, F in all, laid out for the open neurons of an enclosure.

    Args:
        without: relaxed nodes that have no parameters and need no planes, because shortcuts cross them.
    """

    def __init__(
        self,
        network: Network,
        box: Enclosure,
        open_neurons: dict[str, Tensor],
        upto: str | None = None,
        without: frozenset[str] = frozenset(),
    ):
        self.network, self.without = network, without
        self.segments: list[_Segment] = []
        self.size = 0
        for name in network.relaxed:
            if name == upto:
                break
            if name in without:
                continue
            node = network.graph[name]
            if node.op == "Mul":
                free = (True, False)  # one serves both planes, since a row meets only one of them
            else:
                rule = ELEMENTWISE[node.op]
                free = (rule.free_lower, rule.free_upper)
            elements = _open_elements(network, name, open_neurons)
            if len(elements) == 0 or not any(free):
                continue
            slices: list[slice | None] = []
            for wanted in free:
                slices.append(slice(self.size, self.size + len(elements)) if wanted else None)
                self.size += len(elements) if wanted else 0
            self.segments.append(_Segment(name, elements, *slices))

    def start(self, box: Enclosure) -> Tensor:
        """The rules' default parameters, [B, 1, F]."""
        b = next(iter(box.lower.values())).shape[0]
        flat = torch.full((b, 1, self.size), 0.5, dtype=self.network.dtype, device=self.network.device)
        for segment in self.segments:
            node = self.network.graph[segment.name]
            if node.op == "Mul":
                continue
            low, high = box.lower[node.inputs[0]], box.upper[node.inputs[0]]
            for chosen, value in zip(
                (segment.lower, segment.upper), ELEMENTWISE[node.op].start(low, high, node), strict=True
            ):
                if chosen is not None:
                    value = value.expand(b, *node.shape)
                    flat[:, 0, chosen] = value.reshape(b, -1)[:, segment.elements]
        return flat

    def planes(self, box: Enclosure, free: Tensor, fixed: Mapping[str, Planes]) -> dict[str, Planes]:
        """Planes under parameters free [B, S, F]; nodes without parameters come from `fixed`."""
        found = dict(fixed)
        for name, lower, upper in self._parameters(free):
            found[name] = relax(self.network, box, name, (lower, upper))
        return found

    def climbing(
        self, box: Enclosure, free: Tensor, fixed: Mapping[str, Planes]
    ) -> tuple[dict[str, Planes], dict[str, FreeProduct]]:
        """`planes` for an ascent, with products apart in the form that it passes fastest."""
        found, products = dict(fixed), {}
        for name, lower, upper in self._parameters(free):
            node = self.network.graph[name]
            if node.op == "Mul":
                x, y = ((box.lower[i].unsqueeze(1), box.upper[i].unsqueeze(1)) for i in node.inputs)
                products[name] = FreeProduct(lower, x, y)
            else:
                found[name] = relax(self.network, box, name, (lower, upper))
        return found, products

    def _parameters(self, free: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Nodes with the parameters of their lower and upper planes out of free [B, S, F].

        [B, S, *shape], or of one element where there are none; a product's serve both planes.
        """
        b, s = free.shape[:2]
        parts = iter(free.split(self._widths, dim=2))  # one gradient for all, where slices would give one each
        for segment in self.segments:
            node = self.network.graph[segment.name]
            pair = []
            for chosen in (segment.lower, segment.upper):
                if chosen is None:
                    pair.append(free.new_full((1, 1, *(1 for _ in node.shape)), 0.5))
                    continue
                full = next(parts)
                if len(segment.elements) < node.size:
                    full = free.new_full((b, s, node.size), 0.5).index_copy(2, segment.elements, full)
                pair.append(full.reshape(b, s, *node.shape))
            yield segment.name, pair[0], pair[0 if node.op == "Mul" else 1]

    @property
    def _widths(self) -> list[int]:
        """Lengths of the pieces of the flat axis, in order."""
        pieces = (chosen for segment in self.segments for chosen in (segment.lower, segment.upper))
        return [chosen.stop - chosen.start for chosen in pieces if chosen is not None]

    def part_of(self, other: SlopeSpace, free: Tensor) -> Tensor:
        """These parameters out of those [..., F_other] of a space that has them all."""
        theirs = {segment.name: segment for segment in other.segments}
        parts = []
        for segment in self.segments:
            whole = theirs[segment.name]
            pairs = ((segment.lower, whole.lower), (segment.upper, whole.upper))
            parts += [free[..., chosen] for mine, chosen in pairs if mine is not None]
        return torch.cat(parts, dim=-1) if parts else free[..., :0]

    def fixed_planes(self, box: Enclosure, upto: str | None = None) -> dict[str, Planes]:
        """Planes of the relaxed nodes that have no parameters."""
        own = {segment.name for segment in self.segments}
        found: dict[str, Planes] = {}
        for name in self.network.relaxed:
            if name == upto:
                break
            if name not in own and name not in self.without:
                found[name] = relax(self.network, box, name)
        return found


def _open_elements(network: Network, name: str, open_neurons: dict[str, Tensor]) -> Tensor:
    """Flat elements of a relaxed node that read an open neuron."""
    mask = torch.zeros(network.graph[name].size, dtype=torch.bool, device=network.device)
    for source in network.graph[name].inputs:
        origin, index = network.moved.get(source, (source, None))
        if origin not in open_neurons:
            continue
        is_open = torch.zeros(network.graph[origin].size, dtype=torch.bool, device=network.device)
        is_open[open_neurons[origin]] = True
        mask |= is_open if index is None else is_open[index]
    return mask.nonzero().squeeze(1)


@dataclass
class Ascent:
    """One maximisation of lower bounds over slopes and split multipliers.

    Attributes:
        start: rows to bound, name -> [B, S, *shape].
        box, lower, upper, shape: the domain; lower, upper [B, N_in].
        splits: maps multipliers [B, S, K] to what `backward` takes, or None without splits.
        stop: says from the current bounds [B, S] whether to end early.
        shortcuts: maps across relaxed nodes that the space leaves out.
        clause: what the rows are bounded under, with the multipliers [B, S, its rows].
    """

    network: Network
    space: SlopeSpace
    start: dict[str, Tensor]
    box: Enclosure
    lower: Tensor
    upper: Tensor
    shape: InputShape | None = None
    splits: Callable[[Tensor], dict] | None = None
    upto: str | None = None
    shortcuts: Mapping[str, Shortcut] | None = None
    clause: ClauseRows | None = None

    def evaluate(
        self, free: Tensor, beta: Tensor | None, fixed: dict[str, Planes], *, rigorous: bool, keep_visits: bool = False
    ) -> tuple[Tensor, LinearForm, Tensor, dict[str, Planes]]:
        """Lower bounds [B, S], their form, the minimisers and the planes used (all, if visits are kept)."""
        splits = self.splits(beta) if self.splits is not None and beta is not None else None
        products: dict[str, FreeProduct] = {}
        if rigorous or keep_visits:
            planes = self.space.planes(self.box, free, fixed)
        else:
            planes, products = self.space.climbing(self.box, free, fixed)
        form = backward(
            self.network,
            self.start if self.clause is None or beta is None else self.clause.added(self.start, beta),
            self.box,
            planes,
            splits,
            rigorous=rigorous,
            keep_visits=keep_visits,
            shortcuts=self.shortcuts,
            products=products,
        )
        if rigorous or self.shape is not None:
            value, minimiser = concretize(form, self.lower, self.upper, self.shape)
        else:
            value, minimiser = climb(form, self.lower, self.upper)
        if self.clause is not None and beta is not None:
            value = self.clause.less(value, beta, self.box)
        return value, form, minimiser, planes

    def run(
        self,
        free: Tensor,
        beta: Tensor | None,
        iterations: int,
        stop: Callable[[Tensor], bool],
        rate: float = 0.25,
        beta_rate: float = 0.1,
    ) -> tuple[Tensor, Tensor | None]:
        """The best parameters met, for each row on its own."""
        climb = _Climb(self, free, beta, [rate, beta_rate])
        recorded = Repeated(climb.step) if free.is_cuda and iterations >= WORTH_RECORDING else None
        for step in range(iterations):
            moved = recorded is not None and recorded.run()
            total = None if moved else climb.look()
            if step == iterations - 1 or stop(climb.best) or not (moved or climb.move(total)):
                break
        best = climb.best_values
        return best[0], None if beta is None else best[1]


class _Climb:
    """Where an ascent is, and the best of each row so far; all of it tensors that change in place.

    Attributes:
        best: bounds [B, S]; best_values: the parameters they came with, slopes first, then multipliers if any.
    """

    def __init__(self, ascent: Ascent, free: Tensor, beta: Tensor | None, rates: Sequence[float]):
        self._ascent = ascent
        self._fixed = ascent.space.fixed_planes(ascent.box, ascent.upto)
        self._adams = [_Adam(free, rates[0], 1.0)]
        if beta is not None:
            self._adams.append(_Adam(beta, rates[1], torch.inf))
        self.best = torch.full(free.shape[:2], -torch.inf, dtype=torch.float64, device=free.device)
        self.best_values = [adam.value.detach().clone() for adam in self._adams]

    def look(self) -> Tensor:
        """Bound the rows with the current parameters and keep them where they are the best; the bounds' sum."""
        values = [adam.value for adam in self._adams]
        with torch.enable_grad():
            value, *_ = self._ascent.evaluate(values[0], values[1] if values[1:] else None, self._fixed, rigorous=False)
            total = torch.where(torch.isfinite(value), value, 0.0).sum()
        now = value.detach()
        better = (now > self.best).unsqueeze(-1)
        torch.maximum(self.best, now, out=self.best)
        for best, current in zip(self.best_values, values, strict=True):
            torch.where(better, current.detach(), best, out=best)
        return total

    def move(self, total: Tensor | None) -> bool:
        """A step uphill; False where no parameter matters."""
        if total is None or not total.requires_grad:
            return False
        gradients = torch.autograd.grad(total, [adam.value for adam in self._adams], allow_unused=True)
        for adam, gradient in zip(self._adams, gradients, strict=True):
            if gradient is not None:
                adam.step(gradient)
        return True

    def step(self) -> None:
        """Both."""
        self.move(self.look())


class _Adam:
    """Adam for one tensor kept in [0, limit], maximising; the step size decays by 3 % a step.

    Its step sizes are tensors, so that a recorded step goes on counting.
    Source: Kingma & Ba 2015, arXiv:1412.6980. (torch.optim costs seconds to import.)
    """

    def __init__(self, start: Tensor, rate: float, limit: float):
        self.value = start.detach().clone().requires_grad_(True)
        self._limit = limit
        self._mean, self._square = torch.zeros_like(start), torch.zeros_like(start)
        self._rate, self._decay_first, self._decay_second = (start.new_full((), x) for x in (rate, 1.0, 1.0))

    @torch.no_grad()
    def step(self, gradient: Tensor) -> None:
        """One step up the gradient; undefined entries stay put."""
        gradient = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        self._decay_first.mul_(0.9)
        self._decay_second.mul_(0.999)
        self._mean.lerp_(gradient, 0.1)
        self._square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        root = (self._square / (1 - self._decay_second)).sqrt_().add_(1e-8)
        self.value.addcdiv_(self._mean * (self._rate / (1 - self._decay_first)), root).clamp_(0.0, self._limit)
        self._rate.mul_(0.97)
