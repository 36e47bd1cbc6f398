"""Certificates of the training phase against brute force on tiny sets: nothing certified is ever broken."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate
from scipy.optimize import minimize
from scipy.stats import ncx2, norm

from verifier.data import Dataset
from verifier.errors import SpecError
from verifier.training.architecture import architecture_for, build
from verifier.training.certify.partition import certified_curve, certified_votes, deep_partition, partition
from verifier.training.certify.sanitise import Filter, Sanitisation, certify_filter, fit_filter
from verifier.training.certify.smoothed import (
    Smoothing,
    from_votes,
    nearest_neighbour,
    radius,
    smoothed,
    winning_probabilities,
)
from verifier.training.certify.triggers import (
    ShapeAnswer,
    TriggerQuestion,
    blend_answers,
    blend_box,
    largest_ruled_out,
    patch_answers,
    patch_mask,
    rows_outside,
)
from verifier.training.graphs import graph_of
from verifier.training.predict import labels
from verifier.training.train import Recipe

TINY = Recipe("linear", 1, epochs=3, batch_size=8)


def table(x, y, classes=2):
    x = np.atleast_2d(np.asarray(x, dtype=np.float32))
    return Dataset(x, np.asarray(y), tuple(map(str, range(classes))), "tabular", (-np.inf, np.inf), "tiny")


@pytest.mark.parametrize("parts, classes", [(5, 2), (6, 3), (7, 3)])
def test_votes_hold_against_every_change_of_that_many_models(parts, classes):
    """Brute force over all votes: at the radius nothing changes the winner, just beyond it something does."""
    for start in itertools.combinations_with_replacement(range(classes), parts):
        counts = np.bincount(start, minlength=classes)
        winner, certified = (int(v[0]) for v in certified_votes(counts[None]))
        assert winner == int(np.argmax(counts))
        for moved in range(parts + 1):
            reachable = any(
                int(np.argmax(counts + np.bincount(new, minlength=classes) - np.array(old))) != winner
                for old in itertools.product(*(range(int(c) + 1) for c in counts)) if sum(old) == moved
                for new in itertools.combinations_with_replacement(range(classes), moved)
            )  # fmt: skip
            if reachable:
                assert moved == certified + 1, (counts, moved, certified)
                break


def test_no_deletion_or_insertion_within_the_radius_changes_a_prediction():
    """Retrains after every deletion and after many insertions on a set of fourteen rows."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-1.5, 1, (7, 2)), rng.normal(1.5, 1, (7, 2))])
    data, test = table(x, [0] * 7 + [1] * 7), rng.normal(0, 2, (40, 2)).astype(np.float32)
    said, certified = certified_votes(deep_partition(data, TINY, 5).votes(test))
    assert (certified >= 1).any()
    attacked = [data.without([row]) for row in range(len(data))]
    attacked += [data.joined(table(rng.normal(0, 6, (1, 2)), [k % 2])) for k in range(6)]
    for changed in attacked:
        again, _ = certified_votes(deep_partition(changed, TINY, 5).votes(test))
        assert np.array_equal(again[certified >= 1], said[certified >= 1])


def test_the_partition_ignores_the_order_and_other_rows(digits):
    data = digits.train.subset(np.arange(60))
    order = np.random.default_rng(1).permutation(60)
    first = [data.x[rows] for rows in partition(data, 7)]
    second = [data.subset(order).x[rows] for rows in partition(data.subset(order), 7)]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    without = [data.subset(np.arange(59)).x[rows] for rows in partition(data.subset(np.arange(59)), 7)]
    differ = sum(not np.array_equal(a, b) for a, b in zip(first, without, strict=True))
    assert differ == 1
    assert sorted(np.concatenate(partition(data, 7))) == list(range(60))
    with pytest.raises(SpecError, match="partitions"):
        partition(data, 0)


def test_empty_parts_vote_for_the_first_class():
    votes = deep_partition(table([[0.0], [1.0]], [1, 1]), TINY, 40).votes(np.zeros((3, 1), dtype=np.float32))
    assert votes.sum(axis=1).tolist() == [40] * 3 and np.all(votes[:, 0] >= 38)


def test_certified_curve_by_hand():
    curve = certified_curve(np.array([0, 1, 1, 0]), np.array([2, 0, 5, 1]), np.array([0, 1, 0, 0]))
    assert curve == [(0, 0.75), (1, 0.5), (2, 0.25), (3, 0.0)]


def test_radius_formula_and_its_ends():
    assert radius(0.5, 0.9, 0.1) == pytest.approx(0.5 * norm.ppf(0.9), rel=1e-8)
    assert radius(0.5, 0.9, 0.1) <= 0.5 / 2 * (norm.ppf(0.9) - norm.ppf(0.1))
    for first, second in ((0.5, 0.5), (0.2, 0.8), (float("nan"), 0.1), (0.9, float("nan"))):
        assert radius(1.0, first, second) == 0.0
    assert np.isfinite(radius(1.0, 1.0, 0.0))


def test_votes_without_a_clear_winner_abstain():
    found = from_votes(np.array([[500, 0], [260, 240], [0, 500]]), Smoothing(1.0, 500))
    assert found.labels.tolist() == [0, -1, 1] and found.radii[1] == 0 and found.radii[0] > 1.0
    with pytest.raises(SpecError, match="sigma"):
        Smoothing(0.0)


def exact_pair_probability(near, far, sigma, size):
    """P(noisy near row is nearer than noisy far row), by quadrature over the noncentral chi-squares."""
    a, b = near**2 / sigma**2, far**2 / sigma**2
    return integrate.quad(lambda t: ncx2.pdf(t, size, a) * ncx2.sf(t, size, b), 0, np.inf, limit=400)[0]


@pytest.mark.parametrize("size, near, far, sigma", [(1, 1.0, 2.0, 0.7), (2, 0.5, 3.0, 1.0), (5, 1.0, 1.2, 0.4)])
def test_two_rows_agree_with_quadrature(size, near, far, sigma):
    x = np.zeros((2, size))
    x[0, 0], x[1, 0] = near, far
    low, high = winning_probabilities(table(x, [1, 0]), np.zeros(size), sigma, 2000)
    exact = exact_pair_probability(near, far, sigma, size)
    assert low[1] <= exact <= high[1] and high[1] - low[1] < 0.01
    assert low[0] <= 1 - exact <= high[0]


def test_nearest_neighbour_probabilities_agree_with_sampling():
    rng = np.random.default_rng(3)
    x, y = rng.normal(0, 1, (8, 2)), rng.integers(0, 3, 8)
    point, sigma, draws = np.array([0.2, -0.1]), 0.6, 40_000
    noisy = x[None] + sigma * rng.normal(size=(draws, 8, 2))
    winner = y[np.linalg.norm(noisy - point, axis=2).argmin(axis=1)]
    frequency = np.bincount(winner, minlength=3) / draws
    low, high = winning_probabilities(table(x, y, 3), point, sigma, 800)
    assert np.all(low - 0.015 <= frequency) and np.all(frequency <= high + 0.015) and np.all(low <= high)
    coarse = winning_probabilities(table(x, y, 3), point, sigma, 20)
    assert np.all(coarse[0] <= low + 1e-9) and np.all(coarse[1] >= high - 1e-9)


def test_no_change_of_the_rows_within_the_radius_flips_the_smoothed_neighbour():
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.normal(-2, 0.5, (4, 2)), rng.normal(2, 0.5, (4, 2))]).astype(np.float32)
    y, point = np.array([0] * 4 + [1] * 4), np.array([[-1.0, -1.0]], dtype=np.float32)
    found = nearest_neighbour(table(x, y), point, 1.0)
    assert found.labels.tolist() == [0] and found.radii[0] > 0.3
    pull = x - point
    directions = [rng.normal(size=x.shape) for _ in range(20)]
    # The strongest pushes: own rows away from the point, the others towards it.
    directions += [np.where(y[:, None] == 0, pull, -pull), np.where(y[:, None] == 1, -pull, 0 * pull)]
    for direction in directions:
        moved = x + 0.999 * found.radii[0] * direction / np.linalg.norm(direction)
        low, high = winning_probabilities(table(moved, y), point[0], 1.0, 800)
        assert high[0] > low[1] and low[0] + 0.01 > high[1] - 0.01


def test_a_smoothed_training_certifies_and_holds():
    """The vote of the same trainings on data moved within the radius keeps the certified labels."""
    rng = np.random.default_rng(7)
    x = np.concatenate([rng.normal(-2, 0.3, (10, 1)), rng.normal(2, 0.3, (10, 1))])
    data, test = table(x, [0] * 10 + [1] * 10), np.array([[-3.0], [3.0], [0.0]], dtype=np.float32)
    settings = Smoothing(0.5, models=25, alpha=0.05)
    recipe = Recipe("linear", 1, epochs=10, batch_size=20, learning_rate=0.05)
    found = smoothed(data, test, recipe, settings)
    assert found.votes.sum(axis=1).tolist() == [25] * 3
    certified = found.radii > 0
    assert certified[:2].all() and found.labels[:2].tolist() == [0, 1]
    towards = np.where(data.y[:, None] == 0, 1.0, -1.0)
    size = 0.9 * found.radii[certified].min()
    moved = replace(data, x=data.x + size * towards / np.linalg.norm(towards))
    again = smoothed(moved, test, recipe, settings).votes.argmax(axis=1)
    assert np.array_equal(again[certified], found.labels[certified])


def rule_2d():
    return Filter(np.array([[-1.0, 0.3], [1.0, 0.1]]), np.array([1.5, 1.0]), np.array([0.7, 2.0]))


@pytest.mark.parametrize("label", [0, 1])
def test_the_worst_point_is_allowed_and_the_worst(label):
    rule, rng = rule_2d(), np.random.default_rng(1)
    points = rule.centers[label] + rng.uniform(-2, 2, (20_000, 2))
    points = points[rule.keeps(points, np.full(len(points), label))]
    sign = 2 * label - 1
    for _ in range(25):
        w = rng.normal(size=2)
        worst = rule.worst(w, label)
        away = worst - rule.centers[label]
        assert np.linalg.norm(away) <= rule.radii[label] * (1 + 1e-12)
        assert abs(away @ rule.direction) <= rule.slabs[label] * (1 + 1e-12)
        assert sign * w @ worst <= (sign * points @ w).min()
    assert np.all(np.isfinite(rule.worst(np.zeros(2), label)))


def test_no_poison_that_passes_exceeds_the_bound():
    """The learner's exact minimum (by a general solver) on random and greedy poison stays below the bound."""
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.normal([-1, 0.3], 0.4, (30, 2)), rng.normal([1, 0.1], 0.4, (30, 2))])
    clean, rule, settings = table(x, [0] * 30 + [1] * 30), rule_2d(), Sanitisation(0.1, norm=3.0, steps=1500)
    found = certify_filter(clean, rule, settings)
    kept = rule.keeps(clean.x.astype(float), clean.y)
    x, y = clean.x.astype(float)[kept], clean.y[kept]
    budget = int(0.1 * len(x))
    assert np.all(rule.keeps(found.x + 1e-9 * (rule.centers[found.y] - found.x), found.y)) and len(found.x) == budget

    def least(bad_x, bad_y):
        both, sides = np.concatenate([x, bad_x]), 2 * np.concatenate([y, bad_y]) - 1

        def total(v):
            return np.maximum(0, 1 - sides * (both @ v[:2] + v[2])).sum() / len(x)

        ball = {"type": "ineq", "fun": lambda v: settings.norm**2 - v @ v}
        starts = [np.zeros(3), np.array([2.0, 0, 0])]
        return min(minimize(total, s, constraints=ball, method="COBYLA", options={"maxiter": 800}).fun for s in starts)

    poisons = [(found.x, found.y)]
    for _ in range(4):
        side = rng.integers(0, 2, budget)
        poisons.append((np.array([rule.worst(rng.normal(size=2), s) for s in side]), side))
    values = [least(*poison) for poison in poisons]
    assert max(values) <= found.bound
    assert values[0] >= 0.5 * found.bound, "the matching attack should come near the bound"
    assert found.clean_loss <= found.reached <= found.bound + 1e-3
    assert found.wrong <= found.bound


def test_more_poison_bounds_higher(cancer):
    rule = fit_filter(replace(cancer.trusted, valid=(-np.inf, np.inf)))
    values = [certify_filter(cancer.trusted, rule, Sanitisation(p, 1.0, steps=100)).bound for p in (0.0, 0.05, 0.3)]
    assert values == sorted(values)
    with pytest.raises(SpecError, match="two classes"):
        fit_filter(table([[0.0], [1.0], [2.0]], [0, 1, 2], 3))


@pytest.fixture(scope="module")
def question(digits):
    model = build(architecture_for("mlp", digits.train, 8), seed=3)
    rows = rows_outside(digits.test, 3, 3)
    return model, TriggerQuestion(graph_of(model, digits.test.shape), rows, (0.0, 1.0), 3, timeout_s=20)


def test_patches_ruled_out_are_never_found(question):
    """No random pattern in a ruled-out square reaches the target; every example found does."""
    model, asked = question
    answers = patch_answers(asked, [1, 2, 8], (0, 0))
    rng = np.random.default_rng(0)
    for answer in answers:
        mask = patch_mask((1, 8, 8), int(answer.size), (0, 0))
        for row, verdict in zip(asked.rows, answer.verdicts, strict=True):
            shown = np.where(mask, rng.random((300, 1, 8, 8)).round().astype(np.float32), row)
            if verdict == "unsat":
                assert not np.any(labels(model, shown) == 3)
        if answer.example is not None:
            z = model(torch.tensor(answer.example[None])).detach()[0]
            assert float(z[3]) >= float(z.max()) - 1e-5
            assert any(np.array_equal(answer.example[~mask], row[~mask]) for row in asked.rows)
    for small, large in itertools.pairwise(answers):
        assert small.success_at_most <= large.success_at_most


def test_blends_grow_with_their_strength(question):
    _, asked = question
    answers = blend_answers(asked, [1e-6, 1.0])
    assert answers[0].success_at_most <= answers[1].success_at_most
    assert answers[1].verdicts.count("unsat") in (0, len(asked.rows)), "at full strength the row does not matter"
    lower, upper = blend_box(asked.rows[0], 0.3, (0.0, 1.0))
    shown = np.float32(0.7) * asked.rows[0] + np.float32(0.3) * np.random.default_rng(0).random((50, 1, 8, 8)).astype(
        "f4"
    )
    assert np.all(shown.reshape(50, -1) >= lower) and np.all(shown.reshape(50, -1) <= upper)
    with pytest.raises(SpecError, match="strengths"):
        blend_answers(asked, [0.0])
    with pytest.raises(SpecError, match="finite valid range"):
        blend_answers(replace(asked, valid=(-np.inf, np.inf)), [0.1])


def test_the_largest_size_ruled_out_stops_at_the_first_gap():
    def answer(size, *verdicts):
        return ShapeAnswer("square", size, verdicts)

    group = [answer(1, "unsat", "unsat"), answer(2, "unsat", "timeout"), answer(3, "unsat", "unsat")]
    found = largest_ruled_out(group)
    assert found is not None and found.size == 1 and group[1].success_at_most == 0.5
    assert largest_ruled_out(group[1:]) is None


def test_questions_that_make_no_sense_are_refused(question, digits):
    _, asked = question
    with pytest.raises(SpecError, match="squares"):
        patch_answers(asked, [9])
    with pytest.raises(SpecError, match="leaves the image"):
        patch_answers(asked, [3], (6, 6))
    with pytest.raises(SpecError, match="target"):
        patch_answers(replace(asked, target=10), [1], (0, 0))
    with pytest.raises(SpecError, match="every row"):
        rows_outside(digits.test.subset(digits.test.y == 3), 3, 5)
