"""The least value of forms over boxes, half-spaces and balls: never too large, exact where it says so."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from verifier.proof.input_set import least
from verifier.spec.problem import Ball, InputSet


def bound(forms, inputs):
    found = least(forms[None], inputs.lower[None, None], inputs.upper[None, None], inputs)
    return (found.value - found.loss)[0]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 3))
def test_half_spaces(seed, rows):
    """At most the linear program's value; for one half-space that value, for several no less than the box's."""
    rng = np.random.default_rng(seed)
    lower = -rng.random(5)
    upper = lower + rng.random(5) * 2
    coeffs = rng.integers(-2, 3, size=(rows, 5)).astype(float)
    inside = lower + rng.random(5) * (upper - lower)
    inputs = InputSet(lower, upper, coeffs, coeffs @ inside + 0.1 * rng.random(rows))
    forms = rng.normal(size=(4, 5)) * (rng.random((4, 5)) < 0.8)
    found, plain = bound(forms, inputs), bound(forms, InputSet(lower, upper))
    for form, value, boxed in zip(forms, found, plain, strict=True):
        exact = linprog(form, inputs.row_coeffs, inputs.row_limits, bounds=np.stack([lower, upper], 1)).fun
        assert value <= exact + 1e-9 and value >= boxed - 1e-9
        if rows == 1:
            assert value == pytest.approx(exact, abs=1e-8)


@pytest.mark.parametrize("p", [1.0, 2.0, np.inf])
def test_balls(p):
    rng = np.random.default_rng(3)
    center, scale, radius = rng.normal(size=6), 0.5 + rng.random(6), 0.7
    inputs = InputSet(center - 5, center + 5, ball=Ball(center, radius, p, scale))
    forms = rng.normal(size=(5, 6))
    dual = {1.0: np.inf, 2.0: 2.0, np.inf: 1.0}[p]
    exact = forms @ center - radius * np.linalg.norm(forms * scale, dual, axis=1)
    found = bound(forms, inputs)
    assert np.all(found <= exact) and np.allclose(found, exact, rtol=0, atol=1e-12)
    tight = InputSet(center - 0.01, center + 0.01, ball=inputs.ball)  # here the box is the smaller
    assert np.allclose(bound(forms, tight), bound(forms, InputSet(tight.lower, tight.upper)), rtol=0, atol=1e-12)


def test_many_boxes_and_forms_at_once():
    rng = np.random.default_rng(5)
    lower = -rng.random((3, 1, 4))
    upper = lower + 1
    inputs = InputSet(np.full(4, -1.0), np.ones(4), rng.normal(size=(2, 4)), rng.random(2))
    forms = rng.normal(size=(3, 5, 4))
    together = least(forms, lower, upper, inputs)
    shared = least(forms[:1], lower, upper, inputs)
    assert together.value.shape == shared.value.shape == (3, 5)
    for k in range(3):
        alone = least(forms[k : k + 1], lower[k : k + 1], upper[k : k + 1], inputs)
        assert np.allclose(together.value[k], alone.value[0], rtol=0, atol=1e-12)
        alone = least(forms[:1], lower[k : k + 1], upper[k : k + 1], inputs)
        assert np.allclose(shared.value[k], alone.value[0], rtol=0, atol=1e-12)


def test_what_is_no_number_proves_nothing():
    inputs = InputSet(np.zeros(2), np.ones(2), np.array([[1.0, 1.0]]), np.array([1.0]))
    for form in ([np.nan, 1.0], [np.inf, -1.0]):
        with np.errstate(invalid="ignore"):
            assert not bound(np.array([form]), inputs)[0] > -np.inf
