"""RAB: models trained on noisy copies of the data vote; small changes of the features cannot move the vote."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import ncx2, norm

from verifier.certify.smoothing.confidence import lower_bound, upper_bound
from verifier.data import Dataset
from verifier.errors import SpecError
from verifier.training.predict import labels
from verifier.training.train import Progress, Recipe, train


@dataclass(frozen=True)
class Smoothing:
    """Settings.

    Attributes:
        sigma: deviation of the noise on every training value, data's units.
        models: noisy trainings.
        alpha: probability that a certificate is wrong, per test row.
        seed: of the noise.
    """

    sigma: float
    models: int = 200
    alpha: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.sigma > 0 and self.models >= 1 and 0 < self.alpha < 1):
            raise SpecError(f"RAB: expected sigma > 0, models >= 1 and alpha in (0, 1), got {self}")


@dataclass(frozen=True)
class SmoothedVotes:
    """Certified predictions of test rows.

    Attributes:
        labels: int64 [m], -1 where the vote abstains.
        radii: float64 [m], data's units: the prediction holds for every change of the training
            features (labels fixed) whose Euclidean norm over the whole set is below this; 0 if abstaining.
        votes: int64 [m, C], None for the exact rule.
    """

    labels: np.ndarray
    radii: np.ndarray
    votes: np.ndarray | None = None


def radius(sigma: float, first: float, second: float) -> float:
    """(sigma / 2) (Phi^-1(pA) - Phi^-1(pB)), 0 unless pA > pB; rounded down a little for the quantiles' error."""
    if not first > second:  # NaN never certifies
        return 0.0
    value = sigma / 2 * (norm.ppf(min(first, 1 - 1e-15)) - norm.ppf(max(second, 1e-15)))
    return max(float(value) * (1 - 1e-9), 0.0)


def smoothed(
    data: Dataset, test: np.ndarray, recipe: Recipe, settings: Smoothing, progress: Progress | None = None
) -> SmoothedVotes:
    """Train on noisy copies and certify each test row [m, *shape] by the vote.

    pA is bounded below and pB above by exact binomial bounds. The training is a deterministic
    function of the noisy data (fixed seed), as the theorem asks.

    Source: Weber, Xu, Karlas, Zhang & Li 2023, arXiv:2003.08904, theorem 1 and corollary 1.
    """
    votes = np.zeros((len(test), len(data.classes)), dtype=np.int64)
    for number in range(settings.models):
        noise = np.random.default_rng([settings.seed, number]).normal(size=data.x.shape)
        noisy = replace(data, x=data.x + settings.sigma * noise, valid=(-np.inf, np.inf))
        votes[np.arange(len(test)), labels(train(None, noisy, recipe).model, test)] += 1
        if progress is not None:
            progress((number + 1) / settings.models, f"noisy training {number + 1} of {settings.models}")
    return from_votes(votes, settings)


def from_votes(votes: np.ndarray, settings: Smoothing) -> SmoothedVotes:
    """Certificates from votes [m, C] of independent noisy trainings.

    The two leading classes are picked from the same votes; so both bounds of every class hold at
    once with probability 1 - alpha, alpha being divided among the 2 C of them.
    """
    total, share = int(votes[0].sum()) if len(votes) else 0, settings.alpha / (2 * max(votes.shape[1], 1))
    answers, radii = np.full(len(votes), -1, dtype=np.int64), np.zeros(len(votes))
    for row, counts in enumerate(votes):
        first = int(counts.argmax())
        low = lower_bound(int(counts[first]), total, share)
        high = max(upper_bound(int(n), total, share) for k, n in enumerate(counts) if k != first)
        radii[row] = radius(settings.sigma, low, min(high, 1 - low))
        answers[row] = first if radii[row] > 0 else -1
    return SmoothedVotes(answers, radii, votes)


def nearest_neighbour(data: Dataset, test: np.ndarray, sigma: float, *, levels: int = 400) -> SmoothedVotes:
    """The same certificate for the 1-nearest-neighbour rule, computed instead of sampled.

    Squared distances to noisy rows are independent, sigma^2 times noncentral chi-square. With
    levels t_0 < ... < t_L the winning probability of a class is enclosed by
        sum_l P(own minimum in (t_l-1, t_l]) P(others' minimum > t_l)   from below,
        the same with P(others' minimum > t_l-1)                        from above.

    Args:
        levels: cells of the distance axis; more are tighter.
    Source: Weber et al. 2023, arXiv:2003.08904, section VI (exact smoothed K-NN).
    """
    if not (sigma > 0 and levels >= 1):
        raise SpecError(f"nearest neighbour: expected sigma > 0 and levels >= 1, got {sigma}, {levels}")
    answers, radii = np.full(len(test), -1, dtype=np.int64), np.zeros(len(test))
    for row, point in enumerate(test):
        low, high = winning_probabilities(data, point, sigma, levels)
        first = int(low.argmax())
        rival = float(np.delete(high, first).max())
        radii[row] = radius(sigma, float(low[first]), min(rival, 1 - float(low[first])))
        answers[row] = first if radii[row] > 0 else -1
    return SmoothedVotes(answers, radii)


def winning_probabilities(data: Dataset, point: np.ndarray, sigma: float, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds [C] of the probability that the nearest noisy row has each class."""
    size = int(np.prod(data.shape))
    offsets = ((data.x - point).reshape(len(data), -1).astype(np.float64) ** 2).sum(axis=1) / sigma**2
    first, last = (float(ncx2.ppf(q, size, offsets.min())) for q in (1e-7, 1 - 1e-7))
    edges = np.linspace(first, last, levels)
    near = offsets <= offsets.min() + _reach(size, float(offsets.min()), last)
    survive = np.ones((len(data.classes), levels + 2))  # P(minimum of the class > t), t = -inf, edges, inf
    survive[:, -1] = np.where(np.bincount(data.y, minlength=len(data.classes)) > 0, 0.0, 1.0)
    with np.errstate(divide="ignore"):
        for label in range(len(data.classes)):
            own = offsets[(data.y == label) & near]
            if len(own):
                logs = np.log(np.clip(ncx2.sf(edges[None], size, own[:, None]), 0.0, 1.0))
                survive[label, 1:-1] = np.exp(logs.sum(axis=0))
    if not np.isfinite(survive).all():
        return np.zeros(len(survive)), np.ones(len(survive))
    # Rows left out are farther than every edge up to this chance; it is charged to both sides.
    slack = 1e-9 + _skipped(size, offsets[~near], edges[-1])
    cells = survive[:, :-1] - survive[:, 1:]
    low, high = np.zeros(len(survive)), np.zeros(len(survive))
    for label in range(len(survive)):
        others = np.prod(np.delete(survive, label, axis=0), axis=0)
        low[label] = max(float(cells[label] @ others[1:]) - slack, 0.0)
        high[label] = min(float(cells[label] @ others[:-1]) + slack, 1.0)
    return low, high


def _reach(size: int, nearest: float, last: float) -> float:
    """Rows whose squared distance exceeds the nearest's by this have no chance worth counting below `last`."""
    return max(last - nearest, 0.0) + 12 * np.sqrt(2 * (size + 2 * last)) + 72


def _skipped(size: int, far: np.ndarray, last: float) -> float:
    if len(far) == 0:
        return 0.0
    chance = ncx2.cdf(last, size, far.min())
    return float(len(far) * chance) if np.isfinite(chance) else 1.0
