"""Transfer, universal, ensembles, expectation, patches, semantic and weight attacks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import INF, Victim, make_linear
from torch import nn

from verifier.attack.blackbox.distil import distil
from verifier.attack.blackbox.transfer import DiverseMomentum, Transfer
from verifier.attack.model import Model
from verifier.attack.registry import build
from verifier.attack.semantic.threat import SemanticThreat
from verifier.attack.semantic.transformations import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    ROTATION,
    SATURATION,
    SPATIAL,
    TRANSFORMATIONS,
    TRANSLATION,
)
from verifier.attack.threat import LpThreat
from verifier.attack.universal.ensemble import MinMaxEnsemble
from verifier.attack.universal.expectation import ExpectationModel, gaussian_noise, random_shift
from verifier.attack.universal.patch import AdversarialPatch, stick
from verifier.attack.universal.perturbation import UAP, UniversalPGD
from verifier.attack.weights import WeightAttack
from verifier.errors import ShapeError, SpecError


def colours(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def small_net(outputs: int = 10) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, outputs))


def test_transfer_counts_only_the_victims_queries_and_fools_it(digits: Victim) -> None:
    surrogate = small_net()
    found = distil(Model.from_torch(digits.module), surrogate, digits.x, seed=0, rounds=3)
    assert found.agreement > 0.8 and found.queries == 4 * len(digits.x)
    attack = Transfer(surrogate=found.model, inner=DiverseMomentum())
    result = attack(digits.module, digits.x, digits.y, LpThreat(eps=0.25), seed=0)
    assert result.queries.tolist() == [3] * len(digits.x)  # the clean input, the transferred one, the final check
    assert float(result.success.double().mean()) > 0.4
    with pytest.raises(SpecError, match="needs a surrogate"):
        Transfer()(digits.module, digits.x[:1], digits.y[:1], LpThreat(eps=0.1), seed=0)


def test_diverse_momentum_runs_on_images_with_resizing(images: Victim) -> None:
    attack = DiverseMomentum(diversity=1.0, steps=10)
    result = attack(images.module, images.x[:8], images.y[:8], LpThreat(eps=0.2), seed=0)
    assert bool(result.success.any()) and float(result.distortion["linf"].max()) <= 0.2


@pytest.mark.parametrize("attack", [UAP(), UniversalPGD(), UniversalPGD(gamma=0.3)])
def test_universal_perturbations_are_one_perturbation(attack: UAP, digits: Victim) -> None:
    x = digits.x.clamp(0.3, 0.7)  # no face of the range is met, so the change is the same everywhere
    with torch.no_grad():
        y = digits.module(x).argmax(1)
    result = attack(digits.module, x, y, LpThreat(eps=0.25), seed=0)
    delta = (result.adversarial - x)[result.success]
    torch.testing.assert_close(delta, delta[:1].expand_as(delta), atol=1e-6, rtol=0)
    noise = x + 0.25 * torch.randint(2, (1, 64), generator=torch.Generator().manual_seed(0)) * 2 - 0.25
    with torch.no_grad():
        chance = float((digits.module(noise).argmax(1) != y).double().mean())
    assert float(result.success.double().mean()) > chance


def test_min_max_fools_every_model_where_the_average_may_not(digits: Victim) -> None:
    others = [small_net(), small_net()]
    for number, net in enumerate(others):
        distil(Model.from_torch(digits.module), net, digits.x, seed=number, rounds=2)
    models = [digits.module, *others]
    x, y = digits.x[:16], digits.y[:16]
    hard = MinMaxEnsemble()(models, x, y, LpThreat(eps=0.12), seed=0)
    mean = MinMaxEnsemble(gamma=INF)(models, x, y, LpThreat(eps=0.12), seed=0)
    assert torch.equal(hard.success, hard.fooled.all(0))
    assert float((hard.adversarial - x).abs().max()) <= 0.12 + 1e-7
    assert int(hard.success.sum()) >= int(mean.success.sum())
    torch.testing.assert_close(hard.weights.sum(0), torch.ones(16))
    assert torch.allclose(mean.weights, torch.full_like(mean.weights, 1 / 3))
    with pytest.raises(SpecError):
        MinMaxEnsemble()([], x, y, LpThreat(eps=0.1), seed=0)


def test_expectation_is_a_function_and_counts_its_samples(images: Victim) -> None:
    model = ExpectationModel(
        Model.from_torch(images.module), [gaussian_noise(0.05), random_shift(1)], samples=4, seed=0
    )
    assert torch.equal(model.scores(images.x[:3]), model.scores(images.x[:3]))
    torch.testing.assert_close(model.scores(images.x[1:2])[0], model.scores(images.x[:3])[1])
    with torch.no_grad():
        y = model.labels(images.x[:6])
    result = build("pgd", steps=5)(model, images.x[:6], y, LpThreat(eps=0.3), seed=0)
    assert bool((result.queries % 4 == 0).all()) and bool(result.success.any())


def test_patch_covers_exactly_its_place_and_beats_a_grey_patch(images: Victim) -> None:
    generator = torch.Generator().manual_seed(0)
    patch = torch.full((1, 3, 3), 0.7)
    stuck = stick(images.x[:5], patch, generator)
    changed = (stuck != images.x[:5]).flatten(1).sum(1)
    assert bool((changed <= 9).all()) and bool((stuck == 0.7).flatten(1).sum(1).ge(9).all())
    trained = AdversarialPatch(size=(4, 4), steps=60)(images.module, images.x, images.y, seed=0)
    assert float(trained.patch.min()) >= 0 and float(trained.patch.max()) <= 1
    with torch.no_grad():
        grey = stick(images.x, torch.full((1, 4, 4), 0.5), generator)
        chance = float((images.module(grey).argmax(1) != images.y).double().mean())
    assert trained.success_rate > chance
    with pytest.raises(ShapeError):
        AdversarialPatch(size=(9, 3))(images.module, images.x, images.y, seed=0)


@pytest.mark.parametrize("name", list(TRANSFORMATIONS))
def test_the_identity_changes_nothing_and_gradients_flow(name: str) -> None:
    t = TRANSFORMATIONS[name]
    x = colours()
    p = torch.tensor([t.identity]).repeat(4, 1)
    torch.testing.assert_close(t.apply(x, p), x, atol=2e-6, rtol=0)
    off = torch.tensor([[i + 0.3 * (u - i) for i, u in zip(t.identity, t.upper, strict=True)]]).repeat(4, 1)
    off.requires_grad_(True)
    t.apply(x, off).square().sum().backward()
    assert bool((off.grad.abs().sum(1) > 0).all())


def test_transformations_do_what_their_names_say() -> None:
    x = colours()
    one = torch.ones(4, 1)
    torch.testing.assert_close(BRIGHTNESS.apply(x, 0.1 * one), x + 0.1)
    grey = SATURATION.apply(x, 0.0 * one)
    torch.testing.assert_close(grey[:, 0], grey[:, 2])
    flat = CONTRAST.apply(x, 0.0 * one)
    assert float(flat.flatten(1).std(1).max()) < 1e-6
    torch.testing.assert_close(HUE.apply(x, 2 * math.pi * one), x, atol=2e-5, rtol=0)
    luma = torch.tensor([0.299, 0.587, 0.114])
    turned = HUE.apply(x, 1.0 * one)
    torch.testing.assert_close(torch.einsum("c,rchw->rhw", luma, turned), torch.einsum("c,rchw->rhw", luma, x))
    moved = TRANSLATION.apply(x, torch.tensor([[1.0, 0.0]]).repeat(4, 1))
    torch.testing.assert_close(moved[:, :, 1:], x[:, :, :-1], atol=1e-5, rtol=0)
    assert float(moved[:, :, 0].abs().max()) < 1e-5
    quarter = ROTATION.apply(x, 90.0 * one)
    turned_back = ROTATION.apply(quarter, -90.0 * one)
    torch.testing.assert_close(turned_back, x, atol=1e-4, rtol=0)
    assert any(torch.allclose(quarter, torch.rot90(x, k, (2, 3)), atol=1e-4) for k in (1, -1))


def test_semantic_attacks_stay_in_their_parameter_box_and_reproduce(images: Victim) -> None:
    spatial = SPATIAL.within((-40.0, -2.0, -2.0), (40.0, 2.0, 2.0))
    threat = SemanticThreat((spatial, BRIGHTNESS, CONTRAST), pixel_eps=0.05, free_order=True)
    x, y = images.x[:10], images.y[:10]
    result = build("composite")(images.module, x, y, threat, seed=0)
    again = build("composite")(images.module, x, y, threat, seed=0)
    assert torch.equal(result.adversarial, again.adversarial)
    assert int(result.success.sum()) >= 3
    for name, value in threat.parameters(result.parameters).items():
        t = TRANSFORMATIONS[name] if name != "spatial" else spatial
        assert bool((value >= torch.tensor(t.lower) - 1e-5).all() & (value <= torch.tensor(t.upper) + 1e-5).all())
    with torch.no_grad():
        assert torch.equal(result.success, images.module(result.adversarial).argmax(1) != y)


def test_grid_search_finds_rotations_that_gradients_may_miss(images: Victim) -> None:
    threat = SemanticThreat((ROTATION.within((-45.0,), (45.0,)),))
    x, y = images.x[:12], images.y[:12]
    grid = build("grid", points=31)(images.module, x, y, threat, seed=0)
    dense = torch.zeros(12, dtype=torch.bool)
    with torch.no_grad():
        for angle in np.linspace(-45, 45, 31):
            turned = ROTATION.apply(x, torch.full((12, 1), float(angle))).clamp(0, 1)
            dense |= images.module(turned).argmax(1) != y
    assert torch.equal(grid.success, dense)


def test_semantic_threats_refuse_what_makes_no_sense(images: Victim) -> None:
    with pytest.raises(ShapeError, match="3 channels"):
        SemanticThreat((HUE,)).space(images.x[:1])
    with pytest.raises(ShapeError, match="images"):
        SemanticThreat((BRIGHTNESS,)).space(torch.zeros(1, 64))
    with pytest.raises(SpecError):
        SemanticThreat(())
    with pytest.raises(SpecError):
        ROTATION.within((1.0,), (2.0,))


@pytest.mark.parametrize("p", [1.0, 2.0, INF])
def test_weight_attack_reaches_the_optimum_of_a_linear_model(p: float) -> None:
    """For one sample and two classes the best change of the weights is known: eps times the dual norm of x."""
    linear = make_linear(2, count=1, dtype=torch.float64)
    before = {k: v.clone() for k, v in linear.module.state_dict().items()}
    attack = WeightAttack(p=p, eps=0.05, relative=False, only=("weight",), loss="margin", steps=60)
    result = attack(linear.module, linear.x, linear.y, seed=0)
    assert all(torch.equal(v, before[k]) for k, v in linear.module.state_dict().items())
    change = result.parameters["weight"] - before["weight"]
    assert float(torch.linalg.vector_norm(change.flatten(), p)) <= 0.05 * (1 + 1e-12)
    # margin = (w_k - w_y) x: its gradient in W has rows x and -x
    q = {1.0: INF, 2.0: 2.0, INF: 1.0}[p]
    best = 0.05 * float(torch.linalg.vector_norm(torch.cat([linear.x[0], -linear.x[0]]), q))
    assert result.loss - result.clean_loss == pytest.approx(best, rel=0.02 if p != INF else 1e-9)
    assert result.loss - result.clean_loss <= best * (1 + 1e-9)


def test_weight_attack_breaks_a_network_and_names_its_parameters(digits: Victim) -> None:
    result = WeightAttack(eps=0.1)(digits.module, digits.x, digits.y, seed=0)
    assert result.accuracy < result.clean_accuracy == 1.0 and result.loss > result.clean_loss
    assert max(result.sizes.values()) <= 1 + 1e-6
    with pytest.raises(SpecError, match="no parameter nothing"):
        WeightAttack(only=("nothing",))(digits.module, digits.x, digits.y, seed=0)
