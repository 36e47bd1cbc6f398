"""A linear classifier's exact distances: |margin| / ‖w_y - w_k‖_q, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import INF, make_linear

from verifier.attack.base import Attack
from verifier.attack.registry import ATTACKS, build
from verifier.attack.threat import LpThreat

#: attack -> largest median and largest single ratio to the exact distance, over two classes
CLOSE = {
    "deepfool": (1.001, 1.001),
    "fab": (1.0001, 1.0001),
    "fab_t": (1.0001, 1.0001),
    "fmn": (1.0001, 1.0001),
    "cw": (1.001, 1.01),
    "cw_linf": (1.03, 1.08),
    "ead_l1": (1.02, 1.2),
    "ead_en": (1.2, 1.3),
    "sparsefool": (1.15, 1.15),
    "boundary": (1.001, 1.01),
    "hopskipjump": (1.01, 1.05),
    "opt": (1.4, 1.8),
    "sign_opt": (1.3, 1.7),
    "zoo": (1.01, 1.5),
    "autozoom": (1.1, 2.0),
}
QUICK = {
    "opt": {"steps": 20},
    "sign_opt": {"steps": 25},
    "hopskipjump": {"steps": 20},
}
NAMES = {1.0: "l1", 2.0: "l2", INF: "linf"}


def minimisers() -> list[tuple[str, float]]:
    return [
        (name, p) for name, kind in ATTACKS.items() if kind.minimise for p in (kind.norms or (1.0, 2.0, INF)) if p != 0
    ]


def test_every_minimum_norm_attack_has_a_bar() -> None:
    assert {name for name, _ in minimisers()} == set(CLOSE)


@pytest.mark.parametrize(("name", "p"), minimisers())
def test_minimum_norm_attacks_approach_the_exact_distance(name: str, p: float) -> None:
    linear = make_linear(2, count=6, dtype=torch.float64)
    attack = build(name, **QUICK.get(name, {}))
    result = attack(linear.module, linear.x, linear.y, LpThreat(norm=p), seed=0)
    assert bool(result.success.all())
    ratio = (result.distortion[NAMES[p]] / linear.distance(p)).numpy()
    assert ratio.min() >= 1 - 1e-12, "closer than the exact distance"
    median, worst = CLOSE[name]
    assert np.median(ratio) <= median and ratio.max() <= worst


@pytest.mark.parametrize("name", ["deepfool", "fab", "fab_t", "fmn", "boundary", "hopskipjump"])
def test_with_four_classes_most_samples_reach_the_nearest_boundary(name: str) -> None:
    linear = make_linear(4, count=8, dtype=torch.float64)
    result = build(name, **QUICK.get(name, {}))(linear.module, linear.x, linear.y, LpThreat(norm=2.0), seed=0)
    ratio = (result.distortion["l2"] / linear.distance(2.0)).numpy()
    assert ratio.min() >= 1 - 1e-12
    assert np.median(ratio) <= CLOSE[name][1]


@pytest.mark.parametrize("name", ["fgsm", "bim", "mifgsm", "pgd", "apgd", "apgd_t"])
@pytest.mark.parametrize("p", [1.0, 2.0, INF])
def test_bounded_gradient_attacks_succeed_exactly_beyond_the_distance(name: str, p: float) -> None:
    linear = make_linear(2, dtype=torch.float64)
    exact = linear.distance(p).numpy()
    attack = build(name)
    short = attack(linear.module, linear.x, linear.y, LpThreat(norm=p, eps=exact * (1 - 1e-9)), seed=0)
    enough = attack(linear.module, linear.x, linear.y, LpThreat(norm=p, eps=exact * 1.02), seed=0)
    assert not bool(short.success.any())
    assert bool(enough.success.all())


@pytest.mark.parametrize("name", ["apgd_t", "standard", "fab"])
@pytest.mark.parametrize("p", [2.0, INF])
def test_attacks_that_try_every_rival_are_exact_with_many_classes(name: str, p: float) -> None:
    linear = make_linear(5, dtype=torch.float64)
    exact = linear.distance(p).numpy()
    result = build(name)(linear.module, linear.x, linear.y, LpThreat(norm=p, eps=exact * 1.01), seed=0)
    assert bool(result.success.all())


@pytest.mark.parametrize(
    ("name", "steps"), [("square", 2000), ("nes", 100), ("spsa", 100), ("zo_signsgd", 100), ("zo_adamm", 100)]
)
def test_score_attacks_succeed_a_little_beyond_the_distance(name: str, steps: int) -> None:
    linear = make_linear(2, dtype=torch.float64)
    exact = linear.distance(INF).numpy()
    short = build(name, steps=20)(linear.module, linear.x, linear.y, LpThreat(eps=exact * (1 - 1e-9)), seed=0)
    enough = build(name, steps=steps)(linear.module, linear.x, linear.y, LpThreat(eps=exact * 1.1), seed=0)
    assert not bool(short.success.any())
    assert bool(enough.success.all())


def test_one_fgsm_step_is_the_optimal_linf_step() -> None:
    linear = make_linear(2, dtype=torch.float64)
    eps = 0.01
    result = build("fgsm")(linear.module, linear.x, linear.y, LpThreat(eps=eps), seed=0)
    with torch.no_grad():
        before, after = linear.module(linear.x), linear.module(result.adversarial)
        weight = linear.module.weight
        best = eps * (weight[0] - weight[1]).abs().sum()
    sign = 1.0 - 2.0 * linear.y.double()
    gain = (before[:, 0] - before[:, 1]) * sign - (after[:, 0] - after[:, 1]) * sign
    np.testing.assert_allclose(gain.numpy(), float(best), rtol=1e-12)


@pytest.mark.parametrize(("attack", "close"), [(build("fab"), 1.05), (build("deepfool"), 1.15), (build("fmn"), 1.15)])
def test_targeted_distance_is_that_of_the_target(attack: Attack, close: float) -> None:
    linear = make_linear(3, dtype=torch.float64)
    target = (linear.y + 1) % 3
    result = attack(linear.module, linear.x, linear.y, LpThreat(norm=2.0), targets=target, seed=0)
    assert torch.equal(result.prediction, target)
    w, b = linear.module.weight.detach(), linear.module.bias.detach()
    scores = linear.x @ w.T + b
    # the exact distance to "target beats every class": a small quadratic programme with two rows
    for i, (s, t) in enumerate(zip(scores, target, strict=True)):
        others = [k for k in range(3) if k != t]
        single = max(float((s[k] - s[t]) / (w[k] - w[t]).norm()) for k in others)
        both = _two_rows(torch.stack([w[t] - w[k] for k in others]), torch.stack([s[k] - s[t] for k in others]))
        exact = max(single, both)
        assert result.distortion["l2"][i] >= exact * (1 - 1e-9)
        assert result.distortion["l2"][i] <= exact * close


def _two_rows(rows: torch.Tensor, gaps: torch.Tensor) -> float:
    """Size of the smallest d with rows @ d >= gaps, two rows: the active-set cases, by hand."""
    best = np.inf
    for i in range(2):
        d = rows[i] * gaps[i].clamp_min(0) / rows[i].square().sum()
        if bool((rows @ d >= gaps - 1e-12).all()):
            best = min(best, float(d.norm()))
    d = rows.T @ torch.linalg.solve(rows @ rows.T, gaps)
    return min(best, float(d.norm()))
