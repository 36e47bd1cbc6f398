"""Victims with known answers: linear classifiers, and small networks trained on digits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

INF = float("inf")


@dataclass
class Victim:
    """A trained module with images it classifies correctly."""

    module: nn.Module
    x: Tensor
    y: Tensor


def _train(module: nn.Module, x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(128):
            optimiser.zero_grad()
            nn.functional.cross_entropy(module(x[batch]), y[batch]).backward()
            optimiser.step()
    return module.eval()


def _digits(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    data = load_digits()
    x = torch.tensor(data.data / 16.0, dtype=torch.float32).reshape(-1, *shape)
    return x, torch.tensor(data.target)


def _victim(module: nn.Module, shape: tuple[int, ...], epochs: int, count: int = 32) -> Victim:
    x, y = _digits(shape)
    _train(module, x[:1400], y[:1400], epochs)
    x, y = x[1400:], y[1400:]
    with torch.no_grad():
        right = module(x).argmax(1) == y
    return Victim(module, x[right][:count].clone(), y[right][:count].clone())


@pytest.fixture(scope="session")
def digits() -> Victim:
    """A fully connected network on flat 64-pixel digits."""
    torch.manual_seed(0)
    return _victim(
        nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10)), (64,), 20
    )


@pytest.fixture(scope="session")
def images() -> Victim:
    """A convolutional network on 1 x 8 x 8 digits."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(72, 10),
    )
    return _victim(module, (1, 8, 8), 12)


@dataclass
class Linear:
    """A linear classifier with inputs well inside the valid range, and its exact distances."""

    module: nn.Linear
    x: Tensor
    y: Tensor

    def distance(self, p: float) -> Tensor:
        """Exact minimal lp distortion [B]: min_k margin_k / ‖w_y - w_k‖_q."""
        w, b = self.module.weight.detach().double(), self.module.bias.detach().double()
        q = {1.0: np.inf, 2.0: 2.0, np.inf: 1.0}[float(p)]
        scores = self.x.double() @ w.T + b
        rows = []
        for s, y in zip(scores, self.y, strict=True):
            others = [k for k in range(len(b)) if k != y]
            rows.append(min(float((s[y] - s[k]) / torch.linalg.vector_norm(w[y] - w[k], q)) for k in others))
        return torch.tensor(rows, dtype=torch.float64)


def make_linear(
    classes: int, features: int = 12, count: int = 16, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Linear:
    """Random weights; inputs near 0.5 in [0, 1], so that no face of the valid box is met.

    In float64 the exact distances hold for the program too, down to its round-off.
    """
    generator = torch.Generator().manual_seed(seed)
    module = nn.Linear(features, classes, dtype=dtype)
    with torch.no_grad():
        module.weight.copy_(torch.randn(classes, features, generator=generator, dtype=dtype))
        module.bias.copy_(-module.weight.sum(1) / 2)
    x = 0.5 + 0.06 * torch.randn(count, features, generator=generator, dtype=dtype)
    with torch.no_grad():
        return Linear(module, x, module(x).argmax(1))


@pytest.fixture
def linear() -> Linear:
    """A 4-class linear classifier on 12 features."""
    return make_linear(4)
