"""Soundness of every elementwise rule, with tolerance zero, against wider arithmetic."""

from zlib import crc32

import numpy as np
import pytest
import torch
from elementwise_cases import ALL, CASES, defined, intervals, node, points
from elementwise_reference import REFERENCE, exactly, fraction, wider

from verifier.graph.grammar import OPERATORS
from verifier.ops.elementwise import ELEMENTWISE

DTYPES = (np.float32, np.float64)


def _seed(*parts):
    return crc32(repr(parts).encode())


def _check(op, attrs, x, f, slope, offset, kind, lower, upper):
    """slope*x + offset stays on its side of f at every point; rational functions are settled exactly."""
    slope, offset = slope.numpy(), offset.numpy()
    line = slope.astype(x.dtype) * x + offset.astype(x.dtype)
    bad = ~(line <= f) if kind == "lower" else ~(line >= f)
    for i in map(tuple, np.argwhere(bad)):
        exact = exactly(op, x[i], attrs, i[-1]) if np.isfinite(line[i]) else None
        if exact is not None:
            gap = exact - fraction(slope[i[1:]]) * fraction(x[i]) - fraction(offset[i[1:]])
            if (gap if kind == "lower" else -gap) >= 0:
                continue
        raise AssertionError(
            f"{op} {attrs}: the {kind} line {slope[i[1:]]!r}*x + {offset[i[1:]]!r} fails at x={x[i]!r} where "
            f"f={f[i]!r} (line {line[i]!r}), interval [{lower[i[1:]]!r}, {upper[i[1:]]!r}]"
        )


def test_every_unary_operator_has_a_rule_and_cases():
    unary = {op for op, form in OPERATORS.items() if form.kind == "unary"}
    assert set(ELEMENTWISE) == unary == set(CASES) == set(REFERENCE)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize(("op", "k"), ALL, ids=[f"{op}-{k}" for op, k in ALL])
@np.errstate(all="ignore")
def test_lines_and_interval_enclose(op, k, dtype):
    rng = np.random.default_rng(_seed(op, k, dtype.__name__))
    rule, case, attrs = ELEMENTWISE[op], node(op, k), CASES[op][k]
    lower, upper = intervals(rng, dtype, 120)
    x = points(rng, lower, upper, 24, wider(dtype))
    f = REFERENCE[op](x, attrs)
    inside = defined(op, attrs, lower, upper)
    l, u = torch.tensor(lower), torch.tensor(upper)
    low, high = rule.interval(l, u, case)
    assert low.dtype == high.dtype == l.dtype
    f_low, f_high = np.where(inside, f, np.inf), np.where(inside, f, -np.inf)
    _check(op, attrs, x, f_low, torch.zeros_like(low), low, "lower", lower, upper)
    _check(op, attrs, x, f_high, torch.zeros_like(high), high, "upper", lower, upper)
    outside = torch.tensor(~inside)
    assert bool((torch.isinf(low) & torch.isinf(high))[outside].all() or op in ("Log",))
    random = torch.tensor(rng.uniform(0, 1, (2, *lower.shape)).astype(dtype))
    for free in ((None, None), rule.start(l, u, case), (0 * l, 0 * l), (0 * l + 1, 0 * l + 1), (random[0], random[1])):
        lines = rule.lines(l, u, case, *free)
        assert bool(torch.isfinite(lines.slope_lower).all() and torch.isfinite(lines.slope_upper).all())
        _check(op, attrs, x, f_low, lines.slope_lower, lines.offset_lower, "lower", lower, upper)
        _check(op, attrs, x, f_high, lines.slope_upper, lines.offset_upper, "upper", lower, upper)
