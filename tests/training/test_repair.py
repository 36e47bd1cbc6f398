"""Repairs forget the trigger and keep the accuracy; curves, masks and perturbations obey their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from verifier.errors import NetworkError, ShapeError, SpecError
from verifier.training import predict
from verifier.training.architecture import architecture_for, build
from verifier.training.measure import attack_success
from verifier.training.repair.curve import Connection, connect
from verifier.training.repair.erasing import covered, tune_under_boxes
from verifier.training.repair.methods import METHODS, Job, repair
from verifier.training.repair.neurons import prune_neurons
from verifier.training.repair.tuning import (
    AdversarialUnlearning,
    Pruning,
    fine_prune,
    shared_perturbation,
    unlearn,
)
from verifier.training.train import Recipe, train

FAST = Recipe(epochs=3, batch_size=32)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_returns_a_working_copy(digits, badnets, method):
    attacked, model = badnets
    before = [p.detach().clone() for p in model.parameters()]
    fixed = repair(method, Job(model, digits.trusted))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not same(model, fixed) and not fixed.training
    assert predict.accuracy(fixed, digits.test) > predict.accuracy(model, digits.test) - 0.08
    assert attack_success(fixed, attacked, digits.test)[0] <= attack_success(model, attacked, digits.test)[0]


def test_boxes_cover_what_they_should(digits, clean_model, cancer):
    x = torch.full((400, 1, 8, 8), 0.25)
    ends = (torch.zeros(1, 8, 8), torch.ones(1, 8, 8))
    changed = covered(x, ends, torch.Generator().manual_seed(0)) != x
    rows, columns = changed.any(dim=3)[:, 0], changed.any(dim=2)[:, 0]
    assert rows.any(dim=1).all() and rows.sum(dim=1).max() == 4 and columns.sum(dim=1).max() == 4
    assert torch.equal(changed[:, 0], rows[:, :, None] & columns[:, None, :]), "not one box an image"
    assert rows.any(dim=0).all() and columns.any(dim=0).all(), "some place is never covered"
    with pytest.raises(SpecError, match="images"):
        tune_under_boxes(clean_model, cancer.trusted)


def test_unlearning_the_true_trigger_removes_it(digits, badnets):
    attacked, model = badnets
    fixed = unlearn(model, digits.trusted, [attacked.trigger])
    assert attack_success(model, attacked, digits.test)[0] > 0.8
    assert attack_success(fixed, attacked, digits.test)[0] < 0.1
    assert predict.accuracy(fixed, digits.test) > predict.accuracy(model, digits.test) - 0.03
    with pytest.raises(SpecError, match="reversed trigger"):
        unlearn(model, digits.trusted, [])


def test_pruned_units_stay_silent(digits, badnets):
    _, model = badnets
    fixed = fine_prune(model, digits.trusted, Pruning(most=0.5, drop=1.0, recipe=FAST))
    silent = (fixed[-1].weight == 0).all(dim=0)
    assert int(silent.sum()) == 32
    quiet = predict.features(model, digits.trusted.x)
    order = np.argsort(np.abs(quiet).mean(axis=0), kind="stable")
    assert set(np.flatnonzero(silent.numpy())) == set(order[:32])
    with pytest.raises(SpecError, match="fine-pruning"):
        fine_prune(model, digits.trusted, Pruning(most=2.0))


@pytest.mark.parametrize("kind", ["bezier", "chain"])
def test_a_curve_ends_at_its_ends(digits, badnets, clean_model, kind):
    _, model = badnets
    curve = connect(model, clean_model, digits.trusted, Connection(kind, epochs=1))
    assert same(curve.model(0.0), model) and same(curve.model(1.0), clean_model)
    first, bend, last = (torch.cat([part[name].detach().flatten() for name in part]) for part in curve.weights)
    middle = torch.cat([p.detach().flatten() for p in curve.model(0.5).parameters()])
    expected = (first + 2 * bend + last) / 4 if kind == "bezier" else bend
    assert torch.allclose(middle, expected, atol=1e-6)
    with pytest.raises(ShapeError, match="same layers"):
        connect(model, build(architecture_for("mlp", digits.train, 8)), digits.trusted)


def test_the_middle_of_a_trained_curve_is_better_than_of_a_straight_line(digits, badnets, clean_model):
    _, model = badnets
    curve = connect(model, clean_model, digits.trusted, Connection(epochs=60))
    straight = connect(model, clean_model, digits.trusted, Connection(epochs=0))
    assert predict.accuracy(curve.model(0.5), digits.trusted) > predict.accuracy(straight.model(0.5), digits.trusted)


def test_the_shared_perturbation_is_one_and_small(digits, badnets):
    _, model = badnets
    settings = AdversarialUnlearning(radius=1.5, steps=10)
    change = shared_perturbation(model, digits.trusted, settings)
    assert change.shape == digits.trusted.shape and np.linalg.norm(change) <= 1.5 * (1 + 1e-6)
    shown = digits.trusted.with_rows(np.clip(digits.trusted.x + change, 0, 1), digits.trusted.y)
    assert predict.accuracy(model, shown) < predict.accuracy(model, digits.trusted) - 0.2


def test_neuron_pruning_cuts_whole_neurons(digits, badnets):
    _, model = badnets
    fixed = prune_neurons(model, digits.trusted)
    for before, after in zip(model.parameters(), fixed.parameters(), strict=True):
        rows = (after.detach().reshape(len(after), -1) == 0).all(dim=1)
        assert torch.equal(after[~rows], before[~rows])
    with pytest.raises(NetworkError, match="no hidden layer"):
        prune_neurons(build(architecture_for("linear", digits.train, 1)), digits.trusted)


def test_unknown_methods_and_empty_data_are_refused(digits, clean_model):
    with pytest.raises(SpecError, match="fine-tune"):
        repair("pray", Job(clean_model, digits.trusted))
    with pytest.raises(SpecError, match="trusted rows"):
        repair("fine-tune", Job(clean_model, digits.trusted.subset([])))


def test_repairs_take_tables(cancer):
    model = train(None, cancer.train, Recipe("mlp", 8, epochs=3, batch_size=32)).model
    for method in ("fine-prune", "unlearn", "prune-neurons"):
        assert predict.accuracy(repair(method, Job(model, cancer.trusted)), cancer.test) > 0.8
