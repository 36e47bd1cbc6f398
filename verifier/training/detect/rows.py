"""What a scan of a data set answers: a score and a verdict for every row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verifier.data import Dataset


@dataclass(frozen=True)
class RowScores:
    """One method's opinion of every row.

    Attributes:
        method: its name.
        scores: float64 [n], larger is more suspicious; the unit is the method's own.
        flagged: bool [n].
        reason: what was read and compared, in words.
    """

    method: str
    scores: np.ndarray
    flagged: np.ndarray
    reason: str

    @property
    def rows(self) -> np.ndarray:
        """Flagged rows, most suspicious first."""
        found = np.flatnonzero(self.flagged)
        return found[np.argsort(-self.scores[found], kind="stable")]

    def sure(self) -> np.ndarray:
        """How sure, for each flagged row in the order of `rows`: the share of unflagged rows scoring lower."""
        rest = np.sort(self.scores[~self.flagged])
        return np.searchsorted(rest, self.scores[self.rows]) / max(len(rest), 1)


@dataclass(frozen=True)
class Recall:
    """Against the truth: fraction of poisoned rows found, and of clean rows flagged."""

    found: float
    false_alarms: float


def recall(scores: RowScores, poisoned: np.ndarray, data: Dataset) -> Recall:
    """Compare flagged rows with the indices an attack touched."""
    truth = np.zeros(len(data), dtype=bool)
    truth[poisoned] = True
    return Recall(
        float(scores.flagged[truth].mean()) if truth.any() else float("nan"),
        float(scores.flagged[~truth].mean()) if (~truth).any() else float("nan"),
    )
