"""What a targeted attack wants: one input, and the class it should get after training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verifier.data import Dataset
from verifier.errors import ShapeError, SpecError
from verifier.training.poisoned import count_rows


@dataclass(frozen=True)
class Victim:
    """An input that is never trained on.

    Attributes:
        x: float32 [*shape]; wanted: the class it should get.
    """

    x: np.ndarray
    wanted: int

    def as_victims(self) -> tuple[np.ndarray, np.ndarray]:
        """In the form a PoisonedDataset carries."""
        return np.asarray(self.x, dtype=np.float32)[None], np.array([self.wanted])


def checked(victim: Victim, data: Dataset) -> Victim:
    """The victim, if it fits the data.

    Raises:
        ShapeError: another shape; SpecError: a class that has no rows to poison.
    """
    if np.shape(victim.x) != data.shape:
        raise ShapeError(f"victim: expected a row of shape {data.shape}, got {np.shape(victim.x)}")
    if not np.any(data.y == victim.wanted):
        raise SpecError(f"victim: no rows of the wanted class {victim.wanted} to poison")
    return victim


def random_victim(test: Dataset, seed: int) -> Victim:
    """A random test row and a random class other than its own."""
    rng = np.random.default_rng([seed, 7])
    row = int(rng.integers(len(test)))
    wanted = int((test.y[row] + rng.integers(1, len(test.classes))) % len(test.classes))
    return Victim(test.x[row], wanted)


def bases_near(victim: Victim, data: Dataset, rate: float) -> np.ndarray:
    """Rows to poison: `rate` of all rows, those of the wanted class nearest to the victim.

    Raises:
        SpecError: more rows than the wanted class has.
    """
    available = int(np.sum(data.y == victim.wanted))
    return nearest_rows(victim, data, count_rows(rate, available, len(data), "rows of the wanted class"))


def nearest_rows(victim: Victim, data: Dataset, count: int) -> np.ndarray:
    """The `count` rows of the wanted class nearest to the victim in Euclidean distance."""
    candidates = np.flatnonzero(data.y == victim.wanted)
    distance = np.linalg.norm((data.x[candidates] - victim.x).reshape(len(candidates), -1), axis=1)
    return candidates[np.argsort(distance, kind="stable")[:count]]
