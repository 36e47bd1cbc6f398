"""Every registered attack, on victims with two, three and ten classes, keeps the calling convention."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from conftest import INF, Victim, make_linear
from contract import Counting, check

from verifier.attack.base import PUSHES, Attack
from verifier.attack.gradient.pgd import BIM, CROSSING, PGD
from verifier.attack.losses import margin
from verifier.attack.model import Access, Model
from verifier.attack.registry import ATTACKS, build, suitable
from verifier.attack.semantic.threat import SemanticThreat
from verifier.attack.threat import LpThreat
from verifier.errors import SpecError

#: settings that keep a run short; the algorithms are the same
SHORT: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 8, "restarts": 2},
    "apgd": {"steps": 12},
    "apgd_t": {"steps": 8, "targets": 3},
    "fab": {"steps": 10},
    "fab_t": {"steps": 6, "targets": 2},
    "fmn": {"steps": 12},
    "standard": {"parts": (build("apgd", steps=8), build("fab_t", steps=4, targets=2), build("square", steps=20))},
    "plus": {
        "parts": (build("apgd", steps=6, loss="dlr", restarts=2), build("fab", steps=4), build("apgd_t", steps=4))
    },
    "square": {"steps": 60},
    "zoo": {"steps": 6, "search": 2},
    "autozoom": {"steps": 6, "search": 2},
    "boundary": {"steps": 40},
    "hopskipjump": {"steps": 3},
    "opt": {"steps": 2, "directions": 8},
    "sign_opt": {"steps": 3, "directions": 20},
    "one_pixel": {"steps": 5, "population": 20},
    "cw": {"steps": 15, "search": 3},
    "cw_linf": {"steps": 10, "rounds": 8},
    "cw_l0": {"rounds": 4},
    "ead_l1": {"steps": 15, "search": 3},
    "ead_en": {"steps": 15, "search": 3},
    "nes": {"steps": 8},
    "spsa": {"steps": 8},
    "zo_signsgd": {"steps": 8},
    "zo_adamm": {"steps": 8},
    "uap": {"passes": 2},
    "universal_pgd": {"steps": 12},
    "sparsefool": {"steps": 4, "inner": 6},
}
BUDGET = {0.0: 6.0, 1.0: 2.0, 2.0: 0.8, INF: 0.15}
#: these need a semantic threat or a surrogate and have tests of their own
ELSEWHERE = {"grid", "composite", "transfer"}


def cases() -> list[tuple[str, float]]:
    """Every registered attack in every norm it takes."""
    return [(n, p) for n, kind in ATTACKS.items() if n not in ELSEWHERE for p in (kind.norms or (0.0, 1.0, 2.0, INF))]


def attack_of(name: str) -> Attack:
    return build(name, **SHORT.get(name, {}))


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("name", "p"), cases())
def test_contract_on_digits(name: str, p: float, targeted: bool, digits: Victim) -> None:
    x, y = digits.x[:6], digits.y[:6]
    targets = (y + 3) % 10 if targeted else None
    threat = LpThreat(norm=p, eps=BUDGET[p])
    victim = Counting(digits.module)
    result = attack_of(name)(victim, x, y, threat, targets=targets, seed=1)
    check(digits.module, x, y, threat, result, targets)
    assert int(result.queries.sum()) == victim.rows, "queries counted per sample differ from the rows evaluated"


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("name", "p"), cases())
def test_contract_with_two_and_three_classes(name: str, p: float, classes: int) -> None:
    linear = make_linear(classes, count=5)
    threat = LpThreat(norm=p, eps=BUDGET[p])
    result = attack_of(name)(linear.module, linear.x, linear.y, threat, seed=0)
    check(linear.module, linear.x, linear.y, threat, result)
    targets = (linear.y + 1) % classes
    aimed = attack_of(name)(linear.module, linear.x, linear.y, threat, targets=targets, seed=0)
    check(linear.module, linear.x, linear.y, threat, aimed, targets)


@pytest.mark.parametrize(("name", "p"), cases())
def test_the_seed_decides_the_result(name: str, p: float) -> None:
    linear = make_linear(3, count=4)
    threat = LpThreat(norm=p, eps=BUDGET[p] / 4)
    one, two = (attack_of(name)(linear.module, linear.x, linear.y, threat, seed=7) for _ in range(2))
    assert torch.equal(one.adversarial, two.adversarial)
    assert torch.equal(one.queries, two.queries)


@pytest.mark.parametrize("name", [n for n in ATTACKS if n not in ELSEWHERE])
def test_the_victim_is_left_as_it_was(name: str, digits: Victim) -> None:
    module = torch.nn.Sequential(digits.module, torch.nn.BatchNorm1d(10), torch.nn.Dropout(0.5)).train()
    module[1].running_mean.fill_(0.1)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    module[1].weight.requires_grad_(False)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    attack = attack_of(name)
    p = (attack.norms or (INF,))[-1]
    attack(module, digits.x[:3], digits.y[:3], LpThreat(norm=p, eps=BUDGET[p]), seed=0)
    assert all(m.training for m in module if m is not digits.module)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert all(torch.equal(q.grad, torch.ones_like(q)) for q in module.parameters())
    assert [q.requires_grad for q in module[1].parameters()] == [False, True]
    module[1].weight.requires_grad_(True)
    digits.module.eval()
    for q in digits.module.parameters():
        q.grad = None


@pytest.mark.parametrize(
    "name", [n for n, kind in ATTACKS.items() if kind.needs == Access.LABELS and n not in ELSEWHERE]
)
def test_label_attacks_run_on_labels_alone(name: str, digits: Victim) -> None:
    def label(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return digits.module(torch.tensor(rows)).argmax(1).numpy()

    attack = attack_of(name)
    p = attack.norms[0]
    threat = LpThreat(norm=p, eps=3.0)
    result = attack(Model.from_callable(label, output="labels"), digits.x[:4], digits.y[:4], threat, seed=0)
    check(digits.module, digits.x[:4], digits.y[:4], threat, result)
    assert bool(result.success.any())


@pytest.mark.parametrize("name", [n for n, kind in ATTACKS.items() if kind.needs == Access.SCORES])
def test_score_attacks_run_on_a_plain_function_of_read_only_arrays(name: str, digits: Victim) -> None:
    def scores(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return digits.module(torch.tensor(rows)).numpy()

    x, y = digits.x[:3].numpy().copy(), digits.y[:3].numpy().copy()
    x.setflags(write=False)
    y.setflags(write=False)
    attack = attack_of(name)
    p = attack.norms[0]
    threat = LpThreat(norm=p, eps=BUDGET[p])
    result = attack(scores, x, y, threat, seed=0)
    check(digits.module, digits.x[:3], digits.y[:3], threat, result)


def test_gradient_attacks_refuse_a_black_box() -> None:
    with pytest.raises(SpecError, match="choose a black-box attack"):
        build("pgd")(lambda rows: rows, np.zeros((1, 3), np.float32), np.zeros(1, np.int64), LpThreat(eps=0.1), seed=0)


@pytest.mark.parametrize("name", ["deepfool", "fab", "fmn", "bim", "fgsm", "mifgsm"])
def test_samples_do_not_influence_each_other(name: str, digits: Victim) -> None:
    """Attacks without randomness give each sample the same answer alone and in company."""
    p = INF
    threat = LpThreat(norm=p, eps=0.1)
    attack = attack_of(name)
    together = attack(digits.module, digits.x[:5], digits.y[:5], threat, seed=0)
    for i in range(5):
        alone = attack(digits.module, digits.x[i : i + 1], digits.y[i : i + 1], threat, seed=0)
        torch.testing.assert_close(alone.adversarial[0], together.adversarial[i], atol=2e-3, rtol=0)
        # torch, which judges, rounds otherwise alone: a point on the boundary may be pushed once more, or not
        assert abs(int(alone.queries[0]) - int(together.queries[i])) <= len(PUSHES)
        assert int(alone.gradients[0]) == int(together.gradients[i])


def test_a_failed_start_fails_that_sample_only() -> None:
    """A victim that never leaves class 0 for one sample: the others are attacked all the same."""

    def label(rows: np.ndarray) -> np.ndarray:
        stuck = np.abs(rows[:, 0] - 0.25) < 1e-6
        return np.where(stuck, 0, (rows[:, 1] > 0.5).astype(np.int64))

    x = np.array([[0.25, 0.4, 0.5], [0.6, 0.4, 0.5]], np.float32)
    mask = np.array([[False, True, True], [True, True, True]])
    for name in ("boundary", "hopskipjump", "sign_opt", "opt"):
        victim = Model.from_callable(label, output="labels")
        result = attack_of(name)(victim, x, np.zeros(2, np.int64), LpThreat(norm=2.0, mask=mask), seed=0)
        assert result.success.tolist() == [False, True]
        assert torch.equal(result.adversarial[0], torch.tensor(x[0]))


def test_samples_already_lost_come_back_unchanged(digits: Victim) -> None:
    wrong = (digits.y[:4] + 1) % 10
    result = build("pgd")(digits.module, digits.x[:4], wrong, LpThreat(eps=0.1), seed=0)
    assert bool(result.success.all()) and torch.equal(result.adversarial, digits.x[:4])
    assert result.queries.tolist() == [1, 1, 1, 1]


def test_nan_is_nobodys_class(digits: Victim) -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores = digits.module(x)
            return torch.where(x.sum(1, keepdim=True) > 0, scores * torch.nan, scores)

    for name in ("pgd", "apgd", "fab", "cw", "square", "boundary", "hopskipjump"):
        attack = attack_of(name)
        p = attack.norms[-1]
        result = attack(Broken(), digits.x[:2], digits.y[:2], LpThreat(norm=p, eps=BUDGET[p]), seed=0)
        assert not bool(result.success.any()), name
        assert bool(result.adversarial.isfinite().all())


def test_masks_scales_and_per_sample_budgets_hold(digits: Victim) -> None:
    mask = torch.zeros(64, dtype=torch.bool)
    mask[20:44] = True
    scale = np.linspace(0.5, 2.0, 64).astype(np.float32)
    eps = np.array([0.0, 0.05, 0.1, 0.2])
    x, y = digits.x[:4], digits.y[:4]
    for name in ("pgd", "apgd", "fab", "square", "deepfool", "hopskipjump"):
        result = attack_of(name)(digits.module, x, y, LpThreat(eps=eps, mask=mask, scale=scale), seed=0)
        delta = (result.adversarial.double() - x.double()).abs().numpy()
        assert np.all(delta[:, ~mask.numpy()] == 0)
        assert np.all((delta / scale.astype(np.float64)).max(1) <= eps)


@pytest.mark.parametrize("p", [1.0, 2.0, INF])
def test_mixed_norms_hold_together(p: float, digits: Victim) -> None:
    threat = LpThreat(norm=p, eps=BUDGET[p], also=((0.0, 20), (2.0, 0.7), (INF, 0.12)))
    result = build("pgd", steps=10)(digits.module, digits.x[:6], digits.y[:6], threat, seed=0)
    size = result.distortion
    assert float(size["l0"].max()) <= 20 and float(size["l2"].max()) <= 0.7 and float(size["linf"].max()) <= 0.12


def test_stronger_attacks_do_not_lose_to_weaker_ones(digits: Victim) -> None:
    """An ordering on a real network: AutoAttack breaks at least what PGD and FGSM break."""
    threat = LpThreat(eps=0.06)
    short = {"standard": {"parts": (build("apgd"), build("apgd_t"), build("fab_t"), build("square", steps=200))}}
    rate = {
        name: float(
            build(name, **short.get(name, {}))(digits.module, digits.x, digits.y, threat, seed=0)
            .success.double()
            .mean()
        )
        for name in ("fgsm", "bim", "pgd", "apgd", "standard")
    }
    assert rate["fgsm"] <= rate["bim"] <= rate["standard"] and rate["pgd"] <= rate["standard"]
    assert 0 < rate["fgsm"] < 1
    assert rate["apgd"] <= rate["standard"]


def test_pgd_without_early_stop_reaches_a_higher_margin(digits: Victim) -> None:
    threat = LpThreat(eps=0.1)
    first = build("pgd", steps=20)(digits.module, digits.x, digits.y, threat, seed=0)
    worst = build("pgd", steps=20, stop_early=False, loss="margin")(digits.module, digits.x, digits.y, threat, seed=0)
    with torch.no_grad():
        a, b = (margin(digits.module(r.adversarial), digits.y, None) for r in (first, worst))
    assert float(b.mean()) > float(a.mean())


@pytest.mark.parametrize("steps", [1, 2, 7, 9, 40, 1000])
def test_falling_steps_cross_the_ball(steps: int) -> None:
    shares = PGD(steps=steps).shares()
    assert len(shares) == steps and sum(shares) >= CROSSING * (1 - 1e-12)
    assert all(before > after > 0 for before, after in itertools.pairwise(shares))
    assert PGD(steps=steps, step_rel=0.1).shares() == [0.1] * steps
    assert BIM(steps=steps).shares() == [CROSSING / steps] * steps


def test_pgd_with_falling_steps_leaves_fewer_than_with_small_ones(digits: Victim) -> None:
    left = {
        step_rel: sum(
            int(
                (
                    ~build("pgd", step_rel=step_rel)(
                        digits.module, digits.x, digits.y, LpThreat(norm=2.0, eps=0.9), seed=seed
                    ).success
                ).sum()
            )
            for seed in range(5)
        )
        for step_rel in (None, CROSSING / 40)
    }
    assert left[None] < left[CROSSING / 40]


def test_unknown_names_and_settings_are_refused() -> None:
    with pytest.raises(SpecError, match="no attack named 'pdg'"):
        build("pdg")
    with pytest.raises(SpecError, match="no setting stps"):
        build("pgd", stps=3)
    assert "pgd" in suitable(INF) and "cw" in suitable(2.0, minimise=True) and "cw" not in suitable(INF)


def test_inputs_outside_the_valid_range_are_refused_and_round_off_is_clipped(digits: Victim) -> None:
    with pytest.raises(SpecError, match="valid range"):
        build("pgd")(digits.module, digits.x[:2] * 255, digits.y[:2], LpThreat(eps=0.1), seed=0)
    edge = digits.x[:2].clone()
    edge[edge == 1.0] = 1.0 + 1e-6
    result = build("pgd", steps=3)(digits.module, edge, digits.y[:2], LpThreat(eps=0.1), seed=0)
    assert float(result.adversarial.max()) <= 1.0


def test_semantic_attacks_need_no_lp_norm() -> None:
    assert SemanticThreat.is_semantic and not LpThreat.is_semantic
