"""Descents from random points: as near as the boundary of a linear classifier, and past what misleads at the center."""

import math

import numpy as np
import pytest
from radius_nets import dense_network, linear

from verifier.certify.descents import descents
from verifier.certify.threat import Nearness
from verifier.certify.victim import Classifier


def descended(graph, x, near, known, leads=None):
    classifier = Classifier(graph)
    _, _, rows, _ = classifier.ask(x, None, None)
    near = near.sized(len(x))
    found = descents(classifier.native, near, x, rows.coeffs, np.random.default_rng(0), known, leads)
    return found, near, classifier


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("norm", [2.0, math.inf])
def test_linear_classifiers_are_met_near_their_exact_distance(seed, norm):
    graph, weight, bias = linear(seed, features=6, classes=3)
    rng = np.random.default_rng(seed)
    x = rng.uniform(-0.3, 0.3, 6).astype(np.float32).astype(np.float64)
    scale, mask = rng.choice([0.5, 1.0, 4.0], 6), np.arange(6) != 2
    scores = x @ weight + bias
    label = int(scores.argmax())
    gaps = {k: weight[:, label] - weight[:, k] for k in set(range(3)) - {label}}
    dual = 1 if math.isinf(norm) else 2
    lengths = {k: (scores[label] - scores[k]) / np.linalg.norm(g * scale * mask, ord=dual) for k, g in gaps.items()}
    rival = min(lengths, key=lengths.get)
    way = scale**2 * mask * gaps[rival]
    known = x - 3 * way * (scores[label] - scores[rival]) / (gaps[rival] @ way)
    found, near, _ = descended(graph, x, Nearness(norm, None, mask, scale), known)
    assert near.holds(x, found[0])
    assert lengths[rival] * (1 - 1e-5) <= near.distance(x, found)[0] <= 1.05 * lengths[rival]


def test_a_gradient_that_points_away_from_the_nearest_counterexample_is_overcome():
    """Margin 1 + 0.2 x - 5 relu(x - 1): at 0 it falls to the left alone, where it vanishes at -5; at 1.25 as well."""
    first = np.array([[1.0, 1.0, -1.0]]), np.array([-1.0, 0.0, 0.0])
    second = np.array([[0.0, 5.0], [0.0, -0.2], [0.0, 0.2]]), np.array([1.0, 0.0])
    graph = dense_network([first, second])
    found, _, classifier = descended(graph, np.zeros(1), Nearness(math.inf, (-20.0, 20.0)), np.array([-10.0]))
    assert classifier.evaluate(found)[0].argmax() == 1
    assert 1.25 <= found[0, 0] < 1.5


def test_the_known_point_is_kept_where_nothing_is_nearer():
    """Only the corner at the end of the range is of another class."""
    graph = dense_network([(np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([2.0, 0.0]))])
    known = np.array([1.0, 1.0])
    found, _, _ = descended(graph, np.zeros(2), Nearness(math.inf, (-1.0, 1.0)), known)
    assert np.array_equal(found, known[None])


def test_without_a_known_point_they_start_where_margins_would_vanish():
    """Margin 2 - x - y, and one that never falls."""
    graph = dense_network([(np.array([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]), np.array([2.0, 0.0, -9.0]))])
    found, near, classifier = descended(graph, np.zeros(2), Nearness(math.inf), None)
    outputs = classifier.evaluate(found)[0]
    assert outputs[1] >= outputs[0]
    assert 1.0 <= near.distance(np.zeros(2), found)[0] < 1.05
    assert len(descended(graph, np.zeros(2), Nearness(math.inf, (-0.5, 0.5)), None)[0]) == 0


def test_leads_are_followed_where_random_starts_have_no_gradient(monkeypatch):
    """Margin 1 - 5 relu(x - 1), flat where the random starts are."""
    monkeypatch.setattr("verifier.certify.descents.SHARES", (1e-6,))
    first = np.array([[1.0]]), np.array([-1.0])
    graph = dense_network([first, (np.array([[0.0, 5.0]]), np.array([1.0, 0.0]))])
    near, known = Nearness(math.inf, (-20.0, 20.0)), np.array([9.0])
    alone, _, _ = descended(graph, np.zeros(1), near, known)
    led, _, _ = descended(graph, np.zeros(1), near, known, np.array([[2.0]]))
    assert np.array_equal(alone, known[None])
    assert 1.2 <= led[0, 0] <= 2.0
