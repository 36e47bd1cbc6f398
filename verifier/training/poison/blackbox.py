"""Black-box poisoning as a min-max game: the attacker sees loss values only."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.data import Dataset
from verifier.training.poisoned import PoisonedDataset, changed_rows, count_rows
from verifier.training.train import Progress


@dataclass(frozen=True)
class ZerothOrder:
    """Settings of the game.

    Attributes:
        rate: perturbed rows over all rows.
        radius: largest change of a value, data's units; one change is shared by all the rows.
        rounds: of one ascent step by the attacker and one descent step by the victim.
        directions: random directions a gradient estimate averages.
        smoothing: length of the finite difference, data's units.
        ascent, descent: step sizes; the ascent's is in units of the radius.
        seed: of the rows and directions.
    """

    rate: float = 0.15
    radius: float = 0.5
    rounds: int = 150
    directions: int = 8
    smoothing: float = 1e-2
    ascent: float = 0.1
    descent: float = 0.3
    seed: int = 0


def zeroth_order(
    data: Dataset, victim: nn.Module, settings: ZerothOrder, progress: Progress | None = None
) -> PoisonedDataset:
    """One shared perturbation that keeps the training loss high while the victim trains against it.

    Solves max over the perturbation, min over the weights, of the training loss: a two-point
    estimate of the gradient and a signed projected ascent step, then one descent step.

    Args:
        victim: start of the training; a copy is trained, the attacker queries its loss only.
    Source: Liu, Lu, Chen et al. 2020, arXiv:1909.13806 (min-max optimisation without gradients).
    """
    count = count_rows(settings.rate, len(data), len(data), "rows")
    rows = np.random.default_rng(settings.seed).choice(len(data), count, replace=False)
    generator = torch.Generator().manual_seed(settings.seed)
    model = copy.deepcopy(victim).train()
    x, y, chosen = torch.tensor(data.x), torch.tensor(data.y), torch.tensor(rows)
    lower, upper = (torch.tensor(end) for end in data.valid)
    change = torch.zeros(data.shape)
    optimizer = torch.optim.SGD(model.parameters(), settings.descent)

    def poisoned(shift: Tensor) -> Tensor:
        return x.index_copy(0, chosen, torch.minimum(torch.maximum(x[chosen] + shift, lower), upper))

    def queried(shift: Tensor) -> float:
        with torch.no_grad():
            moved = torch.minimum(torch.maximum(x[chosen] + shift, lower), upper)
            return float(functional.cross_entropy(model(moved), y[chosen]))

    for step in range(settings.rounds):
        gradient, here = torch.zeros_like(change), queried(change)
        for _ in range(settings.directions):
            direction = torch.randn(data.shape, generator=generator)
            gradient += (queried(change + settings.smoothing * direction) - here) / settings.smoothing * direction
        change = (change + settings.ascent * settings.radius * gradient.sign()).clamp(-settings.radius, settings.radius)
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(poisoned(change)), y)
        loss.backward()
        optimizer.step()
        if progress is not None:
            progress((step + 1) / settings.rounds, f"training loss {float(loss.detach()):.3f}")
    record = {
        "rate": settings.rate,
        "radius": settings.radius,
        "seed": settings.seed,
        "queries": settings.rounds * (settings.directions + 1),
    }
    return changed_rows(data, rows, data.x[rows] + change.numpy(), data.y[rows], "zeroth-order", settings=record)
