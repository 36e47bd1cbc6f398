"""What an attacker may change: lp balls, boxes, masks, scales, and the space attacks search in.

Attacks work in *working coordinates*: the input divided by the threat's per-feature unit. There
a threat is a start, a box that never excludes the start, and lp balls around it, so no attack
knows about scales, masks or valid ranges; `Threat.finalise` returns to inputs and makes them
feasible in exact arithmetic.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from verifier.attack.projections import NORMS, along, keep_largest, norm
from verifier.errors import ShapeError, SpecError

INF = float("inf")
# an input this far outside the valid range (relative to it) is round-off; further is a mistake
EDGE = 1e-4


_PER_SAMPLE = ("clean", "start", "lower", "upper", "ball_lower", "ball_upper", "eps")


def as_it_is(work: Tensor, index: Tensor) -> Tensor:
    """Where working coordinates are the inputs themselves."""
    return work


@dataclass(frozen=True)
class Space:
    """A threat around given inputs, in working coordinates.

    Attributes:
        clean: the inputs, round-off at the edge of the valid range clipped, [B, *S].
        start: where the attack begins, [B, *W]; W = S except for semantic threats.
        lower, upper: what is reachable at all, [B, *W].
        ball_lower, ball_upper: the same cut to the linf ball of the budget.
        p: the norm that is minimised or bounded; eps [B]: its budget, inf without one.
        balls: further (p, radius [B]) constraints beside the budget, p in {0, 1, 2}.
        decode: differentiable map (work [R, *W], sample index [R]) -> inputs [R, *S].
        threat: where the space comes from.
    """

    clean: Tensor
    start: Tensor
    lower: Tensor
    upper: Tensor
    ball_lower: Tensor
    ball_upper: Tensor
    p: float
    eps: Tensor
    balls: tuple[tuple[float, Tensor], ...]
    decode: Callable[[Tensor, Tensor], Tensor]
    threat: Threat | None = None

    def subset(self, index: Tensor) -> Space:
        """The space of the samples `index` [M] alone."""
        decode = self.decode
        return replace(
            self,
            **{name: getattr(self, name)[index] for name in _PER_SAMPLE},
            balls=tuple((p, radius[index]) for p, radius in self.balls),
            decode=as_it_is if decode is as_it_is else lambda work, rows: decode(work, index[rows]),
        )


class Threat(ABC):
    """A set of allowed changes. `LpThreat` moves inputs; semantic threats move parameters
    (`is_semantic`), and results then carry those parameters.
    """

    is_semantic: ClassVar[bool] = False

    @abstractmethod
    def space(self, x: Tensor) -> Space:
        """The search space around inputs x [B, *S]; SpecError if x lies outside the valid range."""

    @abstractmethod
    def finalise(self, space: Space, work: Tensor) -> Tensor:
        """Inputs for `work` [B, *W] that satisfy every constraint in exact arithmetic, [B, *S]."""

    @abstractmethod
    def distortion(self, clean: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        """Size of the change in "l0", "l1", "l2", "linf", float64 [B], in units of the scale."""

    @abstractmethod
    def select(self, index: Any, x: Tensor) -> Threat:
        """The threat for samples `index` of x [B, *S]: settings given per sample are indexed."""

    @property
    @abstractmethod
    def primary(self) -> float:
        """The norm an attack must support, p in {0, 1, 2, inf}."""


@dataclass(frozen=True)
class LpThreat(Threat):
    """‖(x' - x) / scale‖_p <= eps, inside the valid range, only where mask is set.

    Args:
        norm: p in {0, 1, 2, inf}; p = 0 counts features.
        eps: the budget in units of `scale`: a number or one per sample [B]; inf for none.
        valid: (low, high), numbers or arrays like one sample; None for no range.
        mask: bool, like one sample or a batch; features outside it never move.
        scale: positive, like one sample: how large a unit change of each feature is (tabular data).
        also: further (p, eps) that must hold as well (mixed norms).
        region: (lower, upper) arrays like one sample or a batch: an absolute box that replaces
            the ball; build it with `box`.
    Raises:
        SpecError: unknown p, negative or NaN eps, non-positive scale, empty range.
    """

    norm: float = INF
    eps: Any = INF
    valid: tuple[Any, Any] | None = (0.0, 1.0)
    mask: Any = None
    scale: Any = None
    also: tuple[tuple[float, float], ...] = ()
    region: tuple[Any, Any] | None = None

    def __post_init__(self) -> None:
        for p, eps in ((self.norm, self.eps), *self.also):
            if float(p) not in NORMS:
                raise SpecError(f"threat norm: expected 0, 1, 2 or inf, got {p}")
            if not np.all(_array(eps, np.float64) >= 0):
                raise SpecError(f"threat eps: expected numbers >= 0, got {eps}")
        if self.scale is not None and not np.all(_array(self.scale, np.float64) > 0):
            raise SpecError("threat scale: expected positive numbers for every feature")
        for name, pair in (("valid", self.valid), ("region", self.region)):
            if pair is not None and not np.all(_array(pair[0]) <= _array(pair[1])):
                raise SpecError(f"threat {name}: lower end exceeds upper end")

    @property
    def primary(self) -> float:
        return float(self.norm)

    def at(self, eps: Any) -> LpThreat:
        """The same threat with another budget."""
        return replace(self, eps=eps)

    def select(self, index: Any, x: Tensor) -> LpThreat:
        index = _array(index)

        def part(value: Any, axes: int) -> Any:
            if value is None or np.ndim(value) != axes:
                return value
            value = _array(value)
            return value[index] if value.shape[0] == x.shape[0] else value

        def pair(value: tuple[Any, Any] | None) -> tuple[Any, Any] | None:
            return None if value is None else (part(value[0], x.ndim), part(value[1], x.ndim))

        return replace(
            self,
            eps=part(self.eps, 1),
            valid=pair(self.valid),
            mask=part(self.mask, x.ndim),
            region=pair(self.region),
        )

    def space(self, x: Tensor) -> Space:
        clean, low, high = self._reachable(x)
        unit = self._unit(x, low, high)
        ends = []
        for side, end in ((-1.0, low), (1.0, high)):
            cut = end
            for p, eps in self._all_balls(x.shape[0]):
                if p == INF:
                    cut = _tighter(side, cut, self._ball_end(clean, eps, side))
            ends.append(cut)
        ball_low, ball_high = (torch.minimum(ends[0], clean), torch.maximum(ends[1], clean))
        eps = self._eps(x)
        scaled = (lambda v: v) if unit is None else (lambda v: v / unit)
        start = scaled(clean)
        return Space(
            clean=clean,
            start=start,
            lower=torch.minimum(scaled(low), start),
            upper=torch.maximum(scaled(high), start),
            ball_lower=torch.minimum(scaled(ball_low), start),
            ball_upper=torch.maximum(scaled(ball_high), start),
            p=float(self.norm),
            eps=eps,
            balls=tuple((float(p), torch.full_like(eps, e)) for p, e in self.also if p != INF),
            decode=as_it_is if unit is None else lambda work, index: work * unit[index],
            threat=self,
        )

    def finalise(self, space: Space, work: Tensor) -> Tensor:
        index = torch.arange(work.shape[0], device=work.device)
        x = space.clean
        adv = torch.where(work == space.start, x, space.decode(work, index))
        _, low, high = self._reachable(x)
        adv = torch.minimum(torch.maximum(adv, low), high)
        for p, eps in self._all_balls(x.shape[0]):
            adv = self._shrink(x, adv, p, eps.to(x.device))
        return adv

    def distortion(self, clean: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        delta = self._units(clean, adversarial)
        return {f"l{'inf' if p == INF else int(p)}": norm(delta, p) for p in NORMS}

    def _reachable(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x clipped to the valid range, and the ends of what may be reached; x's dtype."""
        low = torch.full_like(x, -INF)
        high = torch.full_like(x, INF)
        clean = x
        for pair in (self.valid, self.region):
            if pair is None:
                continue
            a, b = (_like(v, x, "range") for v in pair)
            _check_inside(x, a, b)
            clean = torch.minimum(torch.maximum(clean, a), b)
            low, high = torch.maximum(low, a), torch.minimum(high, b)
        if self.mask is not None:
            moves = _like(self.mask, x, "mask").bool()
            low, high = torch.where(moves, low, clean), torch.where(moves, high, clean)
        return clean, low, high

    def _unit(self, x: Tensor, low: Tensor, high: Tensor) -> Tensor | None:
        if self.region is not None and self._eps(x).isinf().all():
            width = high - low
            return torch.where((width > 0) & width.isfinite(), width, torch.ones_like(width))
        if self.scale is None:
            return None
        return _like(self.scale, x, "scale").expand_as(x).contiguous()

    def _eps(self, x: Tensor) -> Tensor:
        eps = torch.as_tensor(_array(self.eps, np.float64), device=x.device).to(x.dtype)
        if eps.ndim > 1 or (eps.ndim == 1 and eps.shape[0] != x.shape[0]):
            raise ShapeError(f"threat eps: expected a number or [{x.shape[0]}] (B), got {list(eps.shape)}")
        return eps.expand(x.shape[0]).clone()

    def _all_balls(self, rows: int) -> list[tuple[float, Tensor]]:
        found = []
        for p, eps in ((self.norm, self.eps), *self.also):
            radius = torch.as_tensor(_array(eps, np.float64)).expand(rows)
            if not radius.isinf().all():
                found.append((float(p), radius))
        return found

    def _ball_end(self, x: Tensor, eps: Tensor, side: float) -> Tensor:
        """x + side * eps * scale, rounded towards x to x's dtype."""
        reach = along(eps.to(x.device), x)
        if self.scale is not None:
            reach = reach * torch.as_tensor(_array(self.scale, np.float64), device=x.device)
        exact = x.double() + side * reach
        rounded = exact.to(x.dtype)
        outside = (rounded.double() - exact) * side > 0
        return torch.where(outside, torch.nextafter(rounded, x), rounded)

    def _units(self, clean: Tensor, adversarial: Tensor) -> Tensor:
        delta = adversarial.double() - clean.double()
        if self.scale is not None:
            delta = delta / torch.as_tensor(_array(self.scale, np.float64), device=clean.device)
        return delta

    def _shrink(self, x: Tensor, adv: Tensor, p: float, eps: Tensor) -> Tensor:
        """adv moved towards x until its float64 distortion is at most eps."""
        if p == INF:
            low, high = self._ball_end(x, eps, -1.0), self._ball_end(x, eps, 1.0)
            return torch.minimum(torch.maximum(adv, torch.minimum(low, x)), torch.maximum(high, x))
        if p == 0:
            delta = self._units(x, adv)
            kept = keep_largest(delta, delta.flatten(1).abs(), eps)
            return torch.where(kept != 0, adv, x)
        slack = 1e-7
        for _ in range(12):
            size = norm(self._units(x, adv), p)
            over = size > eps
            if not bool(over.any()):
                return adv
            factor = torch.where(over, eps / size * (1 - slack), torch.ones_like(size))
            moved = (x.double() + (adv.double() - x.double()) * along(factor, x)).to(x.dtype)
            adv = torch.where(along(over, x), moved, adv)
            slack *= 2
        return torch.where(along(over, x), x, adv)


def box(lower: Any, upper: Any, *, mask: Any = None) -> LpThreat:
    """Everything in [lower, upper] (arrays like one sample or a batch), steps in units of its width."""
    return LpThreat(norm=INF, eps=INF, valid=None, mask=mask, region=(lower, upper))


def _tighter(side: float, a: Tensor, b: Tensor) -> Tensor:
    return torch.minimum(a, b) if side > 0 else torch.maximum(a, b)


def _array(value: Any, dtype: Any = None) -> np.ndarray:
    """A writeable copy of a number, array or tensor."""
    return np.array(value.detach().cpu().numpy() if isinstance(value, Tensor) else value, dtype=dtype)


def _like(value: Any, x: Tensor, what: str) -> Tensor:
    array = torch.as_tensor(_array(value))
    array = array.to(x.device) if array.dtype == torch.bool else array.to(x)
    try:
        return array.expand_as(x)
    except RuntimeError as error:
        raise ShapeError(
            f"threat {what}: expected a number, {list(x.shape[1:])} or {list(x.shape)}, got {list(array.shape)}"
        ) from error


def _check_inside(x: Tensor, low: Tensor, high: Tensor) -> None:
    width = torch.where((high - low).isfinite(), high - low, torch.ones_like(x))
    excess = torch.maximum(low - x, x - high)
    if bool((excess > EDGE * width).any()):
        raise SpecError(
            f"inputs: expected values in the valid range, got {float(x.min()):.4g} to {float(x.max()):.4g}; "
            "pass inputs in your own units, set `valid` to their range, and put any normalisation "
            "into the model wrapper's `preprocess`"
        )
