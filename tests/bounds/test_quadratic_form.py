"""Quadratic forms over the cube: bounds and tangents checked in exact fractions, and against closed forms."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.bounds.curvature import Cube, Curvature
from verifier.bounds.quadratic_form import convex_part, termwise_minimum

KINDS = ("any", "convex", "rank one", "concave", "cancelling", "zero row")


def form_of(kind, rng, n):
    root = rng.standard_normal((n, n)) * 10.0 ** rng.integers(-6, 6)
    if kind == "convex":
        return root @ root.T
    if kind == "concave":
        return -root @ root.T
    if kind == "rank one":
        return np.outer(root[0], root[0])
    if kind == "cancelling":
        return np.outer(root[0], root[0]) - np.outer(root[0], root[0] * (1 + 1e-14))
    if kind == "zero row":
        root[0] = 0
        return root @ root.T
    return root


def exact(matrix, left, right):
    return sum(
        Fraction(float(matrix[j, k])) * Fraction(float(left[j])) * Fraction(float(right[k]))
        for j in range(len(left))
        for k in range(len(right))
    )


def points(rng, n):
    return np.concatenate([rng.integers(0, 2, (8, n)) * 2.0 - 1, rng.uniform(-1, 1, (4, n)), np.zeros((1, n))])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(KINDS), st.integers(1, 6))
def test_every_tangent_of_the_convex_part_stays_below(seed, kind, n):
    rng = np.random.default_rng(seed)
    form = form_of(kind, rng, n)
    convex, least = convex_part(torch.as_tensor(form)[None])
    plain = Fraction(float(termwise_minimum(torch.as_tensor(form)[None])[0]))
    s, rest = convex[0].numpy(), Fraction(float(least[0]))
    assert torch.equal(convex[0], convex[0].mT)
    for t in points(rng, n):
        value = exact(form, t, t)
        assert value >= plain
        for at in points(rng, n)[::3]:
            assert value >= 2 * exact(s, at, t) - exact(s, at, at) + rest


def test_a_convex_form_loses_only_rounding():
    root = np.random.default_rng(0).standard_normal((5, 5))
    convex, least = convex_part(torch.as_tensor(root @ root.T)[None])
    assert -1e-11 < float(least) <= 0
    torch.testing.assert_close(convex[0], torch.as_tensor(root @ root.T))


def test_what_is_not_finite_proves_nothing():
    form = torch.eye(3, dtype=torch.float64).repeat(3, 1, 1)
    form[0, 1, 1], form[1, 0, 2] = torch.nan, torch.inf
    convex, least = convex_part(form)
    assert not (least[:2] > -torch.inf).any() and torch.isfinite(convex).all()
    assert float(least[2]) == pytest.approx(0.0, abs=1e-12)


def test_no_rows():
    convex, least = convex_part(torch.zeros(2, 0, 3, 3, dtype=torch.float64))
    assert convex.shape == (2, 0, 3, 3) and least.shape == (2, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([torch.float32, torch.float64]), st.booleans())
def test_the_tangent_stays_below_in_exact_arithmetic(seed, dtype, fixed):
    """(coeffs + added) @ x + offset - error is nowhere above coeffs @ x + t^T S t, t = (x - middle) / radius."""
    rng = np.random.default_rng(seed)
    n = 3
    middle = rng.standard_normal(n) * 10.0 ** rng.integers(-2, 4)
    lower, upper = (middle + side * rng.uniform(1e-6, 1, n) for side in (-1, 1))
    if fixed:
        upper[1] = lower[1]
    lower, upper = (torch.as_tensor(v[None], dtype=dtype) for v in (lower, torch.as_tensor(upper).numpy()))
    lower, upper = torch.minimum(lower, upper), torch.maximum(lower, upper)
    cube = Cube.of(lower, upper)
    root = rng.integers(-8, 9, (len(cube.moving), len(cube.moving))) / 4.0  # so that root root^T is exact
    coeffs = torch.as_tensor(rng.standard_normal((1, 1, n)), dtype=dtype)
    found = Curvature(cube, torch.as_tensor(root @ root.T)[None, None])
    added, offset, error = found.tangent(coeffs, torch.finfo(dtype).eps / 2)
    total = (coeffs + added)[0, 0].numpy()
    for share in points(rng, n):
        x = (lower + (upper - lower) * torch.as_tensor(0.5 * (share + 1), dtype=dtype)).clamp(lower, upper)[0].numpy()
        x = [Fraction(float(v)) for v in x]
        m, r = ([Fraction(float(v)) for v in w[0]] for w in (cube.middle, cube.radius))
        t = [(x[j] - m[j]) / r[j] for j in cube.moving.tolist()]
        assert all(abs(v) <= 1 for v in t)
        curved = sum(
            (sum(Fraction(float(root[j, k])) * t[j] for j in range(len(t))) ** 2 for k in range(len(t))), Fraction(0)
        )
        value = sum(Fraction(float(a)) * v for a, v in zip(coeffs[0, 0].numpy(), x, strict=True)) + curved
        linear = sum(Fraction(float(a)) * v for a, v in zip(total, x, strict=True))
        assert linear + Fraction(float(offset)) - Fraction(float(error)) <= value


def test_the_tangent_is_taken_at_the_minimiser():
    """min x_0 + 2 x_1 + x_0^2 + 2 x_1^2 over [-1, 1]^2 is -3/4, at (-1/2, -1/2)."""
    lower, upper = -torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    coeffs = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64)
    found = Curvature(Cube.of(lower, upper), torch.diag(torch.tensor([1.0, 2.0], dtype=torch.float64))[None, None])
    added, offset, error = found.tangent(coeffs, 2.0**-53)
    least = float(-(coeffs + added).abs().sum() + offset - error)
    assert least <= -0.75 and least == pytest.approx(-0.75, abs=1e-12)
