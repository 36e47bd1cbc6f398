"""Certified radii against exact distances, brute force and their own counterexamples."""

import math

import numpy as np
import pytest
from radius_nets import dense_network, linear, planar

from verifier.certify import bracket
from verifier.certify.closest import Counterexample
from verifier.certify.radius import RadiusSettings, certified_radius
from verifier.certify.threat import Nearness
from verifier.certify.victim import Classifier
from verifier.errors import ShapeError, SpecError
from verifier.graph.evaluate import evaluate
from verifier.outcome import Soundness, StopReason, Verdict
from verifier.run import Run

QUICK = RadiusSettings(gap_rel=0.05, timeout_s=120)
DUAL = {1.0: math.inf, 2.0: 2.0, math.inf: 1.0}


def distances(weight, bias, x, label, p, unit):
    """Exact distance of x to every other class of a linear classifier, without limits on inputs."""
    scores = x @ weight + bias
    found = {}
    for k in range(weight.shape[1]):
        if k != label:
            slope = np.linalg.norm((weight[:, label] - weight[:, k]) * unit, ord=DUAL[p])
            found[k] = (scores[label] - scores[k]) / slope
    return found


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_linear_classifiers_have_their_exact_radius(p, seed):
    graph, weight, bias = linear(seed, features=5 + seed, classes=2 + seed)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(weight.shape[0]).astype(np.float32).astype(np.float64)
    scale = rng.choice([0.5, 1.0, 4.0], len(x)) if seed == 1 else None
    label = int((x @ weight + bias).argmax())
    exact = distances(weight, bias, x, label, p, 1.0 if scale is None else scale)
    found = certified_radius(graph, x, nearness=Nearness(p, scale=scale), settings=QUICK)
    assert found.label == label and found.reason is StopReason.GAP_REACHED
    assert found.lower <= min(exact.values()) <= found.upper
    assert found.upper <= min(exact.values()) * 1.01 and found.gap_rel <= 0.05
    farthest = max(exact, key=exact.get)
    aimed = certified_radius(graph, x, nearness=Nearness(p, scale=scale), target=farthest, settings=QUICK)
    assert aimed.lower <= exact[farthest] <= aimed.upper and aimed.gap_rel <= 0.05
    assert aimed.counterexample.rival == farthest


def test_feature_budgets_of_linear_classifiers_are_exact():
    graph, weight, bias = linear(3, features=7, classes=3)
    x = np.full(7, 0.5)
    scores = x @ weight + bias
    label = int(scores.argmax())
    needed = math.inf
    for k in set(range(3)) - {label}:
        slope = weight[:, label] - weight[:, k]
        gains = np.sort(0.5 * np.abs(slope))[::-1].cumsum()
        reached = np.flatnonzero(gains >= scores[label] - scores[k])
        needed = min(needed, reached[0] + 1 if len(reached) else math.inf)
    found = certified_radius(graph, x, nearness=Nearness(0.0, (0.0, 1.0)), settings=QUICK)
    if math.isinf(needed):
        assert found.lower == math.inf and found.reason is StopReason.WHOLE_RANGE
    else:
        assert (found.lower, found.upper) == (needed - 1, needed)


def test_masks_and_valid_ranges_are_kept():
    graph, weight, bias = linear(4, features=6, classes=3)
    x = np.full(6, 0.5)
    label = int((x @ weight + bias).argmax())
    mask = np.array([1, 1, 0, 0, 1, 0], dtype=bool)
    near = Nearness(math.inf, (0.0, 1.0), mask)
    found = certified_radius(graph, x, nearness=near, settings=QUICK)
    exact = min(distances(weight[mask], bias + x[~mask] @ weight[~mask], x[mask], label, math.inf, 1.0).values())
    if exact > 0.5:
        assert found.lower == math.inf and found.counterexample is None
    else:
        assert found.lower <= exact <= found.upper
        moved = found.counterexample.x != x
        assert not np.any(moved & ~mask)
        assert np.all((found.counterexample.x >= 0) & (found.counterexample.x <= 1))


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("seed", [5, 7, 9])
def test_planar_networks_against_brute_force(p, seed):
    graph = planar(seed)
    x = np.array([0.25, -0.125])
    found = certified_radius(graph, x, nearness=Nearness(p, (-2.0, 2.0)), settings=QUICK)
    axis = np.linspace(-2, 2, 401)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2).astype(np.float32).astype(np.float64)
    other = evaluate(graph, grid).argmax(axis=1) != found.label
    nearest = np.linalg.norm(grid[other] - x, ord=p, axis=1).min() if other.any() else math.inf
    assert found.lower <= nearest, "a point inside the certified ball has another class"
    assert found.upper <= nearest * 1.02 + 0.01 or nearest == math.inf
    assert found.gap_rel <= 0.05 or found.reason is StopReason.WHOLE_RANGE
    if found.counterexample is not None:
        y = evaluate(graph, found.counterexample.x.astype(np.float32), "float32")[0]
        assert y.argmax() != found.label or np.sum(y == y.max()) > 1
        assert np.linalg.norm(found.counterexample.x - x, ord=p) <= found.upper


@pytest.mark.parametrize("effort", ["bounds", "slopes"])
def test_less_effort_proves_less_and_stays_below_the_attack(effort):
    graph = planar(7)
    x = np.array([0.25, -0.125])
    near = Nearness(math.inf, (-2.0, 2.0))
    little = certified_radius(graph, x, nearness=near, settings=RadiusSettings(0.05, 120, effort))
    full = certified_radius(graph, x, nearness=near, settings=QUICK)
    assert 0 <= little.lower <= full.upper
    assert full.lower <= little.upper and full.gap_rel <= 0.05


def test_given_radii_are_decided():
    graph = planar(9)
    x, near = np.array([0.25, -0.125]), Nearness(math.inf, (-2.0, 2.0))
    truth = certified_radius(graph, x, nearness=near, settings=QUICK)
    assert 0 < truth.lower <= truth.upper < math.inf
    asked = (0.3 * truth.lower, 0.9 * truth.lower, 1.5 * truth.upper)
    found = certified_radius(graph, x, nearness=near, settings=RadiusSettings(timeout_s=120, radii=asked))
    assert found.lower >= asked[1] and found.upper <= asked[2]


@pytest.mark.parametrize("label", [0, 1])
def test_one_output_means_two_classes(label):
    sign = 1.0 if label else -1.0
    graph = dense_network([(sign * np.array([[3.0], [4.0]]), np.array([sign * 1.0]))])
    found = certified_radius(graph, np.array([1.0, 1.0]), nearness=Nearness(2.0), settings=QUICK)
    assert found.label == label and found.lower <= 8 / 5 <= found.upper <= 1.62
    assert found.counterexample.rival == 1 - label


def test_two_classes():
    graph, weight, bias = linear(9, features=3, classes=2)
    x = np.array([0.5, 0.25, -0.5])
    exact = min(distances(weight, bias, x, int((x @ weight + bias).argmax()), 2.0, 1.0).values())
    found = certified_radius(graph, x, nearness=Nearness(2.0), settings=QUICK)
    assert found.lower <= exact <= found.upper


def test_misclassified_and_tied_inputs_have_radius_zero():
    graph = dense_network([(np.eye(2), np.zeros(2))])
    found = certified_radius(graph, np.array([1.0, 0.0]), label=1)
    assert (found.lower, found.upper, found.reason) == (0.0, 0.0, StopReason.MISCLASSIFIED)
    assert certified_radius(graph, np.array([1.0, 1.0])).lower == 0.0


def test_a_class_that_always_holds():
    graph = dense_network([(np.zeros((2, 2)), np.array([1.0, 0.0]))])
    found = certified_radius(graph, np.zeros(2), nearness=Nearness(math.inf, (-1.0, 1.0)), settings=QUICK)
    assert found.lower == math.inf and found.reason is StopReason.WHOLE_RANGE and found.gap_rel == 0.0
    assert found.soundness is Soundness.IEEE_FLOAT


def test_networks_that_answer_nan_certify_nothing():
    first, second = np.array([[1e38, 0.0], [-1e38, 0.0]]), np.array([[1e38, 1.0], [0.0, 1.0]])
    graph = dense_network([(first, np.zeros(2)), (second, np.zeros(2))])
    assert certified_radius(graph, np.array([30.0, 1.0])).lower == 0.0
    # Inside the number range at the input, outside it nearby: the proof must stop before.
    near = certified_radius(graph, np.array([1.0, 1.0]), settings=RadiusSettings(timeout_s=2))
    assert near.lower < 0.01


def test_bad_inputs_are_named():
    classifier = Classifier(planar(0))
    with pytest.raises(ShapeError, match="expected 2 features"):
        certified_radius(classifier, np.zeros(3))
    with pytest.raises(SpecError, match="feature 1 is 5"):
        certified_radius(classifier, np.array([0.0, 5.0]), nearness=Nearness(math.inf, (0.0, 1.0)))
    with pytest.raises(SpecError, match="finite"):
        certified_radius(classifier, np.array([0.0, math.nan]))
    with pytest.raises(ShapeError, match="mask"):
        certified_radius(classifier, np.zeros(2), nearness=Nearness(mask=np.ones(3, dtype=bool)))
    with pytest.raises(SpecError, match="valid range"):
        Nearness(0.0)
    with pytest.raises(SpecError, match="target"):
        certified_radius(classifier, np.zeros(2), label=0, target=0)
    with pytest.raises(SpecError, match="gap"):
        RadiusSettings(gap_rel=0.0)


def test_a_query_that_takes_long_looks_beyond_its_ball_and_ends_where_something_nearer_is_found(monkeypatch):
    """The goal's ball is never decided, the one beyond it holds a counterexample: the next goal is below it."""
    graph, weight, bias = linear(0, features=5, classes=2)
    classifier, near, x = Classifier(graph), Nearness(math.inf).sized(5), np.zeros(5)
    label, _, rows, _ = classifier.ask(x, None, None)
    (exact,) = distances(weight, bias, x, label, math.inf, 1.0).values()
    way = -np.sign(weight[:, label] - weight[:, 1 - label])
    radii: list[float] = []

    def decided(classifier, inputs, rows, run, confirm):
        radii.append(float(inputs.upper[0]))
        if len(radii) == 1:
            while not run.stopped():
                pass
            return Verdict.UNKNOWN
        if len(radii) == 2:
            return Verdict.SAT if confirm(x + 1.001 * exact * way) else Verdict.UNKNOWN
        return Verdict.UNSAT

    monkeypatch.setattr(bracket, "LOOK_S", 0.0)
    monkeypatch.setattr(bracket, "decided", decided)
    monkeypatch.setattr(bracket.Bracket, "_attack_briefly", lambda self: None)
    limits = bracket.Limits(gap_rel=0.05, effort="search", attack_effort=1, seed=0)
    search = bracket.Bracket(classifier, near, rows, x, Run.within(20, None), limits)
    far = classifier.deployed(x + 1.04 * exact * way)
    search.closest.best = Counterexample(far, classifier.outputs(far), 1 - label, float(np.abs(far).max()), "test")
    assert search.solve() is StopReason.GAP_REACHED
    goal, beyond, last = radii
    assert last < goal < beyond and exact <= search.closest.distance <= 1.001 * exact
