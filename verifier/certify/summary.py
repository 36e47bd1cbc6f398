"""A sweep's numbers: accuracies at radii, curves, means; plain data for text, JSON, HTML and plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verifier.certify.rows import Row

#: Reasons of rows that leave nothing open.
_FINISHED = ("gap_reached", "whole_range", "proved_by_bounds", "proved_by_search", "counterexample")


@dataclass(frozen=True)
class Shares:
    """Shares of all samples at one radius, dimensionless, that add up to 1 with `attacked` and `wrong`.

    Attributes:
        certified: right, and proved (or certified by sampling) to stay so within the radius.
        attacked: right, but changed by a counterexample within it.
        open: neither. wrong: misclassified without any change.
    """

    radius: float
    certified: float
    attacked: float
    open: float
    wrong: float

    @property
    def withstood(self) -> float:
        """Accuracy under the attacks: an upper bound on the robust accuracy."""
        return self.certified + self.open


@dataclass(frozen=True)
class Summary:
    """What the rows say together.

    Attributes:
        samples, errors: counts.
        clean: share classified rightly without any change.
        mean_lower, median_lower, mean_upper, median_upper: over all samples without errors, 0 where
            misclassified; uppers are inf where some sample has none.
        geometric_mean_lower: over samples with a positive radius.
        finished: share of the right samples whose ends met the gap, or whose radii were all decided.
        seconds: median a sample.
    """

    samples: int
    errors: int
    clean: float
    mean_lower: float
    median_lower: float
    mean_upper: float
    median_upper: float
    geometric_mean_lower: float
    finished: float
    seconds: float
    shares: tuple[Shares, ...]


def shares_at(rows: Sequence[Row], radius: float) -> Shares:
    """Shares at one radius."""
    verdicts = [row.verdict(radius) for row in rows]
    total = max(len(rows), 1)
    counts = {name: verdicts.count(name) / total for name in ("certified", "attacked", "open", "wrong")}
    return Shares(radius, **counts)


def summarise(rows: Sequence[Row], radii: Sequence[float] = ()) -> Summary:
    """All the numbers of a sweep."""
    good = [row for row in rows if row.status != "error"]
    lower = np.array([row.lower if row.right else 0.0 for row in good])
    upper = np.array([row.upper if row.right else 0.0 for row in good])
    right = [row for row in good if row.right]
    finished = [row for row in right if row.reason in _FINISHED]
    positive = lower[(lower > 0) & np.isfinite(lower)]

    def mean(values: np.ndarray) -> float:
        return float(values.mean()) if values.size else math.nan

    def median(values: np.ndarray) -> float:
        return float(np.median(values)) if values.size else math.nan

    return Summary(
        samples=len(rows),
        errors=len(rows) - len(good),
        clean=len(right) / max(len(rows), 1),
        mean_lower=mean(lower),
        median_lower=median(lower),
        mean_upper=mean(upper),
        median_upper=median(upper),
        geometric_mean_lower=float(np.exp(np.log(positive).mean())) if positive.size else 0.0,
        finished=len(finished) / max(len(right), 1),
        seconds=median(np.array([row.attack_seconds + row.proof_seconds for row in rows])),
        shares=tuple(shares_at(rows, r) for r in radii),
    )


def curve_radii(rows: Sequence[Row], points: int = 400) -> np.ndarray:
    """Radii from 0 to just beyond the largest finite end, for curves."""
    ends = [v for row in rows if row.status != "error" for v in (row.lower, row.upper) if math.isfinite(v)]
    return np.linspace(0.0, 1.05 * max(ends, default=1.0) or 1.0, points)
