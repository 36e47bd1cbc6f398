"""The quickest attack: exact on linear classifiers, whatever may move and however far."""

import math

import numpy as np
import pytest
from radius_nets import dense_network, linear, planar

from verifier.certify.linearised import OVERSHOOT, linearised
from verifier.certify.threat import Nearness
from verifier.certify.victim import Classifier


def descended(graph, x, near):
    classifier = Classifier(graph)
    _, _, rows, _ = classifier.ask(x, None, None)
    near = near.sized(len(x))
    return linearised(classifier.native, near, x, rows.coeffs), near


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("norm", [2.0, math.inf])
def test_linear_classifiers_are_met_at_their_exact_distance(seed, limited, norm):
    graph, weight, bias = linear(seed, features=6, classes=3)
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.3, 0.7, 6).astype(np.float32).astype(np.float64)
    scale = rng.choice([0.5, 1.0, 4.0], 6)
    mask = rng.random(6) < 0.8
    near = Nearness(norm, (0.0, 1.0) if limited else None, mask, scale)
    found, near = descended(graph, x, near)
    scores = x @ weight + bias
    label = int(scores.argmax())
    exact = math.inf
    for k in set(range(3)) - {label}:
        slope = (weight[:, label] - weight[:, k]) * mask
        room = np.where(slope > 0, x, 1 - x) if limited else np.full(6, np.inf)
        step = scale if math.isinf(norm) else np.abs(slope) * scale**2
        low, high = 0.0, 1e6
        for _ in range(200):
            t = 0.5 * (low + high)
            enough = np.abs(slope) @ np.minimum(t * step, room) >= scores[label] - scores[k]
            low, high = (low, t) if enough else (t, high)
        if high < 1e6:
            exact = min(exact, float(np.linalg.norm(mask * np.minimum(high * step, room) / scale, ord=norm)))
    if math.isinf(exact):
        assert len(found) == 0
    else:
        assert len(found) == 1 and near.holds(x, found[0])
        assert exact * (1 - 1e-5) <= near.distance(x, found)[0] <= exact * OVERSHOOT * (1 + 1e-5)


def test_nothing_is_found_where_the_class_always_holds():
    graph = dense_network([(np.zeros((2, 2)), np.array([1.0, 0.0]))])
    found, _ = descended(graph, np.zeros(2), Nearness(math.inf, (-1.0, 1.0)))
    assert found.shape == (0, 2)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_found_lies_on_the_wrong_side(seed):
    graph, x = planar(seed), np.array([0.25, -0.125])
    found, _ = descended(graph, x, Nearness(math.inf, (-2.0, 2.0)))
    classifier = Classifier(graph)
    for point in found:
        assert classifier.evaluate(point[None])[0].argmax() != classifier.classify(classifier.outputs(x))
