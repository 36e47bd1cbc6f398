"""Noise to smooth with: how to draw it, and the radii its theory grants.

A Source draws on one device, from one seed; a Noise only says what to draw. So every noise
works for torch modules on any device and for plain callables without importing torch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from verifier.certify.smoothing import radii
from verifier.errors import SpecError


class Source(ABC):
    """Seeded random arrays of shape [B, *shape], of the classifier's kind (numpy or torch)."""

    @abstractmethod
    def normal(self, shape: tuple[int, ...]) -> Any:
        """Standard normal."""

    @abstractmethod
    def uniform(self, shape: tuple[int, ...]) -> Any:
        """Uniform on [0, 1)."""

    @abstractmethod
    def exponential(self, shape: tuple[int, ...]) -> Any:
        """Exponential of mean 1."""

    @abstractmethod
    def subset(self, rows: int, size: int, kept: int) -> Any:
        """0/1 array [rows, size] with exactly `kept` ones a row, uniformly among such rows."""

    @abstractmethod
    def array(self, values: np.ndarray) -> Any:
        """`values` as an array of this kind, dtype and device."""

    @abstractmethod
    def rows(self, indices: np.ndarray) -> Any:
        """`indices` as an index array for this kind and device."""


class NumpySource(Source):
    """Draws float arrays with numpy's PCG64."""

    def __init__(self, seed: int, dtype: np.dtype):
        self._rng = np.random.default_rng(seed)
        self._dtype = dtype

    def normal(self, shape):
        return self._rng.standard_normal(shape, dtype=self._dtype)

    def uniform(self, shape):
        return self._rng.random(shape, dtype=self._dtype)

    def exponential(self, shape):
        return self._rng.standard_exponential(shape, dtype=self._dtype)

    def subset(self, rows, size, kept):
        order = self._rng.random((rows, size)).argpartition(kept - 1, axis=1)[:, :kept]
        mask = np.zeros((rows, size), dtype=self._dtype)
        np.put_along_axis(mask, order, 1.0, axis=1)
        return mask

    def array(self, values):
        return np.asarray(values, dtype=self._dtype)

    def rows(self, indices):
        return indices


class TorchSource(Source):
    """Draws tensors on `device` with torch's generator of that device."""

    def __init__(self, seed: int, dtype: Any, device: Any):
        import torch

        self._torch = torch
        self._generator = torch.Generator(device=device).manual_seed(seed)
        self._options = {"dtype": dtype, "device": device}

    def normal(self, shape):
        return self._torch.randn(shape, generator=self._generator, **self._options)

    def uniform(self, shape):
        return self._torch.rand(shape, generator=self._generator, **self._options)

    def exponential(self, shape):
        return self._torch.empty(shape, **self._options).exponential_(generator=self._generator)

    def subset(self, rows, size, kept):
        order = self.uniform((rows, size)).topk(kept, dim=1).indices
        return self._torch.zeros((rows, size), **self._options).scatter_(1, order, 1.0)

    def array(self, values):
        return self._torch.as_tensor(np.array(values), **self._options)

    def rows(self, indices):
        return self._torch.as_tensor(indices, device=self._options["device"])


@dataclass(frozen=True)
class Noise(ABC):
    """A distribution of noisy inputs around x.

    Attributes on every noise:
        norm: the ball its radii speak of: 0, 1 or 2.
    """

    @property
    @abstractmethod
    def norm(self) -> float:
        """p of the certified lp ball."""

    @abstractmethod
    def draw(self, x: Any, rows: int, source: Source) -> tuple[Any, Any]:
        """(noisy inputs [rows, *x.shape], the standardised noise behind them, same shape)."""

    @abstractmethod
    def forms(self, features: int) -> dict[str, Callable[[float], float]]:
        """Name of a certificate -> radius as a function of the lower bound on the top probability.

        The first is the strongest and the default; `features` is the number of maskable features.
        """


def _check_scale(name: str, value: float) -> None:
    if not (value > 0.0 and math.isfinite(value)):
        raise SpecError(f"{name}: expected a finite number > 0, got {value}")


@dataclass(frozen=True)
class Gaussian(Noise):
    """x + sigma * normal; l2 radii. sigma in input units."""

    sigma: float

    def __post_init__(self) -> None:
        _check_scale("sigma", self.sigma)

    @property
    def norm(self) -> float:
        return 2.0

    def draw(self, x, rows, source):
        standard = source.normal((rows, *x.shape))
        return x[None] + self.sigma * standard, standard

    def forms(self, features):
        return {
            "neyman-pearson": lambda p: radii.gaussian_l2(p, self.sigma),
            "renyi": lambda p: radii.renyi_l2(p, self.sigma),
            "differential-privacy": lambda p: radii.differential_privacy_l2(p, self.sigma),
        }


@dataclass(frozen=True)
class Uniform(Noise):
    """x + width * uniform on [-1, 1] in every feature; l1 radii. width in input units."""

    width: float

    def __post_init__(self) -> None:
        _check_scale("width", self.width)

    @property
    def norm(self) -> float:
        return 1.0

    def draw(self, x, rows, source):
        standard = 2.0 * source.uniform((rows, *x.shape)) - 1.0
        return x[None] + self.width * standard, standard

    def forms(self, features):
        return {"neyman-pearson": lambda p: radii.uniform_l1(p, self.width)}


@dataclass(frozen=True)
class Laplace(Noise):
    """x + scale * Laplace; l1 radii. scale in input units (standard deviation sqrt(2) * scale)."""

    scale: float

    def __post_init__(self) -> None:
        _check_scale("scale", self.scale)

    @property
    def norm(self) -> float:
        return 1.0

    def draw(self, x, rows, source):
        shape = (rows, *x.shape)
        standard = source.exponential(shape) - source.exponential(shape)
        return x[None] + self.scale * standard, standard

    def forms(self, features):
        return {"neyman-pearson": lambda p: radii.laplace_l1(p, self.scale)}


@dataclass(frozen=True)
class Ablation(Noise):
    """Only `kept` randomly chosen features stay, the others become `fill`; l0 radii (features changed).

    Attributes:
        kept: features kept, >= 1.
        fill: value of a hidden feature; it may not depend on x.
        grouped_axis: axis of x whose entries are hidden together (the channels of a pixel), or None.
    """

    kept: int
    fill: float = 0.0
    grouped_axis: int | None = None

    def __post_init__(self) -> None:
        if self.kept < 1 or not math.isfinite(self.fill):
            raise SpecError(f"ablation: expected kept >= 1 and finite fill, got {self.kept}, {self.fill}")

    @property
    def norm(self) -> float:
        return 0.0

    def positions(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one mask: x's shape with the grouped axis shrunk to 1."""
        if self.grouped_axis is None:
            return tuple(shape)
        axis = self.grouped_axis % len(shape)
        return tuple(1 if i == axis else n for i, n in enumerate(shape))

    def draw(self, x, rows, source):
        positions = self.positions(tuple(x.shape))
        size = math.prod(positions)
        if self.kept > size:
            raise SpecError(f"ablation: keeps {self.kept} features of {size}")
        mask = source.subset(rows, size, self.kept).reshape((rows, *positions))
        return x[None] * mask + self.fill * (1.0 - mask), mask

    def forms(self, features):
        return {"neyman-pearson": lambda p: float(radii.ablation_l0(p, features, self.kept))}
