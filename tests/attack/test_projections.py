"""Projections against independent solvers: scipy's QP, linear programs, and enumeration."""

from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog, minimize_scalar

from verifier.attack.projections import dual, norm, onto_ball, onto_hyperplane
from verifier.attack.universal.simplex import project_to_simplex

INF = float("inf")


def case(seed: int, rows: int = 8, features: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Perturbations, boxes around zero (some faces at zero, some infinite), radii; float64."""
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(rows, features)) * 2
    low, high = -rng.uniform(0, 2, u.shape), rng.uniform(0, 2, u.shape)
    low[rng.random(u.shape) < 0.2] = 0.0
    high[rng.random(u.shape) < 0.2] = 0.0
    high[rng.random(u.shape) < 0.1] = np.inf
    u[rng.random(u.shape) < 0.1] = 0.0
    radius = rng.uniform(0, 3, rows)
    radius[0] = 0.0
    return tuple(torch.tensor(v) for v in (u, low, high, radius))


def by_dual(u: np.ndarray, low: np.ndarray, high: np.ndarray, radius: float, p: float) -> np.ndarray:
    """Projection by bisection on the Lagrange multiplier: a different algorithm from the one tested."""

    def at(t: float) -> np.ndarray:
        moved = np.sign(u) * np.maximum(np.abs(u) - t, 0) if p == 1 else u / (1 + t)
        return np.clip(moved, low, high)

    size = (lambda d: np.abs(d).sum()) if p == 1 else (lambda d: np.linalg.norm(d))
    if size(at(0.0)) <= radius:
        return at(0.0)
    a, b = 0.0, 1e9
    for _ in range(300):
        m = (a + b) / 2
        a, b = (m, b) if size(at(m)) > radius else (a, m)
    return at(b)


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("seed", range(12))
def test_ball_and_box_projection_is_the_closest_point(p: float, seed: int) -> None:
    u, low, high, radius = case(seed)
    got = onto_ball(u, p, radius, low, high)
    for i in range(len(u)):
        expected = by_dual(u[i].numpy(), low[i].numpy(), high[i].numpy(), float(radius[i]), p)
        np.testing.assert_allclose(got[i].numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_linf_projection_is_clipping(seed: int) -> None:
    u, low, high, radius = case(seed)
    got = onto_ball(u, INF, radius, low, high)
    r = radius[:, None].numpy()
    np.testing.assert_array_equal(
        got.numpy(), np.clip(u.numpy(), np.maximum(low.numpy(), -r), np.minimum(high.numpy(), r))
    )


@pytest.mark.parametrize("seed", range(6))
def test_l0_projection_keeps_the_best_support(seed: int) -> None:
    u, low, high, _ = case(seed, rows=4, features=5)
    for count in range(6):
        got = onto_ball(u, 0.0, torch.full((4,), float(count), dtype=u.dtype), low, high)
        for i in range(4):
            clipped = np.clip(u[i].numpy(), low[i].numpy(), high[i].numpy())
            best = min(
                np.sum((u[i].numpy() - np.where(np.isin(np.arange(5), keep), clipped, 0)) ** 2)
                for keep in itertools.combinations(range(5), count)
            )
            assert (got[i] != 0).sum() <= count
            np.testing.assert_allclose(np.sum((u[i] - got[i]).numpy() ** 2), best, atol=1e-12)


@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 2.0, INF]), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=150, deadline=None)
def test_projections_stay_in_ball_and_box_and_are_idempotent(seed: int, p: float, dtype: torch.dtype) -> None:
    u, low, high, radius = (v.to(dtype) for v in case(seed, rows=4, features=9))
    got = onto_ball(u, p, radius, low, high)
    assert bool(((got >= low) & (got <= high)).all())
    slack = 1e-5 if dtype == torch.float32 else 1e-12
    assert bool((norm(got, p) <= radius * (1 + slack) + slack).all())
    again = onto_ball(got, p, radius, low, high)
    np.testing.assert_allclose(again.numpy(), got.numpy(), atol=10 * slack)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("p", [1.0, INF])
def test_hyperplane_projection_is_optimal_against_a_linear_program(p: float, seed: int) -> None:
    w, low, high, gap = case(seed)
    high = high.clamp_max(2.0)
    got = onto_hyperplane(w, gap, p, low, high)
    for i in range(len(w)):
        wi, lo, hi, g = w[i].numpy(), low[i].numpy(), high[i].numpy(), float(gap[i])
        n = len(wi)
        reach = np.where(wi > 0, wi * hi, wi * lo).sum()
        if reach < g:
            assert float(w[i] @ got[i]) == pytest.approx(reach, abs=1e-9)
            continue
        sizes = 1 if p == INF else n
        cost = np.concatenate([np.zeros(n), np.ones(sizes)])
        block = -np.ones((n, 1)) if p == INF else -np.eye(n)
        limits = np.vstack([np.hstack([np.eye(n), block]), np.hstack([-np.eye(n), block])])
        solved = linprog(
            cost, A_ub=limits, b_ub=np.zeros(2 * n), A_eq=[np.concatenate([wi, np.zeros(sizes)])], b_eq=[g],
            bounds=[*zip(lo, hi, strict=True), *[(0, None)] * sizes],
        )  # fmt: skip
        assert float(norm(got[i : i + 1], p)[0]) == pytest.approx(solved.fun, abs=1e-7)
        assert float(w[i] @ got[i]) == pytest.approx(g, abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
def test_hyperplane_projection_in_l2_satisfies_the_optimality_conditions(seed: int) -> None:
    w, low, high, gap = case(seed)
    high = high.clamp_max(2.0)
    got = onto_hyperplane(w, gap, 2.0, low, high)
    for i in range(len(w)):
        wi, lo, hi, g = w[i].numpy(), low[i].numpy(), high[i].numpy(), float(gap[i])
        if np.where(wi > 0, wi * hi, wi * lo).sum() < g:
            continue
        line = partial(_missing, w=wi, low=lo, high=hi, gap=g)
        solved = minimize_scalar(line, bounds=(0, 1e3), method="bounded", options={"xatol": 1e-12})
        best = np.linalg.norm(np.clip(solved.x * wi, lo, hi))
        assert float(w[i] @ got[i]) == pytest.approx(g, abs=1e-9)
        assert float(got[i].norm()) <= best + 1e-4


def _missing(t: float, w: np.ndarray, low: np.ndarray, high: np.ndarray, gap: float) -> float:
    return (w @ np.clip(t * w, low, high) - gap) ** 2


def test_hyperplane_projection_of_negative_gaps_mirrors() -> None:
    w, low, high, gap = case(3)
    high = high.clamp_max(2.0)
    for p in (0.0, 1.0, 2.0, INF):
        np.testing.assert_array_equal(
            onto_hyperplane(w, -gap, p, -high, -low).numpy(), -onto_hyperplane(w, gap, p, low, high).numpy()
        )


def test_projection_onto_the_simplex_beats_random_points() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        v = torch.tensor(rng.normal(size=5))
        got = project_to_simplex(v)
        assert float(got.min()) >= 0 and float(got.sum()) == pytest.approx(1, abs=1e-12)
        others = torch.tensor(rng.dirichlet(np.ones(5), 500))
        assert bool(((others - v).square().sum(1) >= (got - v).square().sum() - 1e-12).all())


def test_dual_norms() -> None:
    assert (dual(1.0), dual(2.0), dual(INF)) == (INF, 2.0, 1.0)
