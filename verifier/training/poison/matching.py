"""Gradient matching: small changes to a few rows whose training gradient imitates the attacker's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.data import Dataset
from verifier.training.poison.victim import Victim, bases_near, checked
from verifier.training.poisoned import PoisonedDataset, changed_rows
from verifier.training.train import Progress, shifted


@dataclass(frozen=True)
class Matching:
    """Settings of the attack.

    Attributes:
        rate: poisoned rows over all rows; they are the wanted class's rows nearest to the victim.
        radius: largest change of a value, data's units. The paper's 16/255 over 3 x 32 x 32 values is a
            Euclidean length of 3.5, on 8 x 8 digits 0.43 a value; there models give the victim its
            wanted class from about 0.6 on, at smaller radii they fit the poisons without it. At 0.6 the
            start alone succeeds as often as the matched poisons (7 and 6 of 10, a random start 5).
        steps: signed Adam steps a restart.
        restarts: starts of which the best alignment is kept; the first is the point within the radius
            that is nearest to the victim, the others are random.
        shift: differentiable augmentation of images, pixels; 0 for none.
        seed: of the starts.
    """

    rate: float = 0.02
    radius: float = 0.6
    steps: int = 100
    restarts: int = 1
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
    rows = bases_near(victim, data, settings.rate)
    bases, y = torch.tensor(data.x[rows]), torch.tensor(data.y[rows])
    goals = [_gradient(m, torch.tensor(victim.x)[None], torch.tensor([victim.wanted])).detach() for m in surrogates]
    best, best_loss = bases, float("inf")
    problem = _Problem(bases, y, list(surrogates), goals, data, settings)
    for restart in range(settings.restarts):
        generator = torch.Generator().manual_seed(settings.seed + restart)
        drawn = bases + settings.radius * (2 * torch.rand(bases.shape, generator=generator) - 1)
        found, loss = problem.solve(drawn if restart else torch.tensor(victim.x).expand_as(bases), generator)
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
    """The optimisation from any start."""

    bases: Tensor
    y: Tensor
    surrogates: list[nn.Module]
    goals: list[Tensor]
    data: Dataset
    settings: Matching

    def solve(self, start: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
        """Poisons of the best alignment met, and 1 - alignment."""
        s = self.settings
        poisons = self._inside(start).requires_grad_(True)
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
                poisons.copy_(self._inside(poisons))
        return best, best_loss

    def _inside(self, poisons: Tensor) -> Tensor:
        """The nearest poisons within the radius of their bases and in the valid range."""
        lower, upper = (torch.tensor(end) for end in self.data.valid)
        near = self.bases + (poisons - self.bases).clamp(-self.settings.radius, self.settings.radius)
        return torch.minimum(torch.maximum(near, lower), upper)

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
