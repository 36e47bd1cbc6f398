"""Semantic threats: attacks search over transformation parameters instead of pixels.

The working coordinates are a flat vector [B, P (+ n) (+ N)]: the parameters relative to the
identity in units of their ranges, then, if the order is free, one rank per transformation, then,
with a pixel budget, the additive change in units of that budget. Any attack on an linf box works.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from verifier.attack.projections import NORMS, along, norm
from verifier.attack.semantic.transformations import Transformation, check_images
from verifier.attack.threat import INF, LpThreat, Space, Threat
from verifier.errors import SpecError


@dataclass(frozen=True)
class SemanticThreat(Threat):
    """Transformations applied one after the other, each with its parameters in a box.

    Args:
        transformations: in their order of application (the starting order if it is free).
        pixel_eps: linf budget of an additive change, which then counts as one more component,
            applied last at first.
        free_order: attacks may also choose the order, per sample.
        valid: range the result of every component is clipped to.
    Raises:
        SpecError: nothing to change, or two transformations of one name.
    """

    transformations: tuple[Transformation, ...]
    pixel_eps: float = 0.0
    free_order: bool = False
    valid: tuple[float, float] = (0.0, 1.0)

    is_semantic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        names = [t.name for t in self.transformations]
        if len(set(names)) < len(names):
            raise SpecError(f"semantic threat: expected distinct transformations, got {names}")
        if not self.components:
            raise SpecError("semantic threat: expected at least one transformation or a pixel budget")

    @property
    def primary(self) -> float:
        return INF

    @property
    def components(self) -> int:
        """Number of things applied in turn, the additive change included."""
        return len(self.transformations) + (self.pixel_eps > 0)

    @property
    def parameter_count(self) -> int:
        """P, the parameters of all transformations."""
        return sum(len(t.identity) for t in self.transformations)

    def select(self, index: Any, x: Tensor) -> SemanticThreat:
        return self

    def space(self, x: Tensor) -> Space:
        check_images(x, self.transformations)
        clean = LpThreat(valid=self.valid).space(x).clean
        low, high, start = self._box(clean)
        eps = torch.full((len(x),), INF, device=x.device, dtype=x.dtype)
        return Space(
            clean=clean,
            start=start,
            lower=low,
            upper=high,
            ball_lower=low,
            ball_upper=high,
            p=INF,
            eps=eps,
            balls=(),
            decode=lambda work, index: self.compose(clean[index], work, self.order_matrix(work)),
            threat=self,
        )

    def finalise(self, space: Space, work: Tensor) -> Tensor:
        index = torch.arange(len(work), device=work.device)
        adv = space.decode(work, index).clamp(*self.valid)
        still = (work == space.start).flatten(1).all(1)
        return torch.where(along(still, adv), space.clean, adv)

    def distortion(self, clean: Tensor, adversarial: Tensor) -> dict[str, Tensor]:
        delta = adversarial.double() - clean.double()
        return {f"l{'inf' if p == INF else int(p)}": norm(delta, p) for p in NORMS}

    def parameters(self, work: Tensor) -> dict[str, Tensor]:
        """Transformation name -> parameters [B, P_t] in their own units, for working coordinates."""
        found, at = {}, 0
        for t in self.transformations:
            part = work[:, at : at + len(t.identity)]
            found[t.name] = part.new_tensor(t.identity) + part * part.new_tensor(_widths(t))
            at += len(t.identity)
        return found

    def order_matrix(self, work: Tensor) -> Tensor:
        """One-hot [B, n, n]: entry (i, j) is 1 where component j is applied i-th."""
        n = self.components
        if not self.free_order:
            return torch.eye(n, device=work.device, dtype=work.dtype).expand(len(work), n, n)
        ranks = work[:, self.parameter_count : self.parameter_count + n]
        order = ranks.detach().argsort(dim=1, stable=True)
        return torch.nn.functional.one_hot(order, n).to(work.dtype)

    def compose(self, x: Tensor, work: Tensor, order: Tensor) -> Tensor:
        """Apply the components to x [R, C, H, W]; a soft order [R, n, n] mixes them at each place."""
        apply = [self._component(j, x, work) for j in range(self.components)]
        for place in range(self.components):
            weights = order[:, place]
            mixed = torch.zeros_like(x)
            for j, component in enumerate(apply):
                if bool((weights[:, j].detach() != 0).any()):
                    mixed = mixed + along(weights[:, j], x) * component(x).clamp(*self.valid)
            x = mixed
        return x

    def _component(self, number: int, x: Tensor, work: Tensor) -> Any:
        if number < len(self.transformations):
            t = self.transformations[number]
            values = self.parameters(work)[t.name]
            return lambda image: t.apply(image, values)
        delta = work[:, -x[0].numel() :].reshape(x.shape) * self.pixel_eps
        return lambda image: image + delta

    def _box(self, clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, high = [], []
        for t in self.transformations:
            for a, i, b, w in zip(t.lower, t.identity, t.upper, _widths(t), strict=True):
                low.append((a - i) / w)
                high.append((b - i) / w)
        start = [0.0] * len(low)
        if self.free_order:
            n = self.components
            low, high = low + [0.0] * n, high + [1.0] * n
            start += list(np.linspace(0.0, 1.0, n))
        if self.pixel_eps > 0:
            size = clean[0].numel()
            low, high, start = low + [-1.0] * size, high + [1.0] * size, start + [0.0] * size
        below, above, begin = (clean.new_tensor(v).expand(len(clean), -1).contiguous() for v in (low, high, start))
        return below, above, begin


def _widths(t: Transformation) -> tuple[float, ...]:
    """Ranges of the parameters, 1 where a range is a point."""
    return tuple(b - a if b > a else 1.0 for a, b in zip(t.lower, t.upper, strict=True))
