"""Gradient matching: small changes to a few rows whose training gradient imitates the attacker's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.data import Dataset
from verifier.training.poison.victim import Victim, checked
from verifier.training.poisoned import PoisonedDataset, changed_rows, count_rows
from verifier.training.train import Progress, shifted


@dataclass(frozen=True)
class Matching:
    """Settings of the attack.

    Attributes:
        rate: poisoned rows over all rows; they are rows of the wanted class with the largest gradients.
        radius: largest change of a value, data's units (the paper: 16/255 on natural images).
        steps: signed Adam steps a restart; restarts: random starts, the best alignment is kept.
        shift: differentiable augmentation of images, pixels; 0 for none.
        seed: of the starts.
    """

    rate: float = 0.02
    radius: float = 16 / 255
    steps: int = 250
    restarts: int = 8
    shift: int = 0
    seed: int = 0


def gradient_matching(
    data: Dataset, victim: Victim, surrogates: Sequence[nn.Module], settings: Matching, progress: Progress | None = None
) -> PoisonedDataset:
    """Maximise the cosine between the poisons' gradient and that of (victim, wanted class).

    Args:
        surrogates: clean-trained models, at least one; the alignment is averaged over them.
    Source: Geiping et al. 2021, arXiv:2009.02276 (Witches' Brew).
    """
    checked(victim, data)
    candidates = np.flatnonzero(data.y == victim.wanted)
    count = count_rows(settings.rate, len(candidates), len(data), "rows of the wanted class")
    rows = candidates[np.argsort(-_gradient_norms(surrogates[0], data.subset(candidates)), kind="stable")[:count]]
    bases, y = torch.tensor(data.x[rows]), torch.tensor(data.y[rows])
    goals = [_gradient(m, torch.tensor(victim.x)[None], torch.tensor([victim.wanted])).detach() for m in surrogates]
    best, best_loss = bases, float("inf")
    for restart in range(settings.restarts):
        problem = _Problem(bases, y, list(surrogates), goals, data, settings)
        found, loss = problem.solve(torch.Generator().manual_seed(settings.seed + restart))
        if loss < best_loss:
            best, best_loss = found, loss
        if progress is not None:
            progress((restart + 1) / settings.restarts, f"alignment {1 - best_loss:.3f}")
    record = {"rate": settings.rate, "radius": settings.radius, "wanted": victim.wanted, "alignment": 1 - best_loss}
    return changed_rows(
        data, rows, best.numpy(), data.y[rows], "gradient-matching", settings=record, victims=victim.as_victims()
    )


@dataclass(frozen=True)
class _Problem:
    """The optimisation over one restart."""

    bases: Tensor
    y: Tensor
    surrogates: list[nn.Module]
    goals: list[Tensor]
    data: Dataset
    settings: Matching

    def solve(self, generator: torch.Generator) -> tuple[Tensor, float]:
        s = self.settings
        lower, upper = (torch.tensor(end) for end in self.data.valid)
        start = torch.rand(self.bases.shape, generator=generator) * 2 - 1
        poisons = torch.minimum(torch.maximum(self.bases + s.radius * start, lower), upper).requires_grad_(True)
        optimizer = torch.optim.Adam([poisons], lr=s.radius / 10)
        best, best_loss = poisons.detach().clone(), float("inf")
        for step in range(s.steps):
            for group in optimizer.param_groups:
                group["lr"] = s.radius / 10 * (1 - step / s.steps) + s.radius / 100
            seen = shifted(poisons, s.shift, generator) if s.shift else poisons
            loss = self._misalignment(seen)
            poisons.grad = torch.autograd.grad(loss, poisons)[0].sign()
            if float(loss.detach()) < best_loss:
                best, best_loss = poisons.detach().clone(), float(loss.detach())
            optimizer.step()
            with torch.no_grad():
                inside = self.bases + (poisons - self.bases).clamp(-s.radius, s.radius)
                poisons.copy_(torch.minimum(torch.maximum(inside, lower), upper))
        return best, best_loss

    def _misalignment(self, poisons: Tensor) -> Tensor:
        """1 - cosine, averaged over the surrogates."""
        total = torch.zeros(())
        for model, goal in zip(self.surrogates, self.goals, strict=True):
            mine = _gradient(model, poisons, self.y, create_graph=True)
            total = total + 1 - functional.cosine_similarity(mine, goal, dim=0)
        return total / len(self.surrogates)


def _gradient(model: nn.Module, x: Tensor, y: Tensor, create_graph: bool = False) -> Tensor:
    """Flat gradient of the mean loss in the trainable weights."""
    weights = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(functional.cross_entropy(model(x), y), weights, create_graph=create_graph)
    return torch.cat([g.flatten() for g in gradients])


def _gradient_norms(model: nn.Module, data: Dataset) -> np.ndarray:
    rows = zip(torch.tensor(data.x), torch.tensor(data.y), strict=True)
    return np.array([float(_gradient(model, x[None], y[None]).norm()) for x, y in rows])
