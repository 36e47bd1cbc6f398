"""The kernel to copy, on every device with one body: rigour with zero tolerance, closeness apart, odd inputs."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from backends import BACKENDS, Backend

from verifier.errors import ShapeError
from verifier.kernels import reference
from verifier.kernels.example_op import scale_boxes

#: Empty both ways, one element, below, between and above whole vectors, more than one block of threads.
SIZES = [(0, 3), (3, 0), (1, 1), (2, 7), (3, 64), (5, 70), (2, 1003)]
DTYPES = ["float32", "float64"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return Backend(request.param)


def run(backend: Backend, *arrays: np.ndarray, threads: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    low, high = scale_boxes(*(backend.to(x) for x in arrays), threads=threads)
    return backend.back(low), backend.back(high)


def drawn(size: tuple[int, int], dtype: str) -> tuple[np.ndarray, ...]:
    """Boxes, scales and shifts of mixed signs and magnitudes, single points among them."""
    rng = np.random.default_rng(size[1])
    lower = rng.normal(size=size) * rng.choice([1e-6, 1, 1e4], size=size)
    upper = lower + rng.choice([0, 1e-3, 2.0], size=size)
    scale = rng.normal(size=size[1]) * rng.choice([0, 1e-3, 1, 1e3], size=size[1])
    shift = rng.normal(size=size[1]) * rng.choice([0, 1, 1e5], size=size[1])
    return tuple(x.astype(dtype) for x in (lower, upper, scale, shift))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_encloses_every_value_exactly(backend: Backend, dtype: str, size: tuple[int, int]) -> None:
    lower, upper, scale, shift = drawn(size, dtype)
    low, high = run(backend, lower, upper, scale, shift)
    assert low.shape == high.shape == size and low.dtype == high.dtype == np.dtype(dtype)
    for b, i in np.ndindex(*size):
        for x in (lower[b, i], upper[b, i]):
            exact = Fraction(float(x)) * Fraction(float(scale[i])) + Fraction(float(shift[i]))
            assert Fraction(float(low[b, i])) <= exact <= Fraction(float(high[b, i]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_is_close_to_the_reference(backend: Backend, dtype: str) -> None:
    arrays = drawn((5, 70), dtype)
    low, high = run(backend, *arrays)
    wide = [x.astype(np.longdouble) for x in arrays]
    expected = reference.scale_boxes(*wide)
    size = np.maximum(abs(wide[0]), abs(wide[1])) * abs(wide[2]) + abs(wide[3])
    allowed = 8 * np.finfo(dtype).eps * size + 1e-30
    assert (np.abs(low - expected[0]) <= allowed).all() and (np.abs(high - expected[1]) <= allowed).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 1e38])
@pytest.mark.parametrize("place", ["lower", "upper", "scale", "shift"])
def test_odd_numbers_give_no_bounds(backend: Backend, dtype: str, odd: float, place: str) -> None:
    values = {"lower": -1.0, "upper": 1.0, "scale": 2.0, "shift": 3.0}
    values[place] = odd if dtype == "float32" or not np.isfinite(odd) else 1e300
    arrays = [np.full((1, 2) if k in ("lower", "upper") else 2, v, dtype) for k, v in values.items()]
    arrays[list(values).index(place)][..., 1] = 0.5  # the neighbour keeps its bounds
    low, high = run(backend, *arrays)
    assert low[0, 0] == -np.inf and high[0, 0] == np.inf
    assert np.isfinite([low[0, 1], high[0, 1]]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_that_underflow_stay_inside(backend: Backend, dtype: str) -> None:
    least = np.finfo(dtype).smallest_subnormal
    tiny = np.array([[least, -least, np.finfo(dtype).tiny, 0.0]], dtype)
    low, high = run(backend, tiny, tiny, np.full(4, 0.25, dtype), np.zeros(4, dtype))
    for i in range(4):
        assert Fraction(float(low[0, i])) <= Fraction(float(tiny[0, i])) / 4 <= Fraction(float(high[0, i]))


def test_threads_and_strides_change_nothing(backend: Backend) -> None:
    lower, upper, scale, shift = drawn((6, 70), "float32")
    one = run(backend, lower, upper, scale, shift, threads=1)
    three = run(backend, lower, upper, scale, shift, threads=3)
    wide = [backend.to(np.repeat(x, 2, axis=1))[:, ::2] for x in (lower, upper)]
    strided = [backend.back(x) for x in scale_boxes(*wide, backend.to(scale), backend.to(shift))]
    for found in (three, strided):
        assert np.array_equal(one[0], found[0]) and np.array_equal(one[1], found[1])


def test_arrays_that_do_not_fit_are_named(backend: Backend) -> None:
    box, row = backend.to(np.zeros((2, 3))), backend.to(np.zeros(3))
    with pytest.raises(ShapeError, match=r"lower: expected \[B, N\]"):
        scale_boxes(row, row, row, row)
    with pytest.raises(ShapeError, match=r"upper: expected \[2, 3\], got \[1, 3\]"):
        scale_boxes(box, box[:1], row, row)
    with pytest.raises(ShapeError, match="scale: expected float64, got"):
        scale_boxes(box, box, backend.to(np.zeros(3, np.float32)), row)
    with pytest.raises(ShapeError, match="float32 or float64"):
        scale_boxes(*(backend.to(np.zeros(s, np.int64)) for s in ((2, 3), (2, 3), 3, 3)))
    other = torch.zeros(3, dtype=torch.float64) if backend.name != "torch" else np.zeros(3)
    with pytest.raises(ShapeError, match="shift must be from the same library and device"):
        scale_boxes(box, box, row, other)
