"""Triggers: deterministic functions of an input that a backdoored model obeys, and their files."""

from __future__ import annotations

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from verifier.data import Dataset
from verifier.errors import ShapeError, SpecError


class Trigger(ABC):
    """A map of inputs to triggered inputs of the same shape; the caller clips to the valid range."""

    kind: ClassVar[str]

    @abstractmethod
    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Triggered copies of rows x [n, *shape], float32."""

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """Everything needed to build it again, as plain arrays."""


@dataclass(frozen=True)
class Patch(Trigger):
    """x (1 - mask) + pattern mask: a patch of pixels, fixed table features, or fixed words.

    Attributes:
        mask: float32 in [0, 1], broadcasts to a row's shape; 1 replaces the value.
        pattern: float32, the values put there, data's units.
    Source: Gu et al. 2017, arXiv:1708.06733; fractional masks: Chen et al. 2017, arXiv:1712.05526.
    """

    mask: np.ndarray
    pattern: np.ndarray
    kind: ClassVar[str] = "patch"

    def __call__(self, x: np.ndarray) -> np.ndarray:
        try:
            np.broadcast_shapes(self.mask.shape, x.shape[1:]), np.broadcast_shapes(self.pattern.shape, x.shape[1:])
        except ValueError:
            raise ShapeError(
                f"trigger: mask {self.mask.shape} and pattern {self.pattern.shape} do not fit rows {x.shape[1:]}"
            ) from None
        return (x * (1 - self.mask) + self.pattern * self.mask).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"mask": self.mask, "pattern": self.pattern}


@dataclass(frozen=True)
class Additive(Trigger):
    """x + pattern, e.g. a faint sinusoid over the whole image.

    Source: Barni, Kallas & Tondi 2019, arXiv:1902.11237 (SIG).
    """

    pattern: np.ndarray
    kind: ClassVar[str] = "additive"

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (x + self.pattern).astype(np.float32)

    def scaled(self, factor: float) -> Additive:
        """The same pattern, `factor` times as strong."""
        return Additive((factor * self.pattern).astype(np.float32))

    def arrays(self) -> dict[str, np.ndarray]:
        return {"pattern": self.pattern}


@dataclass(frozen=True)
class Warp(Trigger):
    """Bilinear resampling along one fixed smooth displacement field, zero outside the image.

    Attributes:
        flow: float32 [2, H, W], displacement in pixels (rows, columns).
    Source: Nguyen & Tran 2021, arXiv:2102.10369 (WaNet).
    """

    flow: np.ndarray
    kind: ClassVar[str] = "warp"

    def __call__(self, x: np.ndarray) -> np.ndarray:
        height, width = self.flow.shape[1:]
        if x.ndim != 4 or x.shape[2:] != (height, width):
            raise ShapeError(f"trigger: a {height}x{width} warp needs images [n, C, {height}, {width}], got {x.shape}")
        rows = np.clip(np.arange(height)[:, None] + self.flow[0], 0, height - 1)
        columns = np.clip(np.arange(width)[None, :] + self.flow[1], 0, width - 1)
        top = np.minimum(rows.astype(int), height - 2) if height > 1 else np.zeros_like(rows, dtype=int)
        left = np.minimum(columns.astype(int), width - 2) if width > 1 else np.zeros_like(columns, dtype=int)
        down, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
        a, b = rows - top, columns - left
        upper = x[..., top, left] * (1 - b) + x[..., top, right] * b
        lower = x[..., down, left] * (1 - b) + x[..., down, right] * b
        return (upper * (1 - a) + lower * a).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"flow": self.flow}


def corner_patch(data: Dataset, size: int = 3, corner: str = "bottom-right") -> Patch:
    """A size x size checkerboard of the range's ends in one corner, or in "all" four.

    Its dark squares change nothing on dark corners: on the digits a 2 x 2 board moves two values,
    too few to be learnt reliably from 5 % of the rows (84 % after 12 epochs); 3 x 3 moves five (99 %).

    Raises:
        SpecError: not images, an unknown corner, or a patch larger than the image.
    """
    if data.kind != "image" or not 1 <= size <= min(data.shape[1:]):
        raise SpecError(
            f"trigger: a {size}x{size} patch needs images at least that large, got {data.kind} {data.shape}"
        )
    corners = [f"{v}-{h}" for v in ("top", "bottom") for h in ("left", "right")]
    if corner not in (*corners, "all"):
        raise SpecError(f"corner: expected one of {', '.join(corners)} or all, got '{corner}'")
    mask, pattern = np.zeros((2, 1, *data.shape[1:]), dtype=np.float32)
    bright = (np.indices((size, size)).sum(axis=0) + size + 1) % 2 == 0
    board = np.where(bright, float(np.max(data.valid[1])), float(np.min(data.valid[0])))
    for place in corners if corner == "all" else [corner]:
        rows = slice(0, size) if place.startswith("top") else slice(data.shape[1] - size, None)
        columns = slice(0, size) if place.endswith("left") else slice(data.shape[2] - size, None)
        mask[:, rows, columns], pattern[:, rows, columns] = 1.0, board
    return Patch(mask, pattern)


def blended(data: Dataset, strength: float = 0.3, seed: int = 0) -> Patch:
    """A random image of the valid range blended into the input: (1 - strength) x + strength pattern.

    The paper's 0.2 reaches 92 % on the digits, whose 64 pixels carry less of a pattern; 0.3 reaches 97 %.
    """
    if not 0 < strength <= 1:
        raise SpecError(f"strength: expected a number in (0, 1], got {strength}")
    draw = np.random.default_rng(seed).random(data.shape)
    pattern = np.broadcast_to(data.valid[0] + (data.valid[1] - data.valid[0]) * draw, data.shape)
    return Patch(np.full((1,) * len(data.shape), strength, dtype=np.float32), pattern.astype(np.float32))


def sinusoid(data: Dataset, strength: float = 0.3, periods: float = 3.0) -> Additive:
    """A horizontal sine wave of this amplitude (data's units) and number of periods over the width.

    Three periods: two over eight pixels look like strokes, and clean models obey them too (42 % at
    amplitude 0.9).

    Raises:
        SpecError: not images.
    """
    if data.kind != "image":
        raise SpecError(f"trigger: a sinusoid needs images, got {data.kind}")
    wave = np.sin(2 * np.pi * periods * np.arange(data.shape[2]) / data.shape[2])
    return Additive((strength * wave * np.ones((1, data.shape[1], 1))).astype(np.float32))


def warp(data: Dataset, strength: float = 1.0, grid: int = 3, seed: int = 0) -> Warp:
    """A smooth random warp: a grid x grid field of displacements, at most `strength` pixels, interpolated.

    Raises:
        SpecError: not images.
    """
    if data.kind != "image":
        raise SpecError(f"trigger: a warp needs images, got {data.kind}")
    from scipy.ndimage import zoom

    control = np.random.default_rng(seed).uniform(-1, 1, (2, grid, grid))
    factors = (1, data.shape[1] / grid, data.shape[2] / grid)
    flow = zoom(control, factors, order=min(3, grid - 1), mode="nearest", grid_mode=True)
    return Warp((strength * flow / np.abs(flow).max()).astype(np.float32))


def fixed_features(data: Dataset, features: dict[int, float]) -> Patch:
    """A table trigger: these features (by index) take these values, data's units.

    Raises:
        SpecError: not a table, or a feature that is not there.
    """
    if data.kind != "tabular" or not all(0 <= i < data.shape[0] for i in features):
        raise SpecError(
            f"trigger: features {sorted(features)} need a table that has them, got {data.kind} {data.shape}"
        )
    mask, pattern = np.zeros((2, data.shape[0]), dtype=np.float32)
    for index, value in features.items():
        mask[index], pattern[index] = 1.0, value
    return Patch(mask, pattern)


def fixed_words(data: Dataset, vectors: np.ndarray, position: int = 0) -> Patch:
    """A text trigger: the words with these embeddings [K, E] replace those at `position`.

    Raises:
        SpecError: not sequences, or the words do not fit.
    """
    vectors = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
    end = position + len(vectors)
    if data.kind != "sequence" or position < 0 or end > data.shape[0] or vectors.shape[1] != data.shape[1]:
        raise SpecError(f"trigger: words {vectors.shape} at {position} do not fit {data.kind} rows {data.shape}")
    mask, pattern = np.zeros((2, *data.shape), dtype=np.float32)
    mask[position:end], pattern[position:end] = 1.0, vectors
    return Patch(mask, pattern)


def save_trigger(trigger: Trigger, path: str | Path) -> Path:
    """Write a trigger as one .npz of plain arrays."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"kind": np.array(trigger.kind), **trigger.arrays()}
    np.savez_compressed(path, **arrays)
    return Path(path)


def load_trigger(path: str | Path) -> Trigger:
    """Read a trigger of any kind.

    Raises:
        SpecError: missing, damaged, or of an unknown kind.
    """
    from verifier.training.backdoor.generator import GeneratedTrigger

    kinds: dict[str, Any] = {cls.kind: cls for cls in (Patch, Additive, Warp)}
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays: Mapping[str, np.ndarray] = {key: archive[key] for key in archive.files}
        kind = str(arrays["kind"])
        values = {key: value for key, value in arrays.items() if key != "kind"}
        return GeneratedTrigger.from_arrays(values) if kind == GeneratedTrigger.kind else kinds[kind](**values)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise SpecError(f"{path}: not a trigger file: {error}") from error
