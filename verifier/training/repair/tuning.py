"""Repair by training on: fine-tuning, fine-pruning, and unlearning with a reversed trigger."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.data import Dataset
from verifier.errors import NetworkError, SpecError
from verifier.training.backdoor.trigger import Trigger
from verifier.training.predict import accuracy, features_of, frozen
from verifier.training.train import Progress, Recipe, train

#: Fine-tuning that moves far enough to forget: long, with a large step.
FINE_TUNE = Recipe(epochs=60, batch_size=32, learning_rate=5e-3, weight_decay=5e-4)


def fine_tune(
    model: nn.Module, clean: Dataset, recipe: Recipe = FINE_TUNE, progress: Progress | None = None
) -> nn.Module:
    """A copy trained on with trusted rows only; alone it often leaves the backdoor in place."""
    return train(model, clean, recipe, progress=progress).model


@dataclass(frozen=True)
class Pruning:
    """Settings of fine-pruning.

    Attributes:
        most: largest share of the units that may go.
        drop: pruning stops before accuracy on the trusted rows falls by more than this.
        recipe: of the fine-tuning afterwards.
    """

    most: float = 0.8
    drop: float = 0.04
    recipe: Recipe = FINE_TUNE


def fine_prune(
    model: nn.Module, clean: Dataset, settings: Pruning | None = None, progress: Progress | None = None
) -> nn.Module:
    """Silence the units that sleep on trusted rows, then fine-tune.

    The units are inputs of the last linear layer, in order of their mean absolute value on
    trusted rows; a backdoor tends to live in those that clean inputs leave alone.

    Source: Liu, Dolan-Gavitt & Garg 2018, arXiv:1805.12185.
    """
    settings = settings or Pruning()
    if not (0 <= settings.most <= 1 and settings.drop >= 0):
        raise SpecError(f"fine-pruning: expected most in [0, 1] and drop >= 0, got {settings.most}, {settings.drop}")
    pruned = copy.deepcopy(model).eval()
    x = torch.tensor(clean.x)
    with frozen(pruned), torch.no_grad():
        sleepiest = features_of(pruned, x).abs().mean(dim=0).argsort(stable=True)
        weight = _last_linear(pruned).weight
        limit, kept = accuracy(pruned, clean) - settings.drop, weight.clone()
        for unit in sleepiest[: int(settings.most * len(sleepiest))]:
            kept.copy_(weight)
            weight[:, unit] = 0.0
            if accuracy(pruned, clean) < limit:
                weight.copy_(kept)
                break
    silent = (_last_linear(pruned).weight == 0).all(dim=0)
    tuned = train(pruned, clean, settings.recipe, progress=progress).model
    with torch.no_grad():
        _last_linear(tuned).weight[:, silent] = 0.0  # fine-tuning must not wake them up
    return tuned


def _last_linear(model: nn.Module) -> nn.Linear:
    found = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not found:
        raise NetworkError("fine-pruning: the model has no linear layer")
    return found[-1]


def unlearn(
    model: nn.Module,
    clean: Dataset,
    triggers: list[Trigger],
    recipe: Recipe = FINE_TUNE,
    progress: Progress | None = None,
) -> nn.Module:
    """Fine-tune on trusted rows and on copies that carry a reversed trigger with their true labels.

    Source: Wang et al. 2019 (Neural Cleanse, S&P), section VI-C.
    Raises:
        SpecError: no trigger.
    """
    if not triggers:
        raise SpecError("unlearning: needs a reversed trigger; run the scan first, or give one")
    rows = clean
    for trigger in triggers:
        shown = np.clip(trigger(clean.x), *clean.valid).astype(np.float32)
        rows = rows.joined(clean.with_rows(shown, clean.y))
    return train(model, rows, recipe, progress=progress).model


@dataclass(frozen=True)
class AdversarialUnlearning:
    """Settings of unlearning against the worst shared perturbation.

    Attributes:
        rounds: of one inner attack and `epochs` passes over the trusted rows.
        epochs: passes a round.
        radius: Euclidean norm of the shared perturbation, in units of the valid range's width.
        steps: gradient steps of the attack.
        learning_rate: of the training.
        seed: of the order of rows.
    """

    rounds: int = 8
    epochs: int = 6
    radius: float = 1.5
    steps: int = 30
    learning_rate: float = 2e-3
    seed: int = 0


def adversarial_unlearn(
    model: nn.Module,
    clean: Dataset,
    settings: AdversarialUnlearning | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Min over weights, max over one perturbation shared by all rows, of the trusted rows' loss.

    Needs no reversed trigger: the perturbation plays its part, wherever the backdoor is.

    Source: Zeng et al. 2022, arXiv:2110.03735 (I-BAU), with alternating first-order steps in
        place of its implicit hypergradient.
    """
    s = settings or AdversarialUnlearning()
    current = copy.deepcopy(model)
    recipe = replace(FINE_TUNE, epochs=s.epochs, learning_rate=s.learning_rate)
    for number in range(s.rounds):
        change = shared_perturbation(current, clean, s)
        shown = np.clip(clean.x + change, *clean.valid).astype(np.float32)
        both = clean.joined(clean.with_rows(shown, clean.y))
        current = train(current, both, replace(recipe, seed=s.seed + number)).model
        if progress is not None:
            progress((number + 1) / s.rounds, f"round {number + 1}: accuracy {accuracy(current, clean):.1%}")
    return current.eval()


def shared_perturbation(model: nn.Module, clean: Dataset, s: AdversarialUnlearning) -> np.ndarray:
    """One change [*shape] of Euclidean norm at most `radius` that raises the loss of all rows together."""
    x, y = torch.tensor(clean.x), torch.tensor(clean.y)
    lower, upper = (torch.tensor(np.broadcast_to(end, clean.shape).copy()) for end in clean.valid)
    width = torch.where(torch.isfinite(upper - lower), upper - lower, torch.ones_like(upper))
    scaled = torch.zeros(clean.shape)
    shown: Callable[[Tensor], Tensor] = lambda d: torch.minimum(torch.maximum(x + d * width, lower), upper)  # noqa: E731
    with frozen(model):
        for _ in range(s.steps):
            scaled.requires_grad_(True)
            (gradient,) = torch.autograd.grad(functional.cross_entropy(model(shown(scaled)), y), scaled)
            scaled = scaled.detach() + 0.1 * s.radius * gradient / gradient.norm().clamp(min=1e-12)
            scaled = scaled * (s.radius / scaled.norm().clamp(min=s.radius))
    return (scaled * width).numpy()
