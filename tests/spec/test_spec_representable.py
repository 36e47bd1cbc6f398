"""Which floats a box holds, and snapping candidates onto them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.spec.exact import outside
from verifier.spec.problem import Ball, InputSet, lp_ball
from verifier.spec.representable import (
    below,
    float_ceiling,
    float_floor,
    hull_of_deployed_inputs,
    snap_to_valid,
)

doubles = st.floats(-1e38, 1e38)


@given(doubles)
def test_directed_rounding_brackets_and_is_tight(value):
    high, low = float(float_ceiling(np.array(value), "float32")), float(float_floor(np.array(value), "float32"))
    assert low <= value <= high
    assert high == np.float32(high) and low == np.float32(low)
    assert high == low or np.nextafter(np.float32(low), np.float32(np.inf)) == high
    assert below(value, "float32") < value
    assert np.nextafter(np.float32(below(value, "float32")), np.float32(np.inf)) >= value


@given(doubles, doubles)
def test_hull_widens_only_boxes_without_a_float(a, b):
    lower, upper = np.array([min(a, b), a]), np.array([max(a, b), a])
    new_lower, new_upper = hull_of_deployed_inputs(lower, upper, "float32")
    assert np.all(new_lower <= lower) and np.all(new_upper >= upper)
    for i in range(2):
        if float(float_ceiling(lower[i], "float32")) <= upper[i]:
            assert new_lower[i] == lower[i] and new_upper[i] == upper[i]
        else:
            assert new_lower[i] <= np.float32(lower[i]) <= new_upper[i]


def test_hull_leaves_empty_dimensions_and_float64_alone():
    lower, upper = np.array([0.2, 0.1]), np.array([0.1, 0.1])
    new_lower, new_upper = hull_of_deployed_inputs(lower, upper, "float32")
    assert new_lower[0] > new_upper[0]
    assert hull_of_deployed_inputs(lower, upper, "float64") == (lower, upper)


@settings(max_examples=200)
@given(st.data())
def test_snapped_points_are_floats_of_the_box(data):
    n = data.draw(st.integers(1, 4))
    ends = [sorted(data.draw(st.tuples(doubles, doubles))) for _ in range(n)]
    box = InputSet(np.array([e[0] for e in ends]), np.array([e[1] for e in ends]))
    x = np.array(data.draw(st.lists(st.floats(), min_size=n, max_size=n)))
    snapped = snap_to_valid(box, x)
    assert snapped.dtype == np.float32 and snapped.shape == (n,)
    assert outside(box, snapped.astype(np.float64), "float32") == ""


def test_snapping_keeps_valid_floats_and_batches():
    box = InputSet(np.zeros(3), np.full(3, 0.1))
    x = np.float32([[0.05, 0.0, 0.025], [1.0, -1.0, np.nan]])
    snapped = snap_to_valid(box, x)
    assert np.array_equal(snapped[0], x[0])
    assert snapped[1].tolist() == [np.nextafter(np.float32(0.1), np.float32(0)), 0, 0]
    assert float(np.float32(0.1)) > 0.1


@pytest.mark.parametrize("p", [1, 2, np.inf, 0])
@pytest.mark.parametrize("scaled", [False, True])
def test_snapping_repairs_balls(p, scaled):
    rng = np.random.default_rng(3)
    center = rng.uniform(0, 1, 20)
    radius = 3.0 if p == 0 else 0.3
    inputs = lp_ball(center, radius, p, valid=(-2, 3))
    scale = rng.uniform(0.5, 2, 20) if scaled else None
    inputs = InputSet(inputs.lower, inputs.upper, ball=Ball(center, radius, p, scale))
    x = center + rng.normal(size=(50, 20))
    for point in snap_to_valid(inputs, x).astype(np.float64):
        assert outside(inputs, point, "float32") == ""
        if p == 0:
            assert np.count_nonzero(point != center.astype(np.float32)) == 3
        elif p == 2:
            size = np.linalg.norm((point - center) / (1 if scale is None else scale))
            assert size > 0.29  # repaired, not collapsed onto the center


def test_snapping_repairs_linear_rows():
    rng = np.random.default_rng(4)
    inputs = InputSet(np.full(5, -1.0), np.ones(5), rng.normal(size=(3, 5)), np.full(3, 0.2))
    x = rng.uniform(-1, 1, size=(100, 5))
    good = [outside(inputs, point, "float32") == "" for point in snap_to_valid(inputs, x).astype(np.float64)]
    assert np.mean(good) > 0.9


def test_membership_is_exact():
    third = InputSet(np.zeros(2), np.ones(2), np.array([[1.0, 1.0]]), np.array([0.75]))
    assert outside(third, np.array([0.5, 0.25]), "float32") == ""
    assert "row 0" in outside(third, np.array([0.5, np.nextafter(0.25, 1)]), "float64")
    strict = InputSet(np.zeros(2), np.ones(2), np.array([[1.0, 1.0]]), np.array([0.75]), row_strict=np.array([True]))
    assert "row 0" in outside(strict, np.array([0.5, 0.25]), "float32")
    ball = InputSet(np.full(2, -9.0), np.full(2, 9.0), ball=Ball(np.zeros(2), 5.0, 2))
    assert outside(ball, np.array([3.0, 4.0]), "float32") == ""
    assert "l2" in outside(ball, np.array([3.0, np.nextafter(4, 5)]), "float64")
    assert "input 1" in outside(third, np.array([0.5, np.nan]), "float32")


def test_a_point_without_a_float_accepts_its_rounding():
    box = InputSet(np.array([0.208333]), np.array([0.208333]))
    rounded = float(np.float32(0.208333))
    assert outside(box, np.array([rounded]), "float32") == ""
    assert outside(box, np.array([float(np.nextafter(np.float32(rounded), np.float32(1)))]), "float32") != ""
