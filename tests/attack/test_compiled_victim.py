"""Network files attacked through compiled code: the scores, derivatives, counts and results of the torch module."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import INF
from torch import Tensor

from verifier.attack.compiled_victim import compiled
from verifier.attack.losses import COMPILED, Loss, dlr, margin
from verifier.attack.model import Model, Preprocessing
from verifier.attack.onnx_victim import graph_module
from verifier.attack.registry import build
from verifier.attack.task import Task
from verifier.attack.threat import LpThreat
from verifier.attack.universal.expectation import ExpectationModel
from verifier.data.packaged import digits
from verifier.errors import ShapeError
from verifier.graph.load import load_network

SPECS = Path(__file__).parents[2] / "specs" / "onnx"
COVERED = ("fc", "conv", "residual", "avgpool", "batchnorm", "leaky", "sigmoid", "tanh")
IMAGES = torch.tensor(digits().x[:24])
LABELS = torch.tensor(digits().y[:24])


def pair(name: str, preprocess: Preprocessing | None = None) -> tuple[Model, Model]:
    """The file behind compiled code, and behind the torch module."""
    path = SPECS / f"{name}.onnx"
    return Model.from_onnx(path, preprocess=preprocess), Model.from_torch(graph_module(path), preprocess=preprocess)


def task(model: Model, threat: LpThreat) -> Task:
    return Task(model, threat.space(IMAGES), LABELS, None, False, 0)


@pytest.mark.parametrize("name", COVERED)
@pytest.mark.parametrize("shifted", [False, True])
def test_scores_and_derivatives_are_the_modules(name: str, shifted: bool) -> None:
    ours, reference = pair(name, Preprocessing(0.3, 0.5) if shifted else None)
    assert not isinstance(ours.forward, torch.nn.Module) and ours.compiled is not None
    threat = LpThreat(eps=0.1, scale=torch.linspace(0.5, 2.0, IMAGES[0].numel()).reshape(IMAGES.shape[1:]))
    for one in (threat, LpThreat(eps=0.1)):
        a, b = (task(m, one).rows() for m in (ours, reference))
        work = a.start
        parts = [
            (a.scores(work), b.scores(work)),
            *zip(a.gradient(work, margin), b.gradient(work, margin), strict=True),
            *zip(a.gradient(work, dlr), b.gradient(work, dlr), strict=True),
            *zip(a.jacobian(work, 4), b.jacobian(work, 4), strict=True),
        ]
        for mine, theirs in parts:
            assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
            assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))
        assert torch.equal(a.task.queries, b.task.queries) and torch.equal(a.task.gradients, b.task.gradients)


@pytest.mark.parametrize("name", [*COVERED, "attention", "gelu", "maxpool"])
def test_no_rows_have_no_scores_and_no_derivatives(name: str) -> None:
    for model in pair(name):
        none = task(model, LpThreat(eps=0.1)).rows(torch.arange(0))
        work = none.start
        assert model.forward(work).shape == none.scores(work).shape == (0, 10) and none.predictions(work).shape == (0,)
        for loss in (margin, dlr):
            assert [tuple(e.shape) for e in none.gradient(work, loss)] == [(0, 10), (0,), (0, *IMAGES.shape[1:])]
        assert [tuple(e.shape) for e in none.jacobian(work, 4)] == [(0, 10), (0, 4), (0, 4, *IMAGES.shape[1:])]
        assert not none.task.queries.any() and not none.task.gradients.any()


@pytest.mark.parametrize("attack", ["pgd", "apgd", "square", "fab", "deepfool", "cw"])
def test_attacks_find_what_they_find_on_the_module(attack: str) -> None:
    short = {"square": {"steps": 100}, "fab": {"steps": 20}, "cw": {"steps": 40}}.get(attack, {})
    ours, reference = pair("fc")
    norm = 2.0 if attack in ("deepfool", "cw") else INF
    results = [
        build(attack, **short)(m, IMAGES, LABELS, LpThreat(norm=norm, eps=0.2), seed=0) for m in (ours, reference)
    ]
    assert torch.equal(results[0].success, results[1].success)
    judged = reference.labels(results[0].adversarial) != LABELS
    assert torch.equal(judged, results[0].success)


@pytest.mark.parametrize("loss", COMPILED)
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("rows", [1, 24])
def test_losses_known_to_compiled_code_are_autograds(loss: Loss, targeted: bool, rows: int) -> None:
    model, reference = pair("fc")
    x, label = IMAGES[:rows], LABELS[:rows]
    target = (label + 2) % 10 if targeted else None
    assert model.compiled is not None and model.compiled.knows(loss) and not model.compiled.knows(dlr)
    found = model.compiled.climb(x, loss, label, target)
    leaf = x.clone().requires_grad_(True)
    scores = reference.scores(leaf)
    value = loss(scores, label, target)
    (grad,) = torch.autograd.grad(value.sum(), leaf)
    for mine, theirs in zip(found, (scores, value, grad), strict=True):
        assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-4)
    assert [p.shape[0] for p in model.compiled.climb(x[:0], loss, label[:0], None)] == [0, 0, 0]


@pytest.mark.parametrize("loss", COMPILED)
def test_what_overflows_has_no_gradient_and_other_rows_keep_theirs(loss: Loss) -> None:
    model = pair("fc")[0]
    assert model.compiled is not None
    x = IMAGES[:3].clone()
    alone = model.compiled.climb(x[1:2], loss, LABELS[1:2], None)[2]
    x[0], x[2] = torch.nan, 3e38
    scores, value, grad = model.compiled.climb(x, loss, LABELS[:3], None)
    assert scores[0].isnan().all() and value[0].isnan()
    assert bool(grad.isfinite().all()) and not grad[0].any() and torch.equal(grad[1:2], alone)


def test_classes_beyond_the_scores_are_refused() -> None:
    model = pair("fc")[0]
    assert model.compiled is not None
    with pytest.raises(ValueError, match="label: expected 1 classes below 10"):
        model.compiled.climb(IMAGES[:1], margin, torch.tensor([10]), None)
    with pytest.raises(ValueError, match="target: expected 1 classes below 10"):
        model.compiled.climb(IMAGES[:1], margin, LABELS[:1], torch.tensor([-1]))


def test_a_trace_outlives_later_evaluations() -> None:
    model = pair("fc")[0]

    def summed(x: Tensor) -> Tensor:
        return model.scores(x)[:, 0].sum()

    x = IMAGES.clone().requires_grad_(True)
    first = summed(x)
    (other,) = torch.autograd.grad(summed(x * 0.5), x)
    (late,) = torch.autograd.grad(first, x)
    (fresh,) = torch.autograd.grad(summed(x), x)
    assert torch.equal(late, fresh) and not torch.equal(late, other)


def test_expectations_over_compiled_victims_have_jacobians() -> None:
    shift = [lambda x, generator: x + 0.01]
    a, b = (
        task(ExpectationModel(m, shift, samples=2, seed=0), LpThreat(eps=0.1)).rows().jacobian(IMAGES)
        for m in pair("conv")
    )
    assert torch.allclose(a[2], b[2], rtol=1e-3, atol=1e-4)


def test_wrong_sizes_are_named_and_uncovered_networks_stay_with_torch() -> None:
    with pytest.raises(ShapeError, match="network input: expected 64 features"):
        pair("fc")[0].scores(torch.zeros(2, 63))
    assert compiled(load_network(SPECS / "maxpool.onnx")) is None
    model = Model.from_onnx(SPECS / "maxpool.onnx")
    assert model.compiled is None and model.forward is model.module
