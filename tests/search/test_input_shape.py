"""Rows and balls on sub-boxes: points of the set are never cut off and never fall below the minimum."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.search.input_shape import form_minimum, shrink
from verifier.spec.problem import Ball, InputSet


def inside(inputs, x):
    """Exactly in the set, judged with room for the sampler's own rounding: only clear members count."""
    keep = np.all((x >= inputs.lower) & (x <= inputs.upper), axis=1)
    if inputs.row_coeffs is not None:
        keep &= np.all(x @ inputs.row_coeffs.T <= inputs.row_limits - 1e-12, axis=1)
    if inputs.ball is not None:
        moved = np.abs(x - inputs.ball.center)
        size = (moved != 0).sum(axis=1) if inputs.ball.p == 0 else np.linalg.norm(moved, inputs.ball.p, axis=1)
        keep &= size <= inputs.ball.radius * (1 - 1e-12)
    return keep


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0, 1, 2, np.inf, None]), st.booleans())
def test_no_point_of_the_set_is_lost(seed, p, with_rows):
    rng = np.random.default_rng(seed)
    n, center = 4, rng.normal(size=4)
    lower, upper = center - rng.uniform(0, 2, n), center + rng.uniform(0, 2, n)
    rows = rng.normal(size=(2, n)) if with_rows else None
    limits = None if rows is None else rows @ center + rng.uniform(-0.5, 1, 2)
    ball = None if p is None else Ball(center, float(rng.integers(1, 4)) if p == 0 else rng.uniform(0.2, 2), p)
    inputs = InputSet(lower, upper, rows, limits, ball)
    x = rng.uniform(lower, upper, size=(4000, n))
    x[::2] = np.where(rng.random((2000, n)) < 0.5, center, x[::2])
    x = x[inside(inputs, x)]
    # Sub-boxes that hold samples.
    low = np.maximum(lower, x[:40] - rng.uniform(0, 0.5, (len(x[:40]), n)))
    high = np.minimum(upper, x[:40] + rng.uniform(0, 0.5, (len(x[:40]), n)))
    if not len(low):
        return
    small, large, alive = shrink(inputs, low, high)
    assert alive.all()
    coeffs = rng.normal(size=(len(low), 3, n))
    least = form_minimum(inputs, coeffs, small, large)
    for b in range(len(low)):
        mine = x[np.all((x >= low[b]) & (x <= high[b]), axis=1)]
        assert np.all((mine >= small[b]) & (mine <= large[b]))
        assert np.all(mine @ coeffs[b].T >= least[b])


@pytest.mark.parametrize(("p", "expected"), [(1, -0.9 * 3), (2, -0.9 * np.sqrt(9 + 4 + 1)), (0, -2.0 * 3)])
def test_minima_over_a_whole_ball_are_exact(p, expected):
    """Dual norms; for p = 0 the single largest coefficient times the box."""
    radius = 1.0 if p == 0 else 0.9
    inputs = InputSet(-2 * np.ones(3), 2 * np.ones(3), ball=Ball(np.zeros(3), radius, p))
    found = form_minimum(inputs, np.array([[[1.0, -2.0, 3.0]]]), inputs.lower[None], inputs.upper[None])
    assert found[0, 0] <= expected and found[0, 0] == pytest.approx(expected, rel=1e-12)


def test_a_row_is_used_exactly():
    """min x_0 + x_1 on [-1, 1]^2 with x_0 + x_1 >= 0.5."""
    inputs = InputSet(-np.ones(2), np.ones(2), -np.ones((1, 2)), np.array([-0.5]))
    found = form_minimum(inputs, np.ones((1, 1, 2)), inputs.lower[None], inputs.upper[None])
    assert found[0, 0] <= 0.5 and found[0, 0] == pytest.approx(0.5, rel=1e-12)
