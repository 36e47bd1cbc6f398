"""A labelled data set as plain arrays in the user's own units, with its valid range."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from verifier.errors import ShapeError, SpecError

KINDS = ("image", "tabular", "sequence")
_SAMPLE_AXES = {"image": 3, "tabular": 1, "sequence": 2}


@dataclass(frozen=True)
class Dataset:
    """Rows and labels; every transformation returns a new Dataset and leaves this one alone.

    Attributes:
        x: float32 [n, *shape], finite, in the user's units. Shape is [C, H, W] for images,
            [F] for tables, [T, E] (tokens, embedding) for sequences.
        y: int64 [n], in 0..len(classes)-1.
        classes: class names, at least two.
        kind: "image", "tabular" or "sequence".
        valid: (lower, upper), float32, each scalar or [*shape]: the values an input may take.
            Round-off outside it is clipped, anything more is an error.
        name: for messages and reports.

    Raises:
        ShapeError: x, y and kind do not fit together.
        SpecError: NaN, labels outside the classes, fewer than two classes, rows outside `valid`.
    """

    x: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...]
    kind: str = "image"
    valid: tuple[np.ndarray | float, np.ndarray | float] = (0.0, 1.0)
    name: str = "data"

    def __post_init__(self) -> None:
        where = f"data set '{self.name}'"
        if self.kind not in KINDS:
            raise SpecError(f"{where}: kind: expected one of {', '.join(KINDS)}, got '{self.kind}'")
        x = np.array(self.x, dtype=np.float32)
        if x.ndim != _SAMPLE_AXES[self.kind] + 1:
            raise ShapeError(
                f"{where}: x of kind {self.kind} needs {_SAMPLE_AXES[self.kind] + 1} axes (rows first), got {x.shape}"
            )
        y = self._checked_labels(x.shape[0], where)
        valid = self._checked_range(x, where)
        x = np.clip(x, *valid)
        for array in (x, y, *valid):
            array.flags.writeable = False
        for key, value in (("x", x), ("y", y), ("valid", valid), ("classes", tuple(map(str, self.classes)))):
            object.__setattr__(self, key, value)

    def _checked_labels(self, rows: int, where: str) -> np.ndarray:
        y = np.asarray(self.y)
        if y.shape != (rows,):
            raise ShapeError(f"{where}: y: expected [{rows}] labels, one a row of x, got shape {y.shape}")
        if y.size and (y.dtype.kind not in "iub" or y.min() < 0 or y.max() >= len(self.classes)):
            last = len(self.classes) - 1
            raise SpecError(f"{where}: labels must be integers in 0..{last}, the number of class names")
        if len(self.classes) < 2:
            raise SpecError(f"{where}: expected at least two classes, got {len(self.classes)}")
        return np.array(y, dtype=np.int64)

    def _checked_range(self, x: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
        if not np.all(np.isfinite(x)):
            raise SpecError(f"{where}: {int(np.sum(~np.isfinite(x)))} values of x are NaN or infinite; clean the file")
        lower, upper = (np.array(end, dtype=np.float32) for end in self.valid)
        try:
            np.broadcast_shapes(lower.shape, x.shape[1:]), np.broadcast_shapes(upper.shape, x.shape[1:])
        except ValueError:
            raise ShapeError(f"{where}: valid range {lower.shape} does not broadcast to a row {x.shape[1:]}") from None
        if not np.all(lower <= upper):
            raise SpecError(f"{where}: valid range is empty or NaN somewhere: lower must be <= upper")
        with np.errstate(invalid="ignore"):
            slack = np.where(np.isfinite(upper - lower), 1e-5 * (upper - lower), 0.0)
        if x.size and (np.any(x < lower - slack) or np.any(x > upper + slack)):
            raise SpecError(
                f"{where}: x spans [{x.min():g}, {x.max():g}], outside the valid range; scale x or give `valid`"
            )
        return lower, upper

    def __len__(self) -> int:
        return self.x.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.x.shape[1:]

    def subset(self, rows: np.ndarray | Sequence[int]) -> Dataset:
        """The rows at these indices (or under this boolean mask), in that order."""
        rows = np.asarray(rows)
        if rows.size == 0:
            rows = rows.astype(np.int64)
        return replace(self, x=self.x[rows], y=self.y[rows])

    def with_rows(self, x: np.ndarray, y: np.ndarray) -> Dataset:
        """The same kind of data with other rows."""
        return replace(self, x=x, y=y)

    def joined(self, other: Dataset) -> Dataset:
        """These rows followed by the other's."""
        if other.shape != self.shape or other.classes != self.classes:
            raise ShapeError(f"cannot join '{other.name}' {other.shape} to '{self.name}' {self.shape}: they differ")
        return self.with_rows(np.concatenate([self.x, other.x]), np.concatenate([self.y, other.y]))

    def without(self, rows: np.ndarray | Sequence[int]) -> Dataset:
        """All rows but these."""
        keep = np.ones(len(self), dtype=bool)
        keep[np.asarray(rows, dtype=np.int64)] = False
        return self.subset(keep)

    def label(self, name_or_index: str | int) -> int:
        """A class by its name or its index.

        Raises:
            SpecError: no such class.
        """
        text = str(name_or_index)
        if text in self.classes:
            return self.classes.index(text)
        if text.isdigit() and int(text) < len(self.classes):
            return int(text)
        raise SpecError(f"'{self.name}' has no class '{text}'; its classes are {', '.join(self.classes)}")

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with any value, label or the order of the rows."""
        digest = hashlib.sha256(repr((self.x.shape, self.classes, self.kind)).encode())
        digest.update(self.x.tobytes())
        digest.update(self.y.tobytes())
        return digest.hexdigest()[:16]

    def save(self, path: str | Path) -> Path:
        """Write one .npz file that `load_npz` reads back unchanged."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            path,
            x=self.x,
            y=self.y,
            classes=np.array(self.classes),
            kind=np.array(self.kind),
            valid_lower=self.valid[0],
            valid_upper=self.valid[1],
            name=np.array(self.name),
        )
        return path


@dataclass(frozen=True)
class Split:
    """Three disjoint parts: `train` may be attacked, `test` measures, `trusted` is the defender's own."""

    train: Dataset
    test: Dataset
    trusted: Dataset
    seed: int = field(default=0)


def split(data: Dataset, *, test: float = 0.25, trusted: float = 0.1, seed: int = 0) -> Split:
    """Divide the rows at random into train, test and trusted parts.

    Args:
        data: at least one row for each part.
        test, trusted: fractions of the rows, dimensionless, each >= 0 and together below 1.
        seed: of the permutation.
    Raises:
        SpecError: fractions that leave no row to train on.
    """
    if not (test >= 0 and trusted >= 0 and test + trusted < 1):
        raise SpecError(f"split: test {test} and trusted {trusted} must be >= 0 and leave rows to train on")
    order = np.random.default_rng(seed).permutation(len(data))
    n_test, n_trusted = round(test * len(data)), round(trusted * len(data))
    parts = np.split(order, [n_test, n_test + n_trusted])
    return Split(data.subset(parts[2]), data.subset(parts[0]), data.subset(parts[1]), seed)
