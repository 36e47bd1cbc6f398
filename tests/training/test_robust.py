"""Robust and certified training: inner attacks stay inside, bounds enclose, and proofs come out at the end."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import QUICK
from torch import nn
from torch.nn import functional

from verifier.api import verify
from verifier.errors import NetworkError, SpecError
from verifier.graph.evaluate import evaluate
from verifier.settings import Settings
from verifier.spec.problem import Case, InputSet, Problem, misclassified
from verifier.spec.query import query_of
from verifier.training import predict
from verifier.training.architecture import architecture_for, build
from verifier.training.graphs import GraphEvaluation, graph_of, module_of
from verifier.training.robust.adversarial import Inner, adversarial, ascend, trades
from verifier.training.robust.certified import Schedule, certified, worst_margins
from verifier.training.train import Recipe, cross_entropy, train


def boxes(parts, radius, count=40):
    x, y = torch.tensor(parts.test.x[:count]).double(), torch.tensor(parts.test.y[:count])
    return (x - radius).clamp(0, 1), (x + radius).clamp(0, 1), y


@pytest.mark.parametrize("name, width", [("cnn", 4), ("mlp", 16), ("linear", 1)])
def test_margins_enclose_every_sample_and_the_backward_pass_is_no_looser(digits, name, width):
    model = build(architecture_for(name, digits.train, width), seed=1).double()
    lower, upper, y = boxes(digits, 0.1)
    bounds = [worst_margins(model, lower, upper, y, linear=flag).detach() for flag in (False, True)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        corner = torch.rand(lower.shape, generator=generator, dtype=torch.float64).round()
        z = model(lower + corner * (upper - lower)).detach()
        margin = z.gather(1, y[:, None]) - z
        for bound in bounds:
            assert torch.all(margin - bound >= -1e-12)
    if name == "linear":
        assert torch.allclose(bounds[0], bounds[1])
    else:
        assert bounds[1].mean() > bounds[0].mean()


def test_margins_of_a_point_are_its_margins(digits):
    model = build(architecture_for("cnn", digits.train, 4), seed=1).double()
    x, _, y = boxes(digits, 0.0)
    z = model(x)
    for flag in (False, True):
        found = worst_margins(model, x, x, y, linear=flag)
        assert torch.allclose(found, z.gather(1, y[:, None]) - z, atol=1e-10)


def test_standardised_tables_have_rules_too(cancer):
    model = build(architecture_for("mlp", cancer.train, 8), seed=1).double()
    x, y = torch.tensor(cancer.test.x[:9]).double(), torch.tensor(cancer.test.y[:9])
    z = model(x)
    for flag in (False, True):
        found = worst_margins(model, x, x, y, linear=flag)
        assert torch.allclose(found, z.gather(1, y[:, None]) - z, atol=1e-8)


def test_layers_without_a_rule_are_named(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.GELU())
    lower, upper, y = (t.float() if t.is_floating_point() else t for t in boxes(digits, 0.1))
    with pytest.raises(NetworkError, match="GELU"):
        worst_margins(model, lower, upper, y, linear=False)


def test_the_inner_attack_stays_in_its_box_and_climbs(digits, clean_model):
    x, y = torch.tensor(digits.test.x[:50]), torch.tensor(digits.test.y[:50])
    inner = Inner(0.1, (0.0, 1.0), 5)
    moved = ascend(clean_model, x, lambda z: functional.cross_entropy(z, y), inner, torch.Generator().manual_seed(0))
    assert torch.all((moved - x).abs() <= 0.1 + 1e-6) and moved.min() >= 0 and moved.max() <= 1
    with torch.no_grad():
        before, after = (functional.cross_entropy(clean_model(t), y) for t in (x, moved))
    assert after > before + 0.2
    assert all(p.requires_grad for p in clean_model.parameters())
    with pytest.raises(SpecError, match="positive"):
        Inner(0.0)


def attacked_accuracy(model, data, radius):
    x, y = torch.tensor(data.x), torch.tensor(data.y)
    inner = Inner(radius, (0.0, 1.0), 10)
    moved = ascend(model, x, lambda z: functional.cross_entropy(z, y), inner, torch.Generator().manual_seed(9))
    return predict.accuracy(model, data.with_rows(moved.numpy(), data.y))


@pytest.mark.parametrize("make", [adversarial, trades])
def test_adversarial_training_resists_more(digits, clean_model, make):
    robust = train(None, digits.train, QUICK, loss=make(Inner(0.1, steps=3))).model
    assert attacked_accuracy(robust, digits.test, 0.1) > attacked_accuracy(clean_model, digits.test, 0.1) + 0.1
    assert predict.accuracy(robust, digits.test) > 0.85


def test_trades_without_weight_is_cross_entropy(digits, clean_model):
    x, y = torch.tensor(digits.test.x[:9]), torch.tensor(digits.test.y[:9])
    generator = torch.Generator().manual_seed(0)
    plain = cross_entropy(clean_model, x, y, generator)
    assert torch.allclose(trades(Inner(0.1), beta=0.0)(clean_model, x, y, generator), plain)


def test_schedules_start_clean_and_end_at_the_radius():
    s = Schedule(0.1, 100, warm_up=0.2, ramp=0.5)
    assert [s.progress(k) for k in (0, 20, 45, 70, 99)] == pytest.approx([0, 0, 0.5, 1, 1])
    with pytest.raises(SpecError, match="certified training"):
        Schedule(0.1, 100, ramp=0.0)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_certified_training_gives_networks_that_verify(digits, beta):
    """The share of rows that plain intervals certify rises from nothing to most, and `verify` agrees."""
    radius, recipe = 0.05, replace(QUICK, epochs=20)
    steps = recipe.epochs * -(-len(digits.train) // recipe.batch_size)
    trained = train(None, digits.train, recipe, loss=certified(Schedule(radius, steps, beta=beta))).model
    plain = train(None, digits.train, QUICK).model
    shares = []
    for model in (plain, trained):
        lower, upper, y = boxes(digits, radius, 200)
        margins = worst_margins(model.double(), lower, upper, y, linear=False)
        margins.scatter_(1, y[:, None], 1.0)
        shares.append(float((margins > 0).all(dim=1).double().mean()))
    assert shares[1] > max(0.4, shares[0] + 0.3)
    graph = graph_of(trained.float(), digits.test.shape)
    proved = np.flatnonzero((margins > 0.1).all(dim=1).numpy())[:3]
    for row in proved:
        box = InputSet(lower[row].flatten().numpy(), upper[row].flatten().numpy())
        problem = Problem((Case(box, misclassified(int(y[row]), 10)),), 10)
        assert verify(graph, query_of(graph, problem), Settings(timeout_s=20, threads=1)).verdict.value == "unsat"


@pytest.mark.parametrize("name", ["digits", "cancer", "sentences"])
def test_graphs_say_what_their_modules_say(request, name):
    data = request.getfixturevalue(name).test
    kind = {"digits": "cnn", "cancer": "mlp", "sentences": "tokens"}[name]
    model = build(architecture_for(kind, data, 8), seed=2).eval()
    graph = graph_of(model, data.shape)
    with torch.no_grad():
        expected = model(torch.tensor(data.x[:6])).numpy()
    assert np.allclose(GraphEvaluation(graph)(torch.tensor(data.x[:6])).numpy(), expected, atol=1e-5)
    assert np.allclose(evaluate(graph, data.x[:6].reshape(6, -1)).reshape(6, -1), expected, atol=1e-4)
    again = module_of(graph)
    if name == "digits":
        assert again is not None and np.allclose(again(torch.tensor(data.x[:6])).detach(), expected, atol=1e-6)


def test_modules_without_a_graph_are_named():
    with pytest.raises(NetworkError, match="GELU"):
        graph_of(nn.Sequential(nn.Flatten(), nn.GELU()), (1, 4, 4))
    with pytest.raises(NetworkError, match="sequence of layers"):
        graph_of(nn.Linear(3, 3), (3,))


def test_training_is_seeded_and_leaves_its_input_alone(digits, clean_model):
    before = [p.detach().clone() for p in clean_model.parameters()]
    first, second = (train(clean_model, digits.trusted, Recipe(epochs=1)).model for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(before, clean_model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = train(clean_model, digits.trusted, Recipe(epochs=1, seed=1)).model
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
