"""Linear forms over a ball cut by a box: never above a sampled value, equal to the exact minimum."""

import numpy as np
import pytest
import torch
from scipy import optimize

from verifier.bounds.backward import LinearForm
from verifier.bounds.concretize import InputShape, concretize
from verifier.certify.threat import Nearness


def bound(coeffs, nearness, center, radius):
    inputs = nearness.input_set(center, radius)
    form = LinearForm(torch.tensor(coeffs)[None, None], torch.zeros(1, 1).double(), torch.zeros(1, 1).double(), {})
    low, high = torch.tensor(inputs.lower)[None], torch.tensor(inputs.upper)[None]
    value, _ = concretize(form, low, high, InputShape.of(inputs, torch.device("cpu")))
    return float(value)


def exact(coeffs, center, radius, p, low, high, scale):
    """By an independent solver (l2) or linear program (l1)."""
    if p == 1:
        n = len(coeffs)
        split = np.block([[np.eye(n), -np.eye(n)]])
        rows = np.concatenate([np.concatenate([1 / scale, 1 / scale])[None], split, -split])
        limits = np.concatenate([[radius], high - center, center - low])
        answer = optimize.linprog(np.concatenate([coeffs, -coeffs]), rows, limits, bounds=(0, None))
        return float(coeffs @ center + answer.fun)

    def place(t):
        return np.clip(-t * scale**2 * coeffs, low - center, high - center)

    def excess(log_t):
        return np.linalg.norm(place(np.exp(log_t)) / scale) - radius

    step = place(np.exp(60.0)) if excess(60.0) <= 0 else place(np.exp(optimize.brentq(excess, -60, 60, xtol=1e-14)))
    return float(coeffs @ (center + step))


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("seed", range(25))
def test_box_and_ball_together_are_exact(p, seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 12))
    center, coeffs = rng.random(n), rng.standard_normal(n) * 10.0 ** rng.integers(-3, 3, n)
    center[rng.random(n) < 0.3] = 0.0
    scale = rng.choice([0.5, 1.0, 3.0], n) if seed % 2 else np.ones(n)
    radius = float(10.0 ** rng.uniform(-2, 1))
    nearness = Nearness(p, (np.zeros(n), np.ones(n)), scale=scale if seed % 2 else None)
    found = bound(coeffs, nearness, center, radius)
    truth = exact(coeffs, center, radius, p, np.zeros(n), np.ones(n), scale)
    assert found == pytest.approx(truth, abs=1e-9 * (1 + np.abs(coeffs).sum()))
    points = center + rng.standard_normal((4000, n)) * scale * radius
    points = np.clip(points, 0, 1)
    points = points[np.linalg.norm((points - center) / scale, ord=p, axis=1) <= radius]
    assert np.all(points @ coeffs >= found)


@pytest.mark.parametrize("budget", [0, 1, 2, 5, 9])
def test_feature_budgets_are_exact(budget):
    rng = np.random.default_rng(budget)
    center, coeffs = rng.random(6), rng.standard_normal(6)
    found = bound(coeffs, Nearness(0.0, (np.zeros(6), np.ones(6))), center, budget)
    gains = np.sort(np.where(coeffs >= 0, coeffs * center, coeffs * (center - 1)))[::-1]
    truth = coeffs @ center - gains[:budget].sum()
    assert truth - 1e-12 <= found <= truth


def test_features_outside_the_mask_cost_nothing():
    coeffs, center = np.array([1.0, 100.0]), np.array([0.5, 0.25])
    for p in (1.0, 2.0, np.inf):
        found = bound(coeffs, Nearness(p, mask=np.array([True, False])), center, 0.125)
        assert 25.5 - 0.125 - 1e-9 <= found <= 25.5 - 0.125
