"""Clean-label targeted poisons whose features collide with the victim's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from verifier.data import Dataset
from verifier.training.poison.victim import Victim, bases_near, checked
from verifier.training.poisoned import PoisonedDataset, changed_rows
from verifier.training.predict import features_of, frozen
from verifier.training.train import Progress


@dataclass(frozen=True)
class Collision:
    """Settings of both attacks.

    Attributes:
        rate: poisoned rows over all rows; they are the wanted class's rows nearest to the victim.
        closeness: weight beta of the distance to the base row.
        watermark: share of the victim blended into each base before the optimisation.
        radius: largest change of a value, data's units; infinite leaves it to `closeness`.
        steps, step_size: of the optimisation.
    """

    rate: float = 0.02
    closeness: float = 0.1
    watermark: float = 0.3
    radius: float = float("inf")
    steps: int = 150
    step_size: float = 0.05


def feature_collision(
    data: Dataset, victim: Victim, surrogate: nn.Module, settings: Collision, progress: Progress | None = None
) -> PoisonedDataset:
    """Each poison p minimises |f(p) - f(victim)|^2 + beta |p - base|^2 by forward-backward splitting.

    f are the surrogate's features, normalised by the victim's norm. Labels stay those of the bases.

    Source: Shafahi et al. 2018, arXiv:1804.00792 (with its watermark for training from scratch).
    """
    rows, bases = _bases(data, victim, settings)
    x = torch.tensor(victim.x)[None]
    with frozen(surrogate):
        wanted = features_of(surrogate, x)

        def distance(poisons: Tensor) -> Tensor:
            return ((features_of(surrogate, poisons) - wanted) ** 2).sum(dim=1).sum() / (wanted**2).sum()

        poisons = _splitting(bases, data, victim, (distance, settings), progress)
    return _finished(data, rows, poisons, victim, "feature-collision", settings)


def bullseye(
    data: Dataset,
    victim: Victim,
    surrogates: Sequence[nn.Module],
    settings: Collision,
    progress: Progress | None = None,
) -> PoisonedDataset:
    """The mean of the poisons' features meets the victim's features in every surrogate at once.

    Source: Aghakhani et al. 2021, arXiv:2005.00191 (bullseye polytope).
    """
    rows, bases = _bases(data, victim, settings)
    x = torch.tensor(victim.x)[None]
    with ExitStack() as stack:
        for model in surrogates:
            stack.enter_context(frozen(model))
        wanted = [features_of(model, x)[0] for model in surrogates]

        def distance(poisons: Tensor) -> Tensor:
            total = torch.zeros(())
            for model, goal in zip(surrogates, wanted, strict=True):
                total = total + ((features_of(model, poisons).mean(dim=0) - goal) ** 2).sum() / (goal**2).sum()
            return len(poisons) * total / len(surrogates)

        poisons = _splitting(bases, data, victim, (distance, settings), progress)
    return _finished(data, rows, poisons, victim, "bullseye-polytope", settings)


def _bases(data: Dataset, victim: Victim, settings: Collision) -> tuple[np.ndarray, Tensor]:
    checked(victim, data)
    rows = bases_near(victim, data, settings.rate)
    return rows, torch.tensor(data.x[rows])


def _splitting(
    bases: Tensor,
    data: Dataset,
    victim: Victim,
    goal: tuple[Callable[[Tensor], Tensor], Collision],
    progress: Progress | None,
) -> Tensor:
    """Gradient step on the distance (normalised a row), then the proximal step back to the bases."""
    distance, s = goal
    lower, upper = (torch.tensor(end) for end in data.valid)
    poisons = (1 - s.watermark) * bases + s.watermark * torch.tensor(victim.x)
    for step in range(s.steps):
        poisons.requires_grad_(True)
        value = distance(poisons)
        gradient = torch.autograd.grad(value, poisons)[0]
        rate = s.step_size * (1 - step / s.steps)
        length = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).reshape(-1, *[1] * (bases.ndim - 1))
        moved = poisons.detach() - rate * gradient / length
        moved = (moved + rate * s.closeness * bases) / (1 + rate * s.closeness)
        moved = bases + (moved - bases).clamp(-s.radius, s.radius)
        poisons = torch.minimum(torch.maximum(moved, lower), upper)
        if progress is not None:
            progress((step + 1) / s.steps, f"feature distance {float(value.detach()) / len(bases):.4f}")
    return poisons


def _finished(
    data: Dataset, rows: np.ndarray, poisons: Tensor, victim: Victim, name: str, s: Collision
) -> PoisonedDataset:
    record = {"rate": s.rate, "closeness": s.closeness, "watermark": s.watermark, "wanted": victim.wanted}
    return changed_rows(data, rows, poisons.numpy(), data.y[rows], name, settings=record, victims=victim.as_victims())
