"""Lines below and above S-shaped functions, on intervals of all sizes and places."""

import numpy as np
import pytest

from verifier.proof.curves import CENTER, line_above, line_below, odd


@pytest.mark.parametrize("curve", CENTER)
def test_lines_hold_on_the_whole_interval(curve):
    rng = np.random.default_rng(1)
    ends = rng.normal(size=(2, 40_000)) * 10 ** rng.uniform(-6, 2, (2, 40_000))
    low, high = ends.min(axis=0), ends.max(axis=0)
    low[:100] = high[:100]
    (slope, start), (steep, end) = line_below(curve, low, high), line_above(curve, low, high)
    for share in np.linspace(0, 1, 33):
        z = low + share * (high - low)
        for x in (z, np.clip(0.0, low, high)):
            assert np.all(slope * x + start <= odd(curve, x)) and np.all(steep * x + end >= odd(curve, x))


@pytest.mark.parametrize("curve", CENTER)
def test_lines_are_tight(curve):
    """They touch the function, up to their margin: at an end, or at the tangent's point."""
    low, high = np.array([-3.0, -1.0, 0.2, -2.0]), np.array([-0.5, 2.0, 3.0, 0.1])
    z = low + np.linspace(0, 1, 2001)[:, None] * (high - low)
    for (slope, offset), sign in ((line_below(curve, low, high), 1), (line_above(curve, low, high), -1)):
        assert np.all((sign * (odd(curve, z) - (slope * z + offset))).min(axis=0) < 1e-4)


def test_what_is_no_number_gives_no_line():
    slope, offset = line_below("Tanh", np.array([np.nan, -np.inf]), np.array([1.0, 1.0]))
    assert np.all(np.isnan(slope + offset) | np.isinf(offset))
