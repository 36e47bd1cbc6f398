"""Detectors: published values, planted outliers, and a real backdoor on images, a table and sequences."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from torch import nn

from verifier.data.sentences import embed
from verifier.errors import NetworkError, SpecError
from verifier.training.backdoor.stamp import Backdoor, stamp
from verifier.training.backdoor.trigger import fixed_features, fixed_words
from verifier.training.detect.anomaly import anomaly_indices
from verifier.training.detect.clustering import Clustering, activation_clustering, split_in_two
from verifier.training.detect.loss_filter import loss_filter
from verifier.training.detect.neural_cleanse import Cleanse, flag_small, neural_cleanse
from verifier.training.detect.rows import RowScores, recall
from verifier.training.detect.scan import Finding, _report, scan
from verifier.training.detect.spectral import Spectral, robust_scores, spectral_signatures, top_projection
from verifier.training.detect.strip import strip, superimposed_entropy
from verifier.training.detect.trojannet import DataFree, LimitedData, data_free, limited_data, shortcuts
from verifier.training.poison.labels import random_flips
from verifier.training.predict import features, features_of
from verifier.training.train import Recipe, train


def test_anomaly_index_matches_the_published_value():
    """(64.466667 - 16.117647) / 13.238736 = 3.652087, from mask sizes with that median and deviation."""
    median, low, scale = 64.466667, 16.117647, 13.238736
    deviation = scale / 1.4826
    values = median + deviation * np.array([0.0, -1, -0.5, 0, 0.5, 1, 2])
    values[0] = low
    assert anomaly_indices(values)[0] == pytest.approx(-3.652087, abs=1e-6)


def test_anomaly_index_by_hand():
    assert anomaly_indices(np.array([1.0, 2.0, 3.0, 4.0, 100.0])).tolist() == pytest.approx(
        [-2 / 1.4826, -1 / 1.4826, 0.0, 1 / 1.4826, 97 / 1.4826]
    )
    assert anomaly_indices(np.full(4, 7.0)).tolist() == [0.0] * 4


def test_few_classes_are_judged_by_a_ratio():
    assert flag_small(np.array([2.0, 20.0]), Cleanse())[0] == (0,)
    assert flag_small(np.array([12.0, 20.0]), Cleanse())[0] == ()
    flagged, rule = flag_small(np.array([1.0, 20, 21, 22, 23, 24, 25]), Cleanse())
    assert flagged == (0,) and "anomaly index" in rule


def test_projection_is_the_top_singular_direction():
    points = np.random.default_rng(0).normal(size=(40, 5)) * [1, 1, 6, 1, 1]
    points -= points.mean(axis=0)
    projected, variance = top_projection(points)
    values, vectors = np.linalg.eigh(points.T @ points / len(points))
    assert variance == pytest.approx(values[-1])
    assert np.allclose(np.abs(projected), np.abs(points @ vectors[:, -1]))


def test_robust_scores_find_a_planted_third():
    rng = np.random.default_rng(1)
    scores = robust_scores(np.concatenate([rng.normal(size=60), 9 + rng.normal(size=30)]))
    assert scores[60:].min() > scores[:60].max()
    assert robust_scores(np.zeros(5)).tolist() == [0.0] * 5


def test_two_planted_clusters_are_split():
    rng = np.random.default_rng(1)
    small, silhouette = split_in_two(
        np.concatenate([rng.normal(size=(60, 4)), 9 + rng.normal(size=(30, 4))]), Clustering()
    )
    assert np.array_equal(np.flatnonzero(small), np.arange(60, 90)) and silhouette > 0.6
    assert split_in_two(np.zeros((6, 3)), Clustering())[0].sum() == 0


@pytest.mark.parametrize("rule", ["size", "silhouette", "both"])
def test_clustering_rules(digits, badnets, rule):
    attacked, model = badnets
    found = recall(activation_clustering(attacked.data, model, Clustering(rule=rule)), attacked.touched, attacked.data)
    assert found.found >= 0.9


def test_rows_of_a_patch_backdoor_are_found(digits, badnets):
    attacked, model = badnets
    for answer in (spectral_signatures(attacked.data, model), activation_clustering(attacked.data, model)):
        found = recall(answer, attacked.touched, attacked.data)
        assert found.found >= 0.9 and found.false_alarms <= 0.1, answer.method
    with pytest.raises(SpecError, match="rule"):
        activation_clustering(attacked.data, model, Clustering(rule="none"))


def test_the_budget_rule_drops_as_many_rows_as_the_paper(digits, clean_model):
    answer = spectral_signatures(digits.train, clean_model, Spectral(rule="budget", expected=0.01))
    limit = int(np.ceil(0.015 * len(digits.train)))
    for label in range(10):
        assert answer.flagged[digits.train.y == label].sum() == limit


def test_clean_rows_pass(digits, clean_model):
    assert spectral_signatures(digits.train, clean_model).flagged.mean() <= 0.1
    assert activation_clustering(digits.train, clean_model).flagged.mean() <= 0.1


@pytest.mark.parametrize("name", ["cancer", "sentences"])
def test_two_classes_of_tables_and_sequences(request, name):
    parts = request.getfixturevalue(name)
    data = parts.train
    if name == "cancer":
        trigger, recipe = fixed_features(data, {1: 39.0, 4: 0.16, 9: 0.09}), Recipe("mlp", 16, epochs=20, batch_size=32)
    else:
        trigger, recipe = fixed_words(data, embed(["cf", "mn"])), Recipe("tokens", 16, epochs=12)
    attacked = stamp(data, Backdoor(trigger, 1, 0.1))
    model = train(None, attacked.data, recipe).model
    for answer in (
        spectral_signatures(attacked.data, model),
        activation_clustering(attacked.data, model),
        strip(attacked.data, model, parts.trusted),
    ):
        assert answer.scores.shape == answer.flagged.shape == (len(data),) and not np.isnan(answer.scores).any()
    found = neural_cleanse(model, parts.trusted, Cleanse(steps=40))
    assert found.masks.shape[0] == 2 and np.all(np.isfinite(found.norms)) and "few classes" in found.rule
    assert limited_data(model, parts.trusted, LimitedData(steps=20)).similarity.shape == (2,)


def test_entropy_of_blends_by_definition(digits, clean_model):
    """With one overlay row there is nothing random left."""
    overlay = digits.trusted.subset([0])
    x = digits.test.x[:6]
    with torch.no_grad():
        p = torch.softmax(clean_model(torch.tensor(0.5 * x + 0.5 * overlay.x)).double(), dim=1).numpy()
    expected = entropy(p, axis=1)
    assert np.allclose(superimposed_entropy(x, clean_model, overlay, copies=3), expected, atol=1e-6)
    with pytest.raises(SpecError, match="trusted rows"):
        superimposed_entropy(x, clean_model, overlay.subset([]))


def test_the_loss_filter_finds_flipped_labels(digits):
    data = digits.train.subset(np.arange(400))
    attacked = random_flips(data, 0.05, seed=0)
    found = recall(
        loss_filter(attacked.data, Recipe("mlp", 32, epochs=15, batch_size=32), folds=3),
        attacked.touched,
        attacked.data,
    )
    assert found.found >= 0.8 and found.false_alarms <= 0.05


def test_recall_and_sureness_by_hand():
    data = SimpleNamespace(__len__=lambda: 4)
    scores = RowScores("m", np.array([5.0, 1.0, 3.0, 2.0]), np.array([True, False, True, False]), "")
    assert scores.rows.tolist() == [0, 2] and scores.sure().tolist() == [1.0, 1.0]
    found = recall(scores, np.array([0, 1]), np.zeros(4))
    assert (found.found, found.false_alarms) == (0.5, 0.5) and data is not None


def test_neural_cleanse_names_the_target_of_a_patch(digits, badnets):
    _, model = badnets
    before = [p.detach().clone() for p in model.parameters()]
    found = neural_cleanse(model, digits.trusted, Cleanse(steps=200))
    assert found.norms.argmin() == 3 and found.flagged[:1] == (3,)
    assert found.reached[3] >= 0.99
    shown = found.trigger(3)(digits.test.x)
    with torch.no_grad():
        assert float((model(torch.tensor(shown)).argmax(dim=1) == 3).float().mean()) > 0.8
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.requires_grad for p in model.parameters())


def test_neural_cleanse_refuses_what_it_cannot_judge(digits, clean_model):
    from dataclasses import replace

    with pytest.raises(SpecError, match="finite valid range"):
        neural_cleanse(clean_model, replace(digits.trusted, valid=(-np.inf, np.inf)))
    with pytest.raises(SpecError, match="two classes"):
        neural_cleanse(clean_model, digits.trusted.subset(digits.trusted.y == 1))


def test_trojannet_detectors_answer_for_every_class(digits, badnets):
    _, model = badnets
    limited = limited_data(model, digits.trusted, LimitedData(steps=60))
    assert limited.similarity.shape == (10,) and np.all(np.abs(limited.similarity) <= 1 + 1e-9)
    free = data_free(model, digits.trusted.shape, digits.trusted.valid, DataFree(starts=5, steps=30))
    assert free.rises.shape == (10,) and np.all(np.isfinite(free.rises))
    with pytest.raises(SpecError, match="two classes"):
        limited_data(model, digits.trusted.subset(digits.trusted.y == 1))


def test_a_shortcut_stands_alone_and_both_attacks_agree_on_it():
    """Mask sizes measured on a backdoored and a clean digit classifier."""
    bad, clean = np.array([15.23, 5.03, 15.77, 8.41]), np.array([16.84, 17.5, 8.7, 7.09])
    high, low = np.full(4, 0.95), np.full(4, 0.5)
    assert shortcuts(high, bad, LimitedData()) == (1,)
    assert shortcuts(low, bad, LimitedData()) == shortcuts(high, clean, LimitedData()) == ()
    assert shortcuts(np.full(4, np.nan), bad, LimitedData()) == ()


def test_the_verdict_needs_a_majority():
    def found(*flags):
        return tuple(Finding(f"d{k}", f, {}, "") for k, f in enumerate(flags))

    assert _report(found((3,), (3,), ())).verdict == "backdoored"
    assert _report(found((3,), (), ())).verdict == "suspicious"
    assert _report(found((3,), (4,), ())).verdict == "suspicious"
    assert _report(found((), (), ())).verdict == "nothing found" and _report(found((), ())).target is None


def test_a_scan_says_what_it_ran(digits, clean_model):
    with pytest.raises(SpecError, match="unknown detectors"):
        scan(clean_model, digits.trusted, ("guess",))


def test_features_are_the_input_of_a_linear_layer(digits, clean_model):
    x = digits.test.x[:5]
    body, last = nn.Sequential(*list(clean_model)[:-1]), clean_model[-1]
    with torch.no_grad():
        expected = body(torch.tensor(x)).numpy()
    assert np.allclose(features(clean_model, x), expected)
    with torch.no_grad():
        assert torch.allclose(last(features_of(clean_model, torch.tensor(x))), clean_model(torch.tensor(x)))
    with pytest.raises(NetworkError, match="no nn"):
        features(nn.Sequential(nn.Flatten()), x)
