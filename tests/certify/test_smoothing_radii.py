"""Radii and confidence bounds against published values, exact arithmetic and closed forms."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from verifier.certify.smoothing import confidence, radii
from verifier.certify.smoothing.first_order import gaussian_l2_first_order, slope_upper_bound
from verifier.errors import SpecError


@pytest.mark.parametrize(
    ("p", "cohen", "renyi", "privacy", "uniform", "laplace"),
    [(0.9, 1.2816, 1.0319, 0.3903, 0.8, 1.6094), (0.99, 2.3263, 1.9080, 0.5549, 0.98, 3.9120)],
)
def test_published_values(p, cohen, renyi, privacy, uniform, laplace):
    assert radii.gaussian_l2(p, 1.0) == pytest.approx(cohen, abs=5e-5)
    assert radii.renyi_l2(p, 1.0) == pytest.approx(renyi, abs=5e-5)
    assert radii.differential_privacy_l2(p, 1.0) == pytest.approx(privacy, abs=5e-5)
    assert radii.uniform_l1(p, 1.0) == pytest.approx(uniform, abs=1e-9)
    assert radii.laplace_l1(p, 1.0) == pytest.approx(laplace, abs=5e-5)


@pytest.mark.parametrize(
    ("count", "samples", "expected"), [(99, 100, 0.911373), (9900, 10**4, 0.986531), (10**5, 10**5, 0.999931)]
)
def test_clopper_pearson_values(count, samples, expected):
    assert confidence.lower_bound(count, samples, 0.001) == pytest.approx(expected, abs=1e-6)


@given(st.integers(1, 60), st.data(), st.sampled_from([0.001, 0.01, 0.05, 0.3]))
@settings(max_examples=60, deadline=None)
def test_lower_bound_is_exactly_safe(samples, data, alpha):
    count = data.draw(st.integers(0, samples))
    p = Fraction(confidence.lower_bound(count, samples, alpha))
    tail = sum(comb(samples, i) * p**i * (1 - p) ** (samples - i) for i in range(count, samples + 1))
    assert count == 0 or tail <= Fraction(alpha)
    assert confidence.upper_bound(samples - count, samples, alpha) >= 1 - p


@given(st.floats(0.5, 1 - 1e-9), st.floats(0.01, 100.0))
@settings(max_examples=200, deadline=None)
def test_forms_are_ordered_and_never_above_neyman_pearson(p, sigma):
    best = radii.gaussian_l2(p, sigma)
    # Tolerance zero: the optimum, rounded down, may not exceed a higher-precision quantile.
    assert best <= sigma * stats.norm.isf(1 - p) * (1 + 1e-15)
    assert radii.renyi_l2(p, sigma) <= best
    assert radii.differential_privacy_l2(p, sigma) <= best


@given(st.integers(2, 40), st.data(), st.floats(0.4, 1.0))
@settings(max_examples=100, deadline=None)
def test_ablation_radius_is_the_exact_inequality(features, data, p):
    kept = data.draw(st.integers(1, features))
    rho = radii.ablation_l0(p, features, kept)

    def holds(r):
        return Fraction(3, 2) - Fraction(p) < Fraction(comb(features - r, kept), comb(features, kept))

    assert rho == 0 or holds(rho)
    margin = Fraction(1, 10**9)
    beyond = features - rho - 1 < kept or not (
        Fraction(3, 2) - Fraction(p) + margin < Fraction(comb(features - rho - 1, kept), comb(features, kept))
    )
    assert beyond


def test_two_class_forms_meet_the_one_class_forms():
    assert radii.gaussian_l2(0.8, 2.0, 0.2) == pytest.approx(radii.gaussian_l2(0.8, 2.0))
    assert radii.gaussian_l2(0.8, 2.0, 0.05) > radii.gaussian_l2(0.8, 2.0)
    assert radii.laplace_l1(0.8, 1.0, 0.01) > radii.laplace_l1(0.8, 1.0)
    assert radii.uniform_l1(0.6, 1.0, 0.1) == pytest.approx(0.5)
    assert radii.ablation_l0(0.7, 20, 2, 0.05) >= radii.ablation_l0(0.7, 20, 2)


def test_nothing_is_certified_without_a_majority():
    for p in (0.0, 0.3, 0.5):
        forms = (radii.gaussian_l2, radii.renyi_l2, radii.uniform_l1, radii.laplace_l1)
        values = [form(p, 1.0) for form in forms]
        assert values == [0.0] * 4
        assert radii.differential_privacy_l2(p, 1.0) == 0.0
        assert radii.ablation_l0(p, 10, 2) == 0
        assert gaussian_l2_first_order(p, 0.0, 1.0) == 0.0


def test_malformed_arguments_are_named():
    with pytest.raises(SpecError, match="noise scale"):
        radii.gaussian_l2(0.9, 0.0)
    with pytest.raises(SpecError, match="probabilities"):
        radii.gaussian_l2(float("nan"), 1.0)
    with pytest.raises(SpecError, match="count"):
        confidence.lower_bound(5, 4, 0.01)
    with pytest.raises(SpecError, match="alpha"):
        confidence.lower_bound(1, 4, 0.0)
    with pytest.raises(SpecError, match="kept"):
        radii.ablation_l0(0.9, 4, 5)


@pytest.mark.parametrize("p", [0.55, 0.8, 0.99, 0.9999])
def test_first_order_equals_neyman_pearson_on_a_half_space(p):
    slope = float(stats.norm.pdf(stats.norm.ppf(p)))
    assert gaussian_l2_first_order(p, slope, 1.7) == pytest.approx(1.7 * stats.norm.ppf(p), rel=1e-4)
    assert gaussian_l2_first_order(p, 10.0, 1.7) <= 1.7 * stats.norm.ppf(p)


@pytest.mark.parametrize("half_width", [0.7, 1.5, 3.0])
def test_first_order_is_exact_on_a_slab(half_width):
    """f = 1 on |z_1| <= c has gradient 0, and is itself the worst classifier."""
    p = float(special.ndtr(half_width) - special.ndtr(-half_width))
    radius = gaussian_l2_first_order(p, 0.0, 1.0)
    if p <= 0.5:
        assert radius == 0.0
        return
    at_radius = special.ndtr(half_width - radius) - special.ndtr(-half_width - radius)
    assert 0.5 <= at_radius == pytest.approx(0.5, abs=1e-6)
    assert radius > radii.gaussian_l2(p, 1.0)


def test_first_order_shrinks_as_the_slope_grows():
    values = [gaussian_l2_first_order(0.95, s, 1.0) for s in (0.0, 0.02, 0.05, 0.1, 1.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]


def test_slope_bound_covers_and_converges():
    rng = np.random.default_rng(3)
    truth = float(stats.norm.pdf(0.3))
    bounds = []
    for count in (400, 20000):
        z = rng.standard_normal((2, count, 30))
        means = [(half * (half[:, :1] <= 0.3)).mean(axis=0) for half in z]
        bounds.append(slope_upper_bound(means[0], means[1], count, count, 0.01))
    assert all(b >= truth for b in bounds)
    assert bounds[1] < bounds[0]
    assert bounds[1] < truth + 0.06
