"""Adversarial patch: a small picture that works wherever it is stuck on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verifier.attack.losses import capped_margin
from verifier.attack.model import Access, Model, wrap
from verifier.attack.optimisers import Adam
from verifier.errors import ShapeError, SpecError


@dataclass(frozen=True)
class PatchResult:
    """A trained patch.

    Attributes:
        patch: [C, h, w] in the valid range.
        success_rate: share of (input, random place) pairs that it fools, on fresh places.
        queries: evaluations of the victim in all.
    """

    patch: Tensor
    success_rate: float
    queries: int


@dataclass(frozen=True)
class AdversarialPatch:
    """Adam on the expected margin over inputs and random places.

    Args:
        size: (h, w) of the patch; steps: Adam steps over the whole batch; rate: their length in
            units of the valid range.
        target: the class the patch should give; None to leave the true class.
        trials: random places per input for the success rate.
    Source: Brown et al. 2017, arXiv:1712.09665.
    """

    size: tuple[int, int] = (3, 3)
    steps: int = 100
    rate: float = 0.05
    target: int | None = None
    kappa: float = 1.0
    trials: int = 5

    def __call__(
        self, model: Any, x: Any, y: Any, *, valid: tuple[float, float] = (0.0, 1.0), seed: int
    ) -> PatchResult:
        """Train on images x [B, C, H, W] with labels y.

        Raises:
            ShapeError: x is no image batch, or the patch is larger than the images.
            SpecError: the victim gives no gradients.
        """
        model = wrap(model)
        if model.access < Access.GRADIENT:
            raise SpecError("patch: needs gradients of the victim")
        images = torch.as_tensor(np.array(x) if not isinstance(x, Tensor) else x.detach())
        images = images.to(device=model.device, dtype=model.dtype)
        label = torch.as_tensor(np.array(y) if not isinstance(y, Tensor) else y).to(images.device).long()
        if images.ndim != 4 or self.size[0] > images.shape[2] or self.size[1] > images.shape[3]:
            raise ShapeError(
                f"patch {self.size}: expected images [B, C, H, W] at least as large, got {list(images.shape)}"
            )
        generator = torch.Generator(device=images.device).manual_seed(seed)
        with torch.no_grad(), model.untouched():
            patch = self._train(model, images, label, valid, generator)
            rate = self._rate(model, images, label, patch, generator)
        return PatchResult(patch, rate, len(images) * (self.steps + self.trials))

    def _train(
        self, model: Model, x: Tensor, y: Tensor, valid: tuple[float, float], generator: torch.Generator
    ) -> Tensor:
        low, high = valid
        patch = torch.full((x.shape[1], *self.size), (low + high) / 2, device=x.device, dtype=x.dtype)
        adam, loss = Adam(patch, self.rate * (high - low)), capped_margin(self.kappa)
        goal = None if self.target is None else torch.full_like(y, self.target)
        for _ in range(self.steps):
            with torch.enable_grad():
                free = patch.detach().requires_grad_(True)
                value = loss(model.scores(stick(x, free, generator)), y, goal).mean()
                (grad,) = torch.autograd.grad(value, free)
            patch = (patch + adam.step(grad)).clamp(low, high)
        return patch

    def _rate(self, model: Model, x: Tensor, y: Tensor, patch: Tensor, generator: torch.Generator) -> float:
        wins = 0.0
        for _ in range(self.trials):
            prediction = model.labels(stick(x, patch, generator))
            goal = prediction != y if self.target is None else prediction == self.target
            wins += float((goal & (prediction >= 0)).double().mean())
        return wins / self.trials


def stick(x: Tensor, patch: Tensor, generator: torch.Generator) -> Tensor:
    """Images [B, C, H, W] with the patch [C, h, w] at one random place each; differentiable in it."""
    height, width = patch.shape[1:]
    count = len(x)
    down = torch.randint(x.shape[2] - height + 1, (count,), generator=generator, device=x.device)
    across = torch.randint(x.shape[3] - width + 1, (count,), generator=generator, device=x.device)
    rows = torch.arange(x.shape[2], device=x.device)[None] - down[:, None]
    columns = torch.arange(x.shape[3], device=x.device)[None] - across[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    placed = patch[:, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]
    return torch.where(inside[:, None], placed.movedim(0, 1), x)
