"""Gradient poisoning: ascend the validation loss through the victim's own training steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from verifier.data import Dataset
from verifier.training.poison.labels import random_flips
from verifier.training.poisoned import PoisonedDataset, changed_rows
from verifier.training.train import Progress


@dataclass(frozen=True)
class Unrolling:
    """Settings of the attack.

    Attributes:
        rate: poisoned rows over all rows.
        radius: largest change of a value, data's units.
        steps: ascent steps on the poisons.
        inner_steps: training steps differentiated through.
        inner_rate: step size of that training (plain gradient descent on all rows).
        seed: of the choice of rows and labels.
    """

    rate: float = 0.05
    radius: float = 0.3
    steps: int = 20
    inner_steps: int = 8
    inner_rate: float = 0.5
    seed: int = 0


def unrolled(
    data: Dataset, validation: Dataset, surrogate: nn.Module, settings: Unrolling, progress: Progress | None = None
) -> PoisonedDataset:
    """Mislabel some rows and move them so that training on them raises the validation loss most.

    Each ascent step trains the surrogate for a few differentiable steps on the poisoned data and
    follows the sign of the gradient of the validation loss with respect to the poisons.

    Args:
        validation: rows of the same shape, not trained on.
        surrogate: the start of the inner training (fresh or trained); never altered.
    Source: Biggio, Nelson & Laskov 2012, arXiv:1206.6389, with their implicit gradient replaced by
        unrolling as in Munoz-Gonzalez et al. 2017, arXiv:1708.08689.
    """
    flipped = random_flips(data, settings.rate, settings.seed)
    rows, rest = flipped.touched, np.setdiff1d(np.arange(len(data)), flipped.touched)
    y = torch.tensor(np.concatenate([data.y[rest], flipped.data.y[rows]]))
    fixed, start = torch.tensor(data.x[rest]), torch.tensor(data.x[rows])
    held = torch.tensor(validation.x), torch.tensor(validation.y)
    lower, upper = (torch.tensor(end) for end in data.valid)
    poison, best, best_loss = start.clone(), start.clone(), -float("inf")
    for step in range(settings.steps + 1):
        poison.requires_grad_(True)
        loss = _after_training(surrogate, torch.cat([fixed, poison]), y, held, settings)
        if float(loss.detach()) > best_loss:
            best, best_loss = poison.detach().clone(), float(loss.detach())
        gradient = torch.autograd.grad(loss, poison)[0]
        moved = poison.detach() + 2.5 * settings.radius / max(settings.steps, 1) * gradient.sign()
        moved = moved.clamp(start - settings.radius, start + settings.radius)
        poison = torch.minimum(torch.maximum(moved, lower), upper)
        if progress is not None:
            progress((step + 1) / (settings.steps + 1), f"validation loss {best_loss:.3f}")
    record = {"rate": settings.rate, "radius": settings.radius, "seed": settings.seed, "validation_loss": best_loss}
    return changed_rows(data, rows, best.numpy(), flipped.data.y[rows], "gradient", settings=record)


def _after_training(model: nn.Module, x: Tensor, y: Tensor, held: tuple[Tensor, Tensor], s: Unrolling) -> Tensor:
    """Validation loss after `inner_steps` differentiable steps from the model's weights."""
    weights = {name: value.detach().clone().requires_grad_(True) for name, value in model.named_parameters()}
    for _ in range(s.inner_steps):
        loss = functional.cross_entropy(functional_call(model, weights, (x,)), y)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {name: w - s.inner_rate * g for (name, w), g in zip(weights.items(), gradients, strict=True)}
    return functional.cross_entropy(functional_call(model, weights, (held[0],)), held[1])
