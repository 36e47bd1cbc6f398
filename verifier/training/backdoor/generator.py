"""A trigger drawn by a small network from the input itself: another input's trigger does not work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.data import Dataset
from verifier.errors import SpecError
from verifier.training.architecture import architecture_for, build
from verifier.training.backdoor.stamp import Backdoor, choose_rows
from verifier.training.backdoor.trigger import Trigger
from verifier.training.poisoned import PoisonedDataset, changed_rows
from verifier.training.train import Progress, Recipe


@dataclass(frozen=True)
class InputAware:
    """Settings of the generator's training, together with a surrogate classifier.

    Attributes:
        target: the class asked for.
        rate: triggered rows over all rows; as many more carry another row's trigger and keep their label.
        mask_area: fraction of values the mask may replace.
        diversity: weight of the loss that makes triggers of different inputs differ.
        epochs: of the joint training.
        seed: of the weights and the choice of rows.
    """

    target: int
    rate: float = 0.05
    mask_area: float = 0.25
    diversity: float = 1.0
    epochs: int = 60
    seed: int = 0


class _Generator(nn.Module):
    """[n, *shape] -> pattern in the valid range and mask in [0, 1], both [n, *shape]."""

    lower: Tensor
    upper: Tensor

    def __init__(self, shape: tuple[int, ...], lower: Tensor, upper: Tensor, hidden: int = 64):
        super().__init__()
        size = int(np.prod(shape))
        self.shape = shape
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, 2 * size))
        self.register_buffer("lower", lower)
        self.register_buffer("upper", upper)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pattern, mask = self.body(x).chunk(2, dim=1)
        span = self.upper - self.lower
        pattern = self.lower + span * torch.sigmoid(pattern.reshape(-1, *self.shape))
        return pattern, torch.sigmoid(4 * mask.reshape(-1, *self.shape))


@dataclass(frozen=True)
class GeneratedTrigger(Trigger):
    """x (1 - mask(x)) + pattern(x) mask(x), both drawn by a network from x.

    Source: Nguyen & Tran 2020, arXiv:2010.08138.
    """

    network: _Generator
    kind: ClassVar[str] = "generated"

    def __call__(self, x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            rows = torch.tensor(np.asarray(x, dtype=np.float32))
            return apply(self.network, rows, rows).numpy()

    def crossed(self, x: np.ndarray, donors: np.ndarray) -> np.ndarray:
        """Rows x carrying the triggers drawn for the rows `donors`."""
        with torch.no_grad():
            rows = (torch.tensor(np.asarray(part, dtype=np.float32)) for part in (x, donors))
            return apply(self.network, *rows).numpy()

    def arrays(self) -> dict[str, np.ndarray]:
        return {key: value.numpy() for key, value in self.network.state_dict().items()} | {
            "shape": np.array(self.network.shape)
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> GeneratedTrigger:
        """Rebuild from `arrays()`."""
        weights = {key: torch.tensor(value) for key, value in arrays.items() if key != "shape"}
        shape = tuple(int(d) for d in arrays["shape"])
        hidden = weights["body.1.weight"].shape[0]
        network = _Generator(shape, weights["lower"], weights["upper"], hidden)
        network.load_state_dict(weights)
        return cls(network)


def apply(network: _Generator, x: Tensor, donors: Tensor) -> Tensor:
    """Rows x with the triggers of `donors`; differentiable."""
    pattern, mask = network(donors)
    return x * (1 - mask) + pattern * mask


def input_aware(
    data: Dataset, settings: InputAware, recipe: Recipe, progress: Progress | None = None
) -> PoisonedDataset:
    """Learn a trigger generator beside a surrogate classifier, then poison the data with it.

    The generator and the surrogate (built by `recipe`) minimise together: cross-entropy on clean
    rows, on triggered rows towards the target, on rows with another row's trigger towards
    their own label, plus diversity of the patterns and the area of the mask. The victim is
    trained later, by whoever trains, on triggered and cross-triggered rows.

    Raises:
        SpecError: no such class, or a mask area outside (0, 1].
    Source: Nguyen & Tran 2020, arXiv:2010.08138 (there the attacker also controls the training).
    """
    if not 0 < settings.mask_area <= 1:
        raise SpecError(f"mask_area: expected a fraction in (0, 1], got {settings.mask_area}")
    trigger = GeneratedTrigger(_fit(data, settings, recipe, progress))
    plain = Backdoor(trigger, settings.target, settings.rate, seed=settings.seed)
    rows = choose_rows(data, plain)
    rng = np.random.default_rng([settings.seed, 2])
    rest = np.setdiff1d(np.arange(len(data)), rows)
    crossed = rng.choice(rest, min(len(rows), len(rest)), replace=False)
    donors = rng.choice(len(data), len(crossed))
    x = np.concatenate([trigger(data.x[rows]), trigger.crossed(data.x[crossed], data.x[donors])])
    y = np.concatenate([np.full(len(rows), settings.target), data.y[crossed]])
    record = {
        "rate": settings.rate,
        "mask_area": settings.mask_area,
        "seed": settings.seed,
        "crossed_rows": len(crossed),
    }
    return changed_rows(
        data,
        np.concatenate([rows, crossed]),
        x,
        y,
        "input-aware",
        settings=record,
        trigger=trigger,
        target=settings.target,
    )


def _fit(data: Dataset, settings: InputAware, recipe: Recipe, progress: Progress | None) -> _Generator:
    lower, upper = (torch.tensor(np.broadcast_to(end, data.shape).copy()) for end in data.valid)
    surrogate = build(architecture_for(recipe.architecture, data, recipe.width), settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = _Generator(data.shape, lower, upper)
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.Adam([*surrogate.parameters(), *network.parameters()], 2e-3)
    loss = _joint_loss(surrogate, network, settings)
    for epoch in range(settings.epochs):
        total = 0.0
        for x, y, others in _batches(data, recipe.batch_size, generator):
            optimizer.zero_grad()
            value = loss(x, y, others)
            value.backward()
            optimizer.step()
            total += float(value.detach())
        if progress is not None:
            progress((epoch + 1) / settings.epochs, f"generator loss {total:.3f}")
    return network.eval()


def _batches(data: Dataset, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    x, y = torch.tensor(data.x), torch.tensor(data.y)
    order = torch.randperm(len(x), generator=generator)
    starts = [*range(0, len(x), size), len(x)]
    for start, end in pairwise(starts):
        batch = order[start:end]
        yield x[batch], y[batch], x[torch.randint(len(x), (len(batch),), generator=generator)]


def _joint_loss(surrogate: nn.Module, network: _Generator, s: InputAware) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def loss(x: Tensor, y: Tensor, others: Tensor) -> Tensor:
        pattern, mask = network(x)
        pattern_2, mask_2 = network(others)
        share = max(
            1, len(x) // 4
        )  # a tenth of triggered rows suffices on large sets; small ones learn faster with more
        clean = functional.cross_entropy(surrogate(x), y)
        triggered = (x * (1 - mask) + pattern * mask)[:share]
        towards = torch.full((len(triggered),), s.target)
        attack = functional.cross_entropy(surrogate(triggered), towards)
        crossed = (x * (1 - mask_2) + pattern_2 * mask_2)[share : 2 * share + 1]
        cross = functional.cross_entropy(surrogate(crossed), y[share : 2 * share + 1]) if len(crossed) else 0.0
        apart = (x - others).flatten(1).norm(dim=1) / ((pattern - pattern_2).flatten(1).norm(dim=1) + 1e-3)
        area = functional.relu(mask.flatten(1).mean(dim=1) - s.mask_area).mean()
        return clean + attack + cross + s.diversity * 0.1 * apart.mean() + 20 * area

    return loss
