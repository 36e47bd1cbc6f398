"""Data sanitisation: how much loss any poison that passes the outlier filter can cause, and a poison that does.

The filter keeps a row (x, y) when x lies in the ball around its class's centre and in the slab
between the centres. The learner minimises the mean hinge loss over ||(w, b)|| <= norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verifier.data import Dataset
from verifier.errors import SpecError
from verifier.training.train import Progress


@dataclass(frozen=True)
class Filter:
    """Sphere and slab, one entry a class (0: y = -1, 1: y = +1).

    Attributes:
        centers: float64 [2, D], fixed in advance (from trusted rows), so that poison cannot move them.
        radii: float64 [2]; slabs: float64 [2], largest |<x - center, direction>|.
    """

    centers: np.ndarray
    radii: np.ndarray
    slabs: np.ndarray

    @property
    def direction(self) -> np.ndarray:
        """Unit vector between the centres, [D]."""
        between = self.centers[1] - self.centers[0]
        return between / np.linalg.norm(between)

    def keeps(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """bool [n]: which rows x [n, D] with classes y in {0, 1} pass."""
        away = x - self.centers[y]
        inside = np.linalg.norm(away, axis=1) <= self.radii[y]
        return inside & (np.abs(away @ self.direction) <= self.slabs[y])

    def worst(self, w: np.ndarray, label: int) -> np.ndarray:
        """The point [D] of the class's set with the smallest sign * w @ x: exact, by two coordinates.

        In the plane of the slab's direction and the rest of w the set is a disc cut by a strip.
        """
        sign = 2 * label - 1
        along = float(w @ self.direction)
        rest = w - along * self.direction
        length = float(np.linalg.norm(rest))
        limit, radius = float(self.slabs[label]), float(self.radii[label])
        total = float(np.hypot(along, length))
        first = -sign * radius * along / total if total > 0 else 0.0
        first = float(np.clip(first, -min(limit, radius), min(limit, radius)))
        second = -sign * np.sqrt(max(radius**2 - first**2, 0.0))
        away = first * self.direction
        if length > 0:
            away = away + second * rest / length
        return self.centers[label] + away


def fit_filter(trusted: Dataset, keep: float = 0.95) -> Filter:
    """Centres of the trusted classes, and the radii and slabs that keep this share of each.

    Raises:
        SpecError: not two classes, a class without rows, or centres that coincide.
    """
    x, y = flat_rows(trusted)
    if not (0 < keep <= 1 and np.all(np.bincount(y, minlength=2) > 0)):
        raise SpecError("sanitisation: needs trusted rows of both classes and keep in (0, 1]")
    centers = np.stack([x[y == k].mean(axis=0) for k in range(2)])
    if not np.linalg.norm(centers[1] - centers[0]) > 0:
        raise SpecError("sanitisation: the two classes have the same centre")
    direction = (centers[1] - centers[0]) / np.linalg.norm(centers[1] - centers[0])
    away = [x[y == k] - centers[k] for k in range(2)]
    radii = np.array([np.quantile(np.linalg.norm(a, axis=1), keep) for a in away])
    slabs = np.array([np.quantile(np.abs(a @ direction), keep) for a in away])
    return Filter(centers, radii, slabs)


def flat_rows(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Rows float64 [n, D] and classes of a two-class data set."""
    if len(data.classes) != 2:
        raise SpecError(f"sanitisation: expected two classes, got {len(data.classes)}; take two of them")
    return data.x.reshape(len(data), -1).astype(np.float64), data.y


@dataclass(frozen=True)
class Sanitisation:
    """Settings.

    Attributes:
        poison: poisoned rows over clean rows.
        norm: largest Euclidean norm of the learner's (w, b).
        steps: of the online learning.
    """

    poison: float = 0.03
    norm: float = 5.0
    steps: int = 2000

    def __post_init__(self) -> None:
        if not (self.poison >= 0 and self.norm > 0 and self.steps >= 1):
            raise SpecError(f"sanitisation: expected poison >= 0, norm > 0 and steps >= 1, got {self}")


@dataclass(frozen=True)
class SanitisationResult:
    """The certificate and the attack that nearly meets it.

    Attributes:
        bound: no attack that passes the filter makes the mean hinge loss on the clean rows of the
            learner (the exact minimiser) exceed this; the share it gets wrong is no larger either.
        clean_loss: the learner's mean hinge loss without poison, by the same descent.
        reached: the same loss after training on the clean rows and the matching attack.
        wrong: share of clean rows the attacked learner gets wrong.
        x, y: the attack's rows, [k, D] and classes [k].
    """

    bound: float
    clean_loss: float
    reached: float
    wrong: float
    x: np.ndarray
    y: np.ndarray


def certify_filter(
    clean: Dataset, rule: Filter, settings: Sanitisation, progress: Progress | None = None
) -> SanitisationResult:
    """Bound the damage of any poison by online learning, and collect the poison it meets.

    For every (w, b) in the ball,
        U(w, b) = mean hinge on clean rows + poison * max over the filter's set of the hinge
    is at least the poisoned learner's minimum, whatever the poison; the smallest U seen is the bound.

    Args:
        clean: two classes; only rows that pass the filter count, since the filter drops the others.
    Raises:
        SpecError: no clean row passes.
    Source: Steinhardt, Koh & Liang 2017, arXiv:1706.03691 (algorithm 1, with fixed centres).
    """
    x, y = flat_rows(clean)
    kept = rule.keeps(x, y)
    x, y = x[kept], y[kept]
    if len(x) == 0:
        raise SpecError("sanitisation: no clean row passes the filter; raise keep")
    w, b, bound = np.zeros(x.shape[1]), 0.0, np.inf
    met_x, met_y = [], []
    scale = np.sqrt((x**2).sum(axis=1).mean() + 1)
    for step in range(settings.steps):
        hardest = [rule.worst(w, label) for label in range(2)]
        losses = [_hinge(w, b, point[None], np.array([label]))[0] for label, point in enumerate(hardest)]
        label = int(np.argmax(losses))
        value = float(_hinge(w, b, x, y).mean() + settings.poison * max(losses))
        bound = min(bound, value)
        met_x.append(hardest[label])
        met_y.append(label)
        gradient = _gradient(w, b, x, y)
        attack = _gradient(w, b, hardest[label][None], np.array([label]))
        rate = settings.norm / scale / np.sqrt(step + 1)
        w, b = _projected(
            w - rate * (gradient[0] + settings.poison * attack[0]),
            b - rate * (gradient[1] + settings.poison * attack[1]),
            settings.norm,
        )
        if progress is not None and step % 100 == 99:
            progress((step + 1) / settings.steps, f"bound {bound:.4f}")
    count = int(np.floor(settings.poison * len(x)))
    taken = np.linspace(len(met_x) // 4, len(met_x) - 1, max(count, 1)).astype(int)[:count]
    bad_x, bad_y = np.array(met_x)[taken].reshape(count, x.shape[1]), np.array(met_y, dtype=np.int64)[taken]
    attacked = learn(np.concatenate([x, bad_x]), np.concatenate([y, bad_y]), settings)
    before = learn(x, y, settings)
    return SanitisationResult(
        bound=bound * (1 + 1e-9) + 1e-12,
        clean_loss=float(_hinge(*before, x, y).mean()),
        reached=float(_hinge(*attacked, x, y).mean()),
        wrong=float(np.mean((x @ attacked[0] + attacked[1]) * (2 * y - 1) <= 0)),
        x=bad_x,
        y=bad_y,
    )


def learn(x: np.ndarray, y: np.ndarray, settings: Sanitisation) -> tuple[np.ndarray, float]:
    """(w, b) of the learner, by projected subgradient descent, the best iterate."""
    w, b = np.zeros(x.shape[1]), 0.0
    best, best_value = (w, b), np.inf
    scale = np.sqrt((x**2).sum(axis=1).mean() + 1)
    for step in range(settings.steps):
        value = float(_hinge(w, b, x, y).mean())
        if value < best_value:
            best, best_value = (w, b), value
        gradient = _gradient(w, b, x, y)
        rate = settings.norm / scale / np.sqrt(step + 1)
        w, b = _projected(w - rate * gradient[0], b - rate * gradient[1], settings.norm)
    return best


def _hinge(w: np.ndarray, b: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, 1 - (2 * y - 1) * (x @ w + b))


def _gradient(w: np.ndarray, b: float, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    sign = 2 * y - 1
    active = (sign * (x @ w + b) < 1) * sign
    return -(active @ x) / len(x), -float(active.mean())


def _projected(w: np.ndarray, b: float, norm: float) -> tuple[np.ndarray, float]:
    length = float(np.sqrt(w @ w + b * b))
    shrink = min(1.0, norm / length) if length > 0 else 1.0
    return w * shrink, b * shrink
