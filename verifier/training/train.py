"""The one training loop: plain, seeded, and used by every attack, defence and measurement."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.data import Dataset
from verifier.errors import DeviceError, SpecError
from verifier.training.architecture import architecture_for, build

BatchLoss = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]
Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Recipe:
    """How to train: everything that decides the result besides the data.

    Attributes:
        architecture: a key of `architecture.BUILDERS`, built to the data's shape.
        width: of the hidden layers.
        epochs: passes over the data.
        batch_size: rows a step.
        learning_rate: of Adam or momentum SGD, cosine-annealed to zero.
        weight_decay: coefficient of the squared norm (decoupled for Adam).
        optimizer: "adam" or "sgd" (momentum 0.9).
        shift: random shift of images by up to this many pixels each step.
        seed: of the weights and the order of the rows.
        device: torch device name; a missing one is an error.
    """

    architecture: str = "cnn"
    width: int = 16
    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 5e-3
    weight_decay: float = 1e-4
    optimizer: str = "adam"
    shift: int = 0
    seed: int = 0
    device: str = "cpu"


DIGITS_CNN = Recipe("cnn", 16)
DIGITS_MLP = Recipe("mlp", 64)
TABLE_MLP = Recipe("mlp", 32, epochs=40, batch_size=32, learning_rate=2e-3)
SENTENCES = Recipe("tokens", 32, epochs=30, batch_size=64)
RECIPES = {"digits-cnn": DIGITS_CNN, "digits-mlp": DIGITS_MLP, "table-mlp": TABLE_MLP, "sentences": SENTENCES}


def recipe_for(data: Dataset) -> Recipe:
    """The default recipe for this kind of data."""
    return {"image": DIGITS_CNN, "tabular": TABLE_MLP, "sequence": SENTENCES}[data.kind]


@dataclass(frozen=True)
class TrainResult:
    """A trained network in eval mode, with what it took.

    Attributes:
        model: on the recipe's device.
        losses: mean loss of each epoch.
        seconds: wall-clock time.
        recipe: what was followed.
    """

    model: nn.Module
    losses: tuple[float, ...]
    seconds: float
    recipe: Recipe = field(repr=False)


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """The default batch loss."""
    return functional.cross_entropy(model(x), y)


def train(
    model: nn.Module | None,
    data: Dataset,
    recipe: Recipe,
    *,
    loss: BatchLoss = cross_entropy,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a fresh network (model = None) or a copy of `model`, which itself is never altered.

    Args:
        data: at least one row.
        loss: scalar loss of a batch; robust training passes its own.
        progress: called after each epoch with the fraction done and a line of text.
    Raises:
        SpecError: an empty data set, an unknown optimizer, or a loss that became NaN.
        DeviceError: the recipe's device is not there.
    """
    _check(data, recipe)
    started = time.perf_counter()
    if model is None:
        model = build(architecture_for(recipe.architecture, data, recipe.width), recipe.seed)
    model = copy.deepcopy(model).to(recipe.device).train()
    x, y = torch.tensor(data.x, device=recipe.device), torch.tensor(data.y, device=recipe.device)
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = _optimizer(model, recipe)
    steps = recipe.epochs * -(-len(data) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)  # dropout and the like inside a user's model
        for epoch in range(recipe.epochs):
            losses.append(_epoch(model, (x, y), recipe, loss, (optimizer, schedule, generator)))
            if not losses[-1] < float("inf"):
                raise SpecError(f"training diverged: loss {losses[-1]} in epoch {epoch}; lower the learning rate")
            if progress is not None:
                progress((epoch + 1) / recipe.epochs, f"loss {losses[-1]:.4f}")
    return TrainResult(model.eval(), tuple(losses), time.perf_counter() - started, recipe)


def _check(data: Dataset, recipe: Recipe) -> None:
    if len(data) == 0:
        raise SpecError(f"cannot train on '{data.name}': it has no rows")
    if recipe.optimizer not in ("adam", "sgd"):
        raise SpecError(f"optimizer: expected adam or sgd, got '{recipe.optimizer}'")
    if recipe.device.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(f"device {recipe.device} was requested, but torch sees no CUDA device; use device='cpu'")


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adam":
        return torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(model.parameters(), recipe.learning_rate, momentum=0.9, weight_decay=recipe.weight_decay)


def _epoch(model: nn.Module, rows: tuple[Tensor, Tensor], recipe: Recipe, loss: BatchLoss, tools: tuple) -> float:
    (x, y), (optimizer, schedule, generator) = rows, tools
    total = 0.0
    for batch in torch.randperm(len(x), generator=generator).split(recipe.batch_size):
        images = shifted(x[batch], recipe.shift, generator) if recipe.shift else x[batch]
        optimizer.zero_grad()
        value = loss(model, images, y[batch], generator)
        value.backward()
        optimizer.step()
        schedule.step()
        total += float(value.detach()) * len(batch)
    return total / len(x)


def shifted(x: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Each image [n, C, H, W] moved by its own random offset in -pixels..pixels, the gap filled with zeros."""
    n, _, height, width = x.shape
    padded = functional.pad(x, (pixels,) * 4)
    offsets = torch.randint(0, 2 * pixels + 1, (2, n), generator=generator).to(x.device)
    rows = offsets[0][:, None] + torch.arange(height, device=x.device)
    columns = offsets[1][:, None] + torch.arange(width, device=x.device)
    every = torch.arange(n, device=x.device)[:, None, None]
    return padded[every, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
