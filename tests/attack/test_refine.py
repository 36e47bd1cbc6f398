"""The local search behind falsification: thin slivers that signed steps miss, exact budgets, replay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from verifier.attack.falsify import Falsifier
from verifier.attack.refine import refine
from verifier.run import Run
from verifier.spec.groups import ClauseRows, Group
from verifier.spec.problem import Clause


@dataclass
class Valley:
    """y = (‖x - place‖^2 with badly scaled axes) as an engine: only points within a tiny ellipsoid are unsafe."""

    place: np.ndarray
    scale: np.ndarray

    def evaluate(self, points: np.ndarray) -> np.ndarray:
        return (((points - self.place) / self.scale) ** 2).sum(axis=1, keepdims=True)

    def gradient(self, points: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return weights * 2 * (points - self.place) / self.scale**2


def falsifier(engine: Valley, limit: float, seen: list[np.ndarray]) -> Falsifier:
    inputs = len(engine.place)
    clause = Clause(np.array([[1.0]]), np.array([limit]), np.array([False]))
    group = Group(
        ClauseRows((clause,)), np.zeros((1, inputs)), np.ones((1, inputs)), np.array([[limit]]), np.zeros(1, int)
    )

    def confirm(case: int, point: np.ndarray) -> np.ndarray | None:
        seen.append(point)
        return point if float(engine.evaluate(point[None])[0, 0]) <= limit else None

    return Falsifier(engine, group, confirm, np.random.default_rng(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("inputs", [2, 10, 30])
def test_refinement_finds_a_sliver_that_random_points_do_not(inputs: int) -> None:
    rng = np.random.default_rng(inputs)
    engine = Valley(rng.uniform(0.1, 0.9, inputs), np.geomspace(1.0, 0.02, inputs))
    seen: list[np.ndarray] = []
    search = falsifier(engine, 1e-3, seen)
    assert search.sample(Run(), 200) is None
    points = rng.random((16, inputs))
    found = refine(search, Run(), np.zeros(16, int), points, steps=200)
    assert found is not None
    assert np.all((found >= 0) & (found <= 1))


def test_pgd_goes_on_with_refinement_and_stays_in_the_box() -> None:
    engine = Valley(np.array([1.0, 0.0, 0.37]), np.array([1.0, 0.05, 0.01]))
    seen: list[np.ndarray] = []
    search = falsifier(engine, 1e-4, seen)
    found = search.pgd(Run(), 16, 60)
    assert found is not None
    assert all(np.all((p >= 0) & (p <= 1)) for p in seen)


def test_nothing_is_found_where_nothing_is() -> None:
    engine = Valley(np.array([0.5, 0.5]), np.array([1.0, 1.0]))
    seen: list[np.ndarray] = []
    assert falsifier(engine, -0.1, seen).pgd(Run(), 8, 10) is None
    assert seen == []
