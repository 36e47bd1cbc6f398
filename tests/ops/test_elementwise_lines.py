"""What elementwise lines promise beyond soundness: tightness, ends, gradients, shapes, hard inputs."""

from zlib import crc32

import numpy as np
import pytest
import torch
from elementwise_cases import ALL, CASES, ROW, defined, intervals, node
from elementwise_reference import REFERENCE
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.ops.base import Lines
from verifier.ops.elementwise import ELEMENTWISE

KEYS = tuple(Lines.__dataclass_fields__)
STEPS = {"Sign", "Floor", "Ceil", "Round", "Greater", "GreaterEqual"}
BENT = {"Relu", "LeakyRelu", "PRelu", "Abs"}
SMOOTH = [case for case in ALL if case[0] not in STEPS | BENT | {"Clip", "HardSigmoid"}]
HULL = [case for case in ALL if case[0] not in STEPS]
IDS = {"ids": lambda v: str(v)}


def _rng(*parts):
    return np.random.default_rng(crc32(repr(parts).encode()))


def _moderate(op, k, rows=40, width=3.0):
    """Ordinary float64 intervals on which the case is defined, [rows, ROW] each."""
    rng = _rng(op, k, "moderate")
    if op in ("Sin", "Cos"):
        width = 1.5  # constants from half a period on
    center, half = rng.normal(0, 3, (rows, ROW)), rng.uniform(0.05, width, (rows, ROW))
    lower, upper = center - half, center + half
    if not defined(op, CASES[op][k], lower, upper).all():
        lower = np.abs(center) + 0.05
        upper = lower + half
    return torch.tensor(lower), torch.tensor(upper)


def _f(op, k, x):
    with np.errstate(all="ignore"):
        return torch.tensor(REFERENCE[op](x.numpy(), CASES[op][k]))


def _at(lines: Lines, x):
    return lines.slope_lower * x + lines.offset_lower, lines.slope_upper * x + lines.offset_upper


def _grid(lower, upper, count):
    """[count + 1, *lower.shape] points, the ends and (where inside) 0 among them, in order."""
    share = torch.linspace(0, 1, count, dtype=torch.float64)[:, None, None]
    zero = torch.minimum(torch.maximum(torch.zeros_like(lower), lower), upper)
    return torch.cat([lower + (upper - lower) * share, zero[None]]).sort(0).values


def _hull(x, f, at):
    """Lower convex hull of the graph points (x[i], f[i]) (leading axis) at abscissa `at`."""
    left, right, width = x[:, None], x[None, :], x[None, :] - x[:, None]
    rise = torch.where(width > 0, (f[None, :] - f[:, None]) / torch.where(width > 0, width, 1.0), 0.0)
    chords = f[:, None] + rise * (at - left)
    return torch.where((left <= at) & (at <= right), chords, torch.inf).amin((0, 1))


@pytest.mark.parametrize(("op", "k"), HULL, **IDS)
def test_default_lines_reach_the_hull_in_the_middle(op, k):
    """No line can be above the convex hull of f; the default lines are on it in the middle."""
    lower, upper = _moderate(op, k, rows=25)
    x = _grid(lower, upper, 41)
    f = _f(op, k, x)
    middle = 0.5 * (lower + upper)
    below, above = _at(ELEMENTWISE[op].lines(lower, upper, node(op, k)), middle)
    scale = f.max(0).values - f.min(0).values
    # a kink between two of the 41 points hides up to a fortieth of the height
    tolerance = 0.04 * scale + 1e-9
    assert bool((below >= _hull(x, f, middle) - tolerance).all())
    assert bool((above <= -_hull(x, -f, middle) + tolerance).all())


@pytest.mark.parametrize(("op", "k"), HULL, **IDS)
def test_free_parameters_reach_from_one_end_to_the_other(op, k):
    """0 touches f at the lower end, 1 at the upper end, if the line is free at all."""
    lower, upper = _moderate(op, k)
    for t, end in ((0.0, lower), (1.0, upper)):
        free = torch.full_like(lower, t)
        below, above = _at(ELEMENTWISE[op].lines(lower, upper, node(op, k), free, free), end)
        f = _f(op, k, end)
        scale = 1 + f.abs() + (upper - lower)
        assert torch.all(f - below <= 0.01 * scale)
        assert torch.all(above - f <= 0.01 * scale)


@pytest.mark.parametrize(("op", "k"), SMOOTH, **IDS)
def test_gap_shrinks_with_the_square_of_the_width(op, k):
    rng = _rng(op, k, "square")
    center = torch.tensor(
        rng.uniform(0.3, 2.5, (40, ROW)) * (1 if op in ("Log", "Sqrt", "Pow") else rng.choice([-1, 1]))
    )
    gaps = []
    for half in (0.1, 0.02):
        lower, upper = center - half, center + half
        share = torch.linspace(0, 1, 21, dtype=torch.float64)[:, None, None]
        below, above = _at(ELEMENTWISE[op].lines(lower, upper, node(op, k)), lower + (upper - lower) * share)
        gaps.append((above - below).amax((0, 1)))
    assert torch.all(gaps[1] <= gaps[0] / 12 + 1e-12)


@pytest.mark.parametrize(("op", "k"), ALL, **IDS)
def test_lines_are_no_worse_than_the_interval_in_the_middle(op, k):
    lower, upper = _moderate(op, k)
    rule, case = ELEMENTWISE[op], node(op, k)
    low, high = rule.interval(lower, upper, case)
    below, above = _at(rule.lines(lower, upper, case), 0.5 * (lower + upper))
    slack = 1e-12 * (1 + low.abs() + high.abs() + upper.abs())
    if op in STEPS:  # several jumps: the staircase's own slope, which is best on average only
        slack = slack + 0.5 * (high - low)
    assert torch.all(below >= low - slack)
    assert torch.all(above <= high + slack)


@pytest.mark.parametrize(("op", "k"), ALL, **IDS)
def test_interval_is_tight(op, k):
    lower, upper = _moderate(op, k)
    f = _f(op, k, _grid(lower, upper, 201))
    low, high = ELEMENTWISE[op].interval(lower, upper, node(op, k))
    slack = 1e-2 * (f.max(0).values - f.min(0).values) + 1e-12 * (1 + f.abs().amax(0))
    assert torch.all(low >= f.min(0).values - slack)
    assert torch.all(high <= f.max(0).values + slack)


@pytest.mark.parametrize(("op", "k"), ALL, **IDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
def test_gradients_in_the_free_parameters_are_finite(op, k, dtype):
    lower, upper = intervals(_rng(op, k, "gradient"), dtype, 60)
    l, u = torch.tensor(lower), torch.tensor(upper)
    l[0, 0], u[0, 1], l[0, 2], u[0, 2] = -torch.inf, torch.inf, -torch.inf, torch.inf
    for free in ELEMENTWISE[op].start(l, u, node(op, k)):
        assert bool(((free >= 0) & (free <= 1)).all())
    free = torch.full((2, *l.shape), 0.3, dtype=l.dtype, requires_grad=True)
    lines = ELEMENTWISE[op].lines(l, u, node(op, k), free[0], free[1])
    parts = (lines.slope_lower, lines.offset_lower, lines.slope_upper, lines.offset_upper)
    sum(torch.where(torch.isfinite(p), p, 0.0).sum() for p in parts if p.requires_grad).backward()
    assert torch.isfinite(free.grad).all()


@pytest.mark.parametrize(("op", "k"), [c for c in HULL if ELEMENTWISE[c[0]].free_lower], **IDS)
def test_gradient_is_the_derivative(op, k):
    lower, upper = _moderate(op, k)
    rule, case = ELEMENTWISE[op], node(op, k)
    x = 0.3 * lower + 0.7 * upper

    def height(t):
        below, above = _at(rule.lines(lower, upper, case, t, t), x)
        return below - above

    t = torch.full_like(lower, 0.4, requires_grad=True)
    height(t).sum().backward()
    step = 1e-4
    with torch.no_grad():
        numeric = (height(t + step) - height(t - step)) / (2 * step)
    scale = 1 + numeric.abs() + height(t.detach()).abs()
    close = (t.grad - numeric).abs() <= 1e-2 * scale
    assert close.double().mean() > 0.97, "derivative differs on more than the few intervals with a kink at 0.4"


@pytest.mark.parametrize(("op", "k"), ALL, **IDS)
def test_free_axis_broadcasts_and_no_free_parameter_means_start(op, k):
    rule, case = ELEMENTWISE[op], node(op, k)
    lower, upper = (x.reshape(8, 1, 5, ROW) for x in _moderate(op, k))
    start = rule.start(lower, upper, case)
    default, started = rule.lines(lower, upper, case), rule.lines(lower, upper, case, *start)
    for key in KEYS:
        assert getattr(default, key).shape == lower.shape
        assert torch.allclose(getattr(default, key), getattr(started, key), rtol=1e-9, atol=1e-9)
    free = torch.rand(8, 3, 5, ROW, dtype=lower.dtype, generator=torch.Generator().manual_seed(0))
    wide = rule.lines(lower, upper, case, free, free)
    for row in range(3):
        one = rule.lines(lower[:, 0], upper[:, 0], case, free[:, row], free[:, row])
        for key in KEYS:
            assert torch.allclose(getattr(wide, key).expand_as(free)[:, row], getattr(one, key), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("op", "k"), ALL, **IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@np.errstate(all="ignore")
def test_infinite_ends_give_the_interval_as_constant(op, k, dtype):
    rule, case, inf = ELEMENTWISE[op], node(op, k), np.inf
    for l, u in ((-inf, inf), (-inf, 2.0), (-inf, -2.0), (0.5, inf), (-0.5, inf)):
        lower, upper = torch.full((1, ROW), l, dtype=dtype), torch.full((1, ROW), u, dtype=dtype)
        low, high = rule.interval(lower, upper, case)
        assert not bool(torch.isnan(low).any() | torch.isnan(high).any()), (l, u)
        free = torch.full_like(lower, 0.25)
        lines = rule.lines(lower, upper, case, free, free)
        exact = rule.exact_on(lower, upper, case)
        flat = (lines.slope_lower == 0) & (lines.slope_upper == 0)
        assert bool((flat | exact).all()), (l, u, lines)
        for offset, end in ((lines.offset_lower, low), (lines.offset_upper, high)):
            close = (offset == end) | ((offset - end).abs() <= 1e-6 * end.abs())
            assert bool((close | exact).all()), (l, u, lines)
        # samples out to huge values stay inside
        x = np.linspace(*np.clip([l, u], -1e30, 1e30), 9).astype(np.float32).astype(np.float64)
        x = torch.tensor(x)[:, None] * torch.ones(ROW, dtype=torch.float64)
        f = _f(op, k, x)
        outside = torch.tensor(~defined(op, CASES[op][k], lower.numpy(), upper.numpy()))[0] | ~torch.isfinite(f)
        below, above = _at(Lines(*(getattr(lines, key).double() for key in KEYS)), x)
        for lowest, highest in ((low.double(), high.double()), (below, above)):
            assert bool(((lowest <= f) | outside).all() and ((highest >= f) | outside).all()), (l, u, lines)


@pytest.mark.parametrize(("op", "k"), ALL, **IDS)
def test_nan_bounds_never_turn_into_numbers(op, k):
    nan, one = torch.full((1, ROW), torch.nan), torch.ones(1, ROW)
    rule, case = ELEMENTWISE[op], node(op, k)
    low, high = rule.interval(nan, nan, case)
    constant = (op == "Pow" and CASES[op][k]["exponent"] == 0) or (op == "HardSigmoid" and CASES[op][k]["alpha"] == 0)
    assert constant or bool(torch.isnan(low).all() and torch.isnan(high).all())
    for lower, upper in ((nan, nan), (-one, nan), (nan, one)):
        lines = rule.lines(lower, upper, case)
        x = 0.5 * one
        below, above = _at(lines, x)
        f = _f(op, k, x.double())
        assert constant or bool((~(above < f)).all() and (~(below > f)).all())


@pytest.mark.parametrize(("op", "k"), ALL, **IDS)
def test_split_points_divide_and_exactness_holds(op, k):
    rule, case = ELEMENTWISE[op], node(op, k)
    lower, upper = _moderate(op, k)
    point = rule.split_point(lower, upper, case)
    assert torch.all((lower < point) & (point < upper))
    exact = rule.exact_on(lower, upper, case)
    x = lower + (upper - lower) * torch.linspace(0, 1, 5, dtype=torch.float64)[:, None, None]
    below, above = _at(rule.lines(lower, upper, case), x)
    assert torch.all((above - below)[:, exact] <= 1e-12 * (1 + x.abs() + above.abs())[:, exact])
    if rule.kink_at_zero:
        crossing = (lower < 0) & (upper > 0)
        assert torch.all(point[crossing] == 0)
        assert torch.all(rule.exact_on(lower, point, case)[crossing] & rule.exact_on(point, upper, case)[crossing])
    # cutting never makes the pieces' best lines worse, summed over both halves
    whole = (lambda a, b: b - a)(*_at(rule.lines(lower, upper, case), 0.5 * (lower + upper)))
    halves = [
        (lambda a, b: b - a)(*_at(rule.lines(l, u, case), 0.5 * (l + u))) for l, u in ((lower, point), (point, upper))
    ]
    if op not in STEPS:
        assert torch.all(torch.minimum(*halves) <= whole * (1 + 1e-9) + 1e-9)


def test_splitting_a_single_step_leaves_only_the_value_at_the_step():
    sign = ELEMENTWISE["Sign"]
    lower, upper, case = torch.tensor([-1.0]), torch.tensor([2.0]), node("Sign", 0)
    cut = sign.split_point(lower, upper, case)
    assert cut.item() == 0
    assert [v.item() for v in sign.interval(lower, cut, case)] == [-1, 0]
    assert [v.item() for v in sign.interval(cut, upper, case)] == [0, 1]


def test_relu_is_exact_on_stable_neurons_and_has_the_chord_above():
    lower, upper = torch.tensor([-1.0, 0.0, -3.0, -2.0]), torch.tensor([3.0, 2.0, -1.0, 0.0])
    lines = ELEMENTWISE["Relu"].lines(lower, upper, node("Relu", 0))
    assert lines.slope_lower.tolist() == [1, 1, 0, 0]
    assert lines.offset_lower.tolist() == [0, 0, 0, 0]
    assert lines.slope_upper.tolist() == [0.75, 1, 0, 0]
    assert lines.offset_upper[1:].tolist() == [0, 0, 0]
    assert 0.75 < lines.offset_upper[0] < 0.75 + 1e-6


@given(
    st.sampled_from(ALL),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(0, 1),
    st.floats(0, 1),
)
@settings(max_examples=250, deadline=None, derandomize=True)
@np.errstate(all="ignore")
def test_any_interval_any_free_parameter(case, a, b, t, share):
    op, k = case
    l, u = min(a, b), max(a, b)
    lower, upper = torch.full((1, ROW), l), torch.full((1, ROW), u)
    if not defined(op, CASES[op][k], lower.numpy(), upper.numpy()).all():
        return
    free = torch.full((1, ROW), t)
    lines = ELEMENTWISE[op].lines(lower, upper, node(op, k), free, free)
    lines = Lines(*(getattr(lines, key).double() for key in KEYS))
    for x in (l, u, min(max(l * (1 - share) + u * share, l), u), min(max(0.0, l), u)):
        point = torch.full((1, ROW), x, dtype=torch.float64)
        f = _f(op, k, point)
        below, above = _at(lines, point)
        # the judge rounds too; a line may only be accused of more than that
        doubt = 4e-16 * ((lines.slope_lower * x).abs() + (lines.slope_upper * x).abs())
        holds = (below - doubt <= f) & (f <= above + doubt)
        assert bool(holds.all()), (op, CASES[op][k], l, u, t, x)
