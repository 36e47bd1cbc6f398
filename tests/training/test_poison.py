"""Poisoning attacks touch what they report and no more, on every kind of data, and do what they claim."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import QUICK

from verifier.data import Dataset
from verifier.errors import ShapeError, SpecError
from verifier.training.architecture import architecture_for, build
from verifier.training.poison.blackbox import ZerothOrder, zeroth_order
from verifier.training.poison.collision import Collision, bullseye, feature_collision
from verifier.training.poison.edits import add_mislabelled, delete_informative, shift_features
from verifier.training.poison.labels import loss_maximising_flips, random_flips, targeted_flips
from verifier.training.poison.matching import Matching, gradient_matching
from verifier.training.poison.unrolled import Unrolling, unrolled
from verifier.training.poison.victim import Victim, nearest_rows, random_victim
from verifier.training.poisoned import load_poisoned
from verifier.training.predict import cross_entropies, features, logits
from verifier.training.train import SENTENCES, TABLE_MLP


def check_report(clean: Dataset, attacked) -> None:
    """The rows that differ are the rows reported, and the budget is what they cost."""
    assert attacked.data.classes == clean.classes and attacked.data.shape == clean.shape
    x, y = attacked.data.x[: len(clean)], attacked.data.y[: len(clean)]
    moved = np.flatnonzero((x != clean.x).reshape(len(clean), -1).any(axis=1) | (y != clean.y))
    assert set(moved) <= set(attacked.touched)
    assert attacked.budget.rows == len(attacked.touched)
    assert attacked.budget.fraction == len(attacked.touched) / len(clean)
    assert attacked.budget.relabelled == np.sum(y != clean.y)
    assert np.array_equal(attacked.touched, np.unique(attacked.touched))
    change = (x.astype(np.float64) - clean.x).reshape(len(clean), -1)
    assert attacked.budget.largest_change == pytest.approx(np.abs(change).max(), rel=1e-6)
    assert attacked.budget.largest_norm == pytest.approx(np.linalg.norm(change, axis=1).max(), rel=1e-6)
    assert np.all(attacked.data.x >= clean.valid[0]) and np.all(attacked.data.x <= clean.valid[1])


@pytest.fixture(params=["digits", "cancer", "sentences"])
def any_data(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("rate", [0.01, 0.1, 1.0])
def test_random_flips(any_data, rate):
    data = any_data.train
    before = data.y.copy()
    attacked = random_flips(data, rate, seed=3)
    check_report(data, attacked)
    assert np.array_equal(np.flatnonzero(attacked.data.y != data.y), attacked.touched)
    assert len(attacked.touched) == max(1, round(rate * len(data)))
    assert np.array_equal(before, data.y), "the given data set was altered"
    assert np.array_equal(attacked.data.y, random_flips(data, rate, seed=3).data.y)
    if rate < 1:
        assert not np.array_equal(attacked.touched, random_flips(data, rate, seed=4).touched)


def test_targeted_flips(any_data):
    data = any_data.train
    attacked = targeted_flips(data, 0, 1, 0.02)
    check_report(data, attacked)
    assert set(data.y[attacked.touched]) == {0} and set(attacked.data.y[attacked.touched]) == {1}


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.5, float("nan")])
def test_impossible_budgets_are_refused(digits, rate):
    with pytest.raises(SpecError, match="budget"):
        random_flips(digits.train, rate)
    with pytest.raises(SpecError, match="class 3"):
        targeted_flips(digits.train, 3, 4, 0.9)


def test_loss_maximising_flips_are_the_best_of_their_size(digits, clean_model):
    """No single other flip would raise the surrogate's loss more than the weakest one taken."""
    data = digits.train.subset(np.arange(80))
    attacked = loss_maximising_flips(data, clean_model, 0.1)
    check_report(data, attacked)
    losses = np.stack([cross_entropies(clean_model, replace(data, y=np.full(80, k))) for k in range(10)], axis=1)
    gains = losses - losses[np.arange(80), data.y][:, None]
    gains[np.arange(80), data.y] = -np.inf
    taken = gains[attacked.touched, attacked.data.y[attacked.touched]]
    best = np.sort(gains.max(axis=1))[::-1][: len(taken)]
    assert np.allclose(np.sort(taken)[::-1], best, atol=1e-5)


def test_added_rows_follow_the_clean_ones(any_data):
    data = any_data.train
    attacked = add_mislabelled(data, 0.05, seed=1)
    assert np.array_equal(attacked.data.x[: len(data)], data.x)
    assert np.array_equal(attacked.touched, np.arange(len(data), len(attacked.data)))
    assert len(attacked.touched) == round(0.05 * len(data)) == attacked.budget.rows


def test_deleted_rows_have_the_smallest_margins(digits, clean_model):
    data = digits.train
    attacked = delete_informative(data, clean_model, 0.1)
    z = logits(clean_model, data.x)
    own = z[np.arange(len(data)), data.y]
    z[np.arange(len(data)), data.y] = -np.inf
    margin = np.abs(own - z.max(axis=1))
    kept = np.setdiff1d(np.arange(len(data)), attacked.removed)
    assert margin[attacked.removed].max() <= margin[kept].min()
    assert np.array_equal(attacked.data.x, data.x[kept]) and len(attacked.removed) == attacked.budget.rows


def test_shifted_features_stay_in_the_radius(any_data):
    data = any_data.train
    attacked = shift_features(data, 0.1, 0.05, seed=2)
    check_report(data, attacked)
    # What is reported is the change in float32, whose spacing is 6e-5 at raw table values of 800.
    assert attacked.budget.largest_change <= 0.05 + np.spacing(np.abs(data.x).max())
    assert attacked.budget.relabelled == 0


def test_unrolled_poison_raises_the_validation_loss(cancer):
    data, held = cancer.train.subset(np.arange(120)), cancer.trusted
    start = build(architecture_for("linear", data, 1))
    settings = Unrolling(rate=0.1, radius=10.0, steps=6, inner_steps=4, inner_rate=0.2)
    none = unrolled(data, held, start, replace(settings, steps=0))
    attacked = unrolled(data, held, start, settings)
    check_report(data, attacked)
    assert attacked.settings["validation_loss"] > none.settings["validation_loss"]
    assert attacked.budget.largest_change <= 10.0 * (1 + 1e-6)


def test_zeroth_order_uses_queries_only_and_stays_in_its_box(cancer):
    data = cancer.train.subset(np.arange(100))
    victim = build(architecture_for("linear", data, 1))
    attacked = zeroth_order(data, victim, ZerothOrder(rate=0.2, radius=2.0, rounds=10, directions=4, smoothing=0.1))
    check_report(data, attacked)
    assert attacked.budget.largest_change <= 2.0 * (1 + 1e-6) and attacked.budget.relabelled == 0
    assert attacked.settings["queries"] == 10 * 5


def test_collisions_bring_features_together(digits, clean_model):
    victim = random_victim(digits.test, 5)
    goal = features(clean_model, victim.x[None])
    settings = Collision(rate=0.01, steps=80)
    for attacked in (
        feature_collision(digits.train, victim, clean_model, settings),
        bullseye(digits.train, victim, [clean_model], settings),
    ):
        check_report(digits.train, attacked)
        assert set(digits.train.y[attacked.touched]) == {victim.wanted} and attacked.budget.relabelled == 0
        far = np.linalg.norm(features(clean_model, digits.train.x[attacked.touched]) - goal, axis=1).mean()
        near = np.linalg.norm(features(clean_model, attacked.data.x[attacked.touched]) - goal, axis=1).mean()
        assert near < 0.5 * far


def test_gradient_matching_aligns_within_its_radius(digits, clean_model):
    victim = random_victim(digits.test, 5)
    attacked = gradient_matching(
        digits.train, victim, [clean_model], Matching(rate=0.005, radius=0.2, steps=25, restarts=1)
    )
    check_report(digits.train, attacked)
    assert attacked.budget.largest_change <= 0.2 * (1 + 1e-6) and attacked.budget.relabelled == 0
    assert set(digits.train.y[attacked.touched]) == {victim.wanted}
    assert attacked.settings["alignment"] > 0.2


@pytest.mark.parametrize("name, recipe", [("cancer", TABLE_MLP), ("sentences", SENTENCES)])
def test_targeted_attacks_take_tables_and_sequences(request, name, recipe):
    parts = request.getfixturevalue(name)
    model = build(architecture_for(recipe.architecture, parts.train, 8))
    victim = random_victim(parts.test, 1)
    for attacked in (
        feature_collision(parts.train, victim, model, Collision(rate=0.01, steps=3)),
        gradient_matching(parts.train, victim, [model], Matching(rate=0.01, steps=3, restarts=1)),
    ):
        check_report(parts.train, attacked)
        assert attacked.victims is not None and attacked.victims[1].tolist() == [victim.wanted]


def test_victims_that_do_not_fit_are_refused(digits, clean_model):
    with pytest.raises(ShapeError, match="victim"):
        feature_collision(digits.train, Victim(np.zeros((1, 4, 4)), 1), clean_model, Collision())
    lacking = digits.train.subset(digits.train.y != 3)
    with pytest.raises(SpecError, match="wanted class 3"):
        feature_collision(lacking, Victim(digits.test.x[0], 3), clean_model, Collision())


def test_nearest_rows(digits):
    victim = Victim(digits.test.x[0], 4)
    rows = nearest_rows(victim, digits.train, 7)
    away = np.linalg.norm((digits.train.x - victim.x).reshape(len(digits.train), -1), axis=1)
    own = np.flatnonzero(digits.train.y == 4)
    assert set(rows) == set(own[np.argsort(away[own], kind="stable")[:7]])


def test_an_attack_survives_its_folder(digits, tmp_path):
    attacked = random_flips(digits.train, 0.05, seed=1)
    again = load_poisoned(attacked.save(tmp_path / "a"))
    assert again.data.fingerprint() == attacked.data.fingerprint()
    assert again.budget == attacked.budget and np.array_equal(again.touched, attacked.touched)
    (tmp_path / "a" / "poison.json").write_text("{}")
    with pytest.raises(SpecError, match="not a folder written by an attack"):
        load_poisoned(tmp_path / "a")


def test_quick_recipe_is_worth_attacking(digits, clean_model):
    assert np.mean(logits(clean_model, digits.test.x).argmax(axis=1) == digits.test.y) > 0.88 and QUICK.epochs == 12
