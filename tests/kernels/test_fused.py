"""The compiled kernels: one body for NumPy, torch and CUDA; rigour with zero tolerance, closeness apart."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from backends import BACKENDS, Backend

from verifier.errors import ShapeError, SpecError
from verifier.kernels import fused, reference
from verifier.kernels.fused import Adam, AdamState, AffineLayer, ConvSettings, LineArrays, SplitArrays, StageCosts

SIZES = [(0, 1, 3), (1, 1, 1), (2, 3, 7), (3, 2, 70), (2, 2, 1000)]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return Backend(request.param)


def relu_lines(lower: np.ndarray, upper: np.ndarray) -> LineArrays:
    """Lines of relu on [lower, upper], from the kernel under test elsewhere."""
    return fused.enclose("relu", lower, upper)


SIDES = ("slope_lower", "offset_lower", "slope_upper", "offset_upper")


def fractions_dot(a: np.ndarray, x: np.ndarray) -> Fraction:
    return sum((Fraction(float(p)) * Fraction(float(q)) for p, q in zip(a, x, strict=True)), Fraction(0))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_relax_step(backend: Backend, dtype: str, split: bool, size: tuple[int, int, int]) -> None:
    b, s, n = size
    rng = np.random.default_rng(n)
    lower = rng.normal(size=(b, n)).astype(dtype)
    upper = lower + rng.choice([0, 1e-3, 2.0], size=(b, n)).astype(dtype)
    coeffs = (rng.normal(size=(b, s, n)) * rng.choice([0, 1e-30, 1, 1e4], size=(b, s, n))).astype(dtype)
    lines, bias = relu_lines(lower, upper), rng.normal(size=n).astype(dtype)
    magnitude = np.maximum(np.abs(lower), np.abs(upper))
    signs = rng.choice([-1, 0, 1], size=(b, n)).astype(dtype)
    multiplier = np.abs(rng.normal(size=(b, s, n))).astype(dtype)
    pushed = SplitArrays(backend.to(signs), backend.to(multiplier)) if split else None
    placed = LineArrays(*(backend.to(getattr(lines, side)) for side in SIDES))
    costs = StageCosts(backend.to(magnitude), backend.to(bias), backend.to(np.zeros((b, n), dtype)))
    out, offset, loss = (backend.back(x) for x in fused.relax_step(backend.to(coeffs), placed, costs, pushed))
    expected, total = reference.relax_step(
        coeffs.astype(np.longdouble),
        lines,
        bias.astype(np.longdouble),
        SplitArrays(signs, multiplier) if split else None,
    )
    same, same_total = reference.relax_step(coeffs, lines, bias, SplitArrays(signs, multiplier) if split else None)
    assert (loss >= 0).all() and np.isfinite(loss).all()
    if b == 0:
        return
    assert np.abs(out - expected).max() <= 2 * np.abs(same - expected).max() + 1e-30
    scale = np.abs(coeffs).max()
    assert np.abs(offset - total).max() <= 2 * np.abs(same_total - total).max() + n * np.finfo(dtype).eps * scale
    # Rigour, exactly: for z in the box, coeffs . relu(z) + push . z >= out . z + offset - bias part - loss.
    z = (lower + rng.random((b, n)) * (upper - lower)).astype(dtype).clip(lower, upper)
    for i in range(b):
        for r in range(s):
            relu = np.maximum(z[i], 0)
            left = fractions_dot(coeffs[i, r], relu)
            if split:
                left -= fractions_dot(signs[i] * multiplier[i, r], z[i])
            right = fractions_dot(out[i, r], z[i]) - fractions_dot(out[i, r], -bias)
            bound = fractions_dot(out[i, r], z[i]) + Fraction(float(offset[i, r])) - fractions_dot(out[i, r], bias)
            assert left >= bound - Fraction(float(loss[i, r])), (float(left - right), loss[i, r])


def test_relax_step_per_row_lines_and_infinite_offsets(backend: Backend) -> None:
    coeffs = np.array([[[0.0, 2.0], [3.0, 0.0]]])
    slopes = np.array([[[0.5, 0.25], [1.0, 0.0]]])
    endless = np.array([[[np.inf, 1.0], [0.0, -np.inf]]])
    lines = LineArrays(*(backend.to(x) for x in (slopes, endless, slopes, endless)))
    zero = backend.to(np.zeros((1, 2)))
    out, offset, loss = fused.relax_step(backend.to(coeffs), lines, StageCosts(zero, backend.to(np.zeros(2)), zero))
    assert np.array_equal(backend.back(out), coeffs * slopes)
    assert np.array_equal(backend.back(offset), [[2.0, 0.0]]) and np.isfinite(backend.back(loss)).all()


@pytest.mark.parametrize("norm", ["box", "l1", "l2", "linf"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_concretise(backend: Backend, norm: str, dtype: str) -> None:
    for b, s, n in SIZES:
        rng = np.random.default_rng(n)
        coeffs = (rng.normal(size=(b, s, n)) * rng.choice([0, 1], size=(b, s, n))).astype(dtype)
        center, radius = rng.normal(size=(b, n)).astype(dtype), rng.random((b, n)).astype(dtype)
        offset, loss = rng.normal(size=(b, s)), np.zeros((b, s))
        budget = None if norm == "box" else (1 + rng.random(b)).astype(dtype)
        value, point = fused.concretise(
            *(backend.to(x) for x in (coeffs, center, radius, offset, loss)), norm=norm, budget=backend.to(budget)
        )
        value, point = backend.back(value), backend.back(point)
        exact = (
            reference.concretise(*(x.astype(np.longdouble) for x in (coeffs, center, radius)), norm, budget) + offset
        )
        assert (value <= exact).all() and np.allclose(value, exact.astype(np.float64), rtol=1e-12, atol=1e-9)
        at_point = np.einsum("bsn,bsn->bs", coeffs.astype(np.float64), point.astype(np.float64)) + offset
        assert np.allclose(at_point, value, rtol=1e-5, atol=1e-4)


def test_concretise_claims_nothing_about_nan_and_inf(backend: Backend) -> None:
    coeffs = np.array([[[np.nan], [np.inf], [1.0]]])
    ones, zeros = np.ones((1, 1)), np.zeros((1, 3))
    loss = np.array([[0, 0, np.inf]])
    value, _ = fused.concretise(*(backend.to(x) for x in (coeffs, ones, ones, zeros, loss)))
    assert np.isneginf(backend.back(value)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_interval_dense(backend: Backend, dtype: str) -> None:
    for b, n, m in [(0, 3, 2), (1, 1, 1), (5, 17, 33), (3, 200, 20)]:
        rng = np.random.default_rng(m)
        layer = AffineLayer(
            *(x.astype(dtype) for x in (rng.normal(size=(n, m)) * 100, rng.normal(size=m), np.zeros(m)))
        )
        lower = rng.normal(size=(b, n)).astype(dtype)
        upper = lower + rng.choice([0, 1.0], size=(b, n)).astype(dtype)
        placed = AffineLayer(*(backend.to(x) for x in (layer.weight, layer.bias, np.abs(layer.bias))))
        low, high = (backend.back(x) for x in fused.interval_dense(backend.to(lower), backend.to(upper), placed))
        wide = AffineLayer(*(x.astype(np.longdouble) for x in (layer.weight, layer.bias, layer.bias)))
        exact_low, exact_high = reference.interval_dense(lower.astype(np.longdouble), upper.astype(np.longdouble), wide)
        assert (low <= exact_low).all() and (high >= exact_high).all()
        slack = 100 * n * (2 * (n + 20) * np.finfo(dtype).eps + 1e-12)
        assert (exact_low - low <= slack).all() and (high - exact_high <= slack).all()


@pytest.mark.parametrize("settings", [ConvSettings(), ConvSettings((2, 1), (1, 0, 2, 1), (1, 2), 2)])
def test_interval_conv(backend: Backend, settings: ConvSettings) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 4 // settings.groups, 3, 2)).astype(np.float32)
    bias = rng.normal(size=4).astype(np.float32)
    lower = rng.normal(size=(2, 4, 6, 7)).astype(np.float32)
    upper = lower + rng.random(lower.shape).astype(np.float32)
    placed = AffineLayer(*(backend.to(x) for x in (weight, bias, np.abs(bias))))
    low, high = (backend.back(x) for x in fused.interval_conv(backend.to(lower), backend.to(upper), placed, settings))
    wide = AffineLayer(*(x.astype(np.float64) for x in (weight, bias, bias)))
    exact_low, exact_high = reference.interval_conv(lower.astype(np.float64), upper.astype(np.float64), wide, settings)
    assert (low <= exact_low).all() and (high >= exact_high).all()
    assert np.abs(low - exact_low).max() < 5e-4 and np.abs(high - exact_high).max() < 5e-4


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e38])
def test_intervals_of_odd_boxes_know_nothing(backend: Backend, poison: float) -> None:
    layer = AffineLayer(
        *(backend.to(x) for x in (np.full((2, 1), 1e3, np.float32), np.zeros(1, np.float32), np.zeros(1, np.float32)))
    )
    lower = backend.to(np.zeros((1, 2), np.float32))
    upper = backend.to(np.array([[0, poison]], np.float32))
    low, high = fused.interval_dense(lower, upper, layer)
    assert np.isneginf(backend.back(low)).all() and np.isposinf(backend.back(high)).all()


@pytest.mark.parametrize("function", ["identity", "relu", "leaky_relu", "sigmoid", "tanh"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_enclose(backend: Backend, function: str, dtype: str) -> None:
    rng = np.random.default_rng(1)
    center = rng.normal(size=4000) * rng.choice([1e-6, 1, 10, 1e3], size=4000)
    width = rng.choice([0, 1e-12, 1e-4, 0.1, 1, 10, 1e4], size=4000) * rng.random(4000)
    lower, upper = center.astype(dtype), (center + width).astype(dtype)
    edge = np.array([[-0.0, 0.0], [0, 1], [-1, 0], [-1e-42, 1e-42], [-1e30, 1e30], [5, 5]], dtype)
    lower, upper = np.concatenate([lower, edge[:, 0]]), np.concatenate([upper, edge[:, 1]])
    alpha = 0.01 if function == "leaky_relu" else 0.0
    free = rng.random(lower.size).astype(dtype)
    for given in (None, free):
        found = fused.enclose(function, backend.to(lower), backend.to(upper), alpha=alpha, free_lower=backend.to(given))
        sl, ol, su, ou, low, high = (
            backend.back(getattr(found, f)).astype(np.longdouble) for f in found.__dataclass_fields__
        )
        for share in (0, 1, *rng.random(12)):
            x = np.clip((lower + share * (upper.astype(np.longdouble) - lower)).astype(dtype), lower, upper)
            y = reference.function_value(function, x.astype(np.longdouble), alpha)
            assert (sl * x + ol <= y).all() and (su * x + ou >= y).all()
            assert (low <= y).all() and (high >= y).all()
    narrow = (upper - lower < 1e-3) & (np.abs(lower) < 100)
    gap = (su - sl) * lower + ou - ol
    assert (gap[narrow] < 2e-3).all()


def test_enclose_without_finite_ends(backend: Backend) -> None:
    lower, upper = np.array([np.nan, -np.inf, 1.0, 2.0]), np.array([1.0, np.inf, np.inf, 1.0])
    for function in ("relu", "leaky_relu", "sigmoid", "tanh"):
        found = fused.enclose(function, backend.to(lower), backend.to(upper))
        low, high = backend.back(found.lower), backend.back(found.upper)
        assert np.isneginf(low[[0, 3]]).all() and np.isposinf(high[[0, 3]]).all()
        assert not any(np.isnan(backend.back(getattr(found, f))).any() for f in found.__dataclass_fields__)
        assert (low[1:3] < high[1:3]).all()


@pytest.mark.parametrize("kind", ["slopes", "multipliers"])
def test_ascend(backend: Backend, kind: str) -> None:
    rng = np.random.default_rng(3)
    b, s, n = 2, 3, 50
    coeffs, point = rng.normal(size=(b, s, n)), rng.normal(size=(b, s, n))
    lower = rng.normal(size=(b, n))
    upper = lower + rng.random((b, n))
    sign = rng.choice([-1.0, 0.0, 1.0], size=(b, n))
    value = rng.random((b, s, n))
    state = AdamState(*(backend.to(x) for x in (value.copy(), np.zeros((b, s, n)), np.zeros((b, s, n)))))
    if kind == "slopes":
        gradient = fused.ascend_slopes(*(backend.to(x) for x in (coeffs, point, lower, upper)), state, Adam())
        free = ((lower < 0) & (upper > 0))[:, None] & (coeffs > 0)
        expected, most = np.where(free, coeffs * point, 0), 1.0
    else:
        gradient = fused.ascend_multipliers(backend.to(sign), backend.to(point), state, Adam())
        expected, most = -sign[:, None] * point, np.inf
    assert np.allclose(backend.back(gradient), expected)
    moved = np.clip(value + 0.1 * expected / (np.abs(expected) + 1e-8), 0, most)  # Adam's first step is lr * sign
    assert np.allclose(backend.back(state.value), moved, atol=1e-6)


def test_ascend_ignores_nan_gradients(backend: Backend) -> None:
    one = np.full((1, 1, 1), 0.5)
    state = AdamState(*(backend.to(x) for x in (one.copy(), 0 * one, 0 * one)))
    fused.ascend_multipliers(backend.to(np.ones((1, 1))), backend.to(one * np.nan), state, Adam())
    assert backend.back(state.value) == 0.5 and backend.back(state.first) == 0


def test_split_scores(backend: Backend) -> None:
    rng = np.random.default_rng(4)
    coeffs, lower, bias = rng.normal(size=(3, 4, 60)), rng.normal(size=(3, 60)), rng.normal(size=60)
    upper = lower + rng.random((3, 60))
    found = backend.back(fused.split_scores(*(backend.to(x) for x in (coeffs, lower, upper, bias))))
    assert np.allclose(found, reference.split_scores(coeffs, lower, upper, bias))
    assert (found[lower >= 0] == 0).all() and (found[upper <= 0] == 0).all() and (found > 0).any()


def test_clip_boxes(backend: Backend) -> None:
    rng = np.random.default_rng(5)
    coeffs = rng.normal(size=(40, 3, 6)) * rng.choice([0, 1], size=(40, 3, 6))
    lower = rng.normal(size=(40, 6))
    upper = lower + rng.random((40, 6))
    limit = np.einsum("bsn,bn->bs", coeffs, (lower + upper) / 2) - 0.3
    low, high = backend.to(lower.copy()), backend.to(upper.copy())
    fused.clip_boxes(backend.to(coeffs), backend.to(limit), low, high)
    low, high = backend.back(low), backend.back(high)
    expected = reference.clip_boxes(coeffs, limit, lower, upper)
    assert np.allclose(low, expected[0]) and np.allclose(high, expected[1])
    empty = low[:, 0] > high[:, 0]
    assert 0 < empty.sum() < 40 and (low[~empty] >= lower[~empty]).all() and (high[~empty] <= upper[~empty]).all()
    points = lower[:, None] + rng.random((40, 500, 6)) * (upper - lower)[:, None]
    feasible = (np.einsum("bsn,bkn->bks", coeffs, points) <= limit[:, None]).all(axis=2)
    inside = ((points >= low[:, None]) & (points <= high[:, None])).all(axis=2)
    assert feasible.any() and inside[feasible].all()


def test_odd_half_spaces_clip_nothing(backend: Backend) -> None:
    coeffs = np.array([[[np.nan]], [[np.inf]], [[1.0]], [[0.0]]])
    limit = np.array([[0.0], [0.0], [np.inf], [1.0]])
    low, high = backend.to(-np.ones((4, 1))), backend.to(np.ones((4, 1)))
    fused.clip_boxes(backend.to(coeffs), backend.to(limit), low, high)
    assert (backend.back(low) == -1).all() and (backend.back(high) == 1).all()


def test_strided_inputs_are_copied_and_threads_change_nothing(backend: Backend) -> None:
    rng = np.random.default_rng(6)
    coeffs = rng.normal(size=(4, 6, 80))
    center, radius = rng.normal(size=(4, 40)), rng.random((4, 40))
    zeros = np.zeros((4, 3))
    strided = backend.to(coeffs)[:, ::2, ::2]
    rest = [backend.to(x) for x in (center, radius, zeros, zeros)]
    one, _ = fused.concretise(strided, *rest, threads=1)
    three, _ = fused.concretise(backend.to(np.ascontiguousarray(coeffs[:, ::2, ::2])), *rest, threads=3)
    assert np.array_equal(backend.back(one), backend.back(three))


def test_arrays_that_do_not_fit_are_named(backend: Backend) -> None:
    coeffs, center, scalars = (backend.to(np.zeros(shape)) for shape in ((1, 2, 3), (1, 3), (1, 2)))
    with pytest.raises(ShapeError, match="radius: expected"):
        fused.concretise(coeffs, center, center[:, :2], scalars, scalars)
    with pytest.raises(ShapeError, match="float32 or float64"):
        fused.enclose("relu", backend.to(np.zeros(3, np.int64)), backend.to(np.zeros(3, np.int64)))
    with pytest.raises(ShapeError, match="center: expected float64, got"):
        fused.concretise(coeffs, backend.to(np.zeros((1, 3), np.float32)), center, scalars, scalars)
    with pytest.raises(SpecError, match="norm"):
        fused.concretise(coeffs, center, center, scalars, scalars, norm="l3")
    with pytest.raises(SpecError, match="budget"):
        fused.concretise(coeffs, center, center, scalars, scalars, norm="l2")
    with pytest.raises(SpecError, match="function"):
        fused.enclose("cos", center, center)
    with pytest.raises(ShapeError, match="contiguous"):
        wide = backend.to(np.zeros((1, 6)))
        fused.clip_boxes(coeffs, scalars, wide[:, ::2], center)


def test_mixed_libraries_are_refused() -> None:
    import torch

    with pytest.raises(ShapeError, match="same library"):
        fused.enclose("relu", np.zeros(2), torch.zeros(2, dtype=torch.float64))
