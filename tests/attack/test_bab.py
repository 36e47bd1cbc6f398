"""Branch and bound leads PGD to counterexamples whose gradients point elsewhere, and gives robust samples up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contract import INF, check
from torch import Tensor, nn

from verifier.attack.falsify import Falsifier
from verifier.attack.model import Model, Preprocessing
from verifier.attack.registry import build
from verifier.attack.threat import LpThreat
from verifier.bounds.native_engine import NativeEngine
from verifier.errors import NetworkError
from verifier.graph.torch.importer import load_module
from verifier.run import Run
from verifier.spec.groups import ClauseRows, Group
from verifier.spec.problem import Clause


def lure(features: int, height: float) -> nn.Sequential:
    """Two classes on [0, 1]^features: class 1 wins only near the all-ones corner, where the slope away from it ends.

    z_1 - z_0 = height * relu(sum x - (features - 1/2)) - sum x / features.
    """
    first, last = nn.Linear(features, 2), nn.Linear(2, 2)
    with torch.no_grad():
        first.weight.fill_(1.0)
        first.bias.copy_(torch.tensor([0.5 - features, 0.0]))
        last.weight.copy_(torch.tensor([[0.0, 1.0 / features], [height, 0.0]]))
        last.bias.zero_()
    return nn.Sequential(first, nn.ReLU(), last)


class Spike(nn.Module):
    """One output z on [0, 1]^2: z > 0, class 1, only within 1/2000 of x_0 = 0.3; the slope leads elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 1)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0, 0.0]]).expand(3, 2))
            self.first.bias.copy_(-torch.tensor([0.299, 0.3, 0.301]))
            self.last.weight.copy_(torch.tensor([[1000.0, -2000.0, 1000.0]]))
            self.last.bias.fill_(-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x))) + 0.1 * (x[:, :1] - 1.0)


class TwoClasses(nn.Module):
    """Scores (0, z) of a victim with one output z."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        z = self.inner(x)
        return torch.cat([torch.zeros_like(z), z], dim=1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("victim", "features"), [(lure(20, 5.0), 20), (Spike(), 2)], ids=["corner", "spike"])
def test_it_finds_what_pgd_with_the_same_steps_does_not(victim: nn.Module, features: int, seed: int) -> None:
    x, y = torch.full((1, features), 0.6), torch.zeros(1, dtype=torch.int64)
    threat = LpThreat(norm=INF, eps=0.5)
    assert not bool(build("pgd", steps=20, restarts=5)(victim, x, y, threat, seed=seed).success)
    found = build("bab", steps=20)(victim, x, y, threat, seed=seed)
    assert bool(found.success)
    check(victim if features > 2 else TwoClasses(victim), x, y, threat, found)


def test_a_proved_sample_is_given_up() -> None:
    victim = lure(20, 0.5)  # never reaches class 1
    x, y = torch.full((1, 20), 0.6), torch.zeros(1, dtype=torch.int64)
    result = build("bab", steps=20, rounds=10_000)(victim, x, y, LpThreat(norm=INF, eps=0.5), seed=0)
    assert not bool(result.success)
    assert int(result.queries) < 200, "every round on a closed tree costs queries"


def test_scales_preprocessing_and_targets_reach_the_bounds() -> None:
    inner = lure(20, 5.0)
    victim = Model.from_torch(inner, preprocess=Preprocessing(0.0, 255.0))
    x, y = torch.full((1, 20), 153.0), torch.zeros(1, dtype=torch.int64)
    threat = LpThreat(norm=INF, eps=1.0, valid=(0.0, 255.0), scale=torch.full((20,), 127.5))
    for targets in (None, torch.ones(1, dtype=torch.int64)):
        result = build("bab", steps=20)(victim, x, y, threat, targets=targets, seed=0)
        assert bool(result.success)
        assert float((result.adversarial - x).abs().max()) <= 127.5


def test_a_victim_without_a_network_is_refused() -> None:
    victim = Model(lambda x: torch.stack([1 + 0 * x.sum(1), 0 * x.sum(1)], dim=1))
    x, y = torch.full((1, 3), 0.5), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(NetworkError, match="bare function"):
        build("bab", steps=2)(victim, x, y, LpThreat(norm=INF, eps=0.1), seed=0)


def test_falsification_of_a_property_is_led_the_same_way() -> None:
    """Unsafe where z_1 >= z_0 on the network above; only the corner's minimiser is."""
    graph = load_module(lure(20, 5.0), (1, 20))
    clause = Clause(np.array([[1.0, -1.0]]), np.zeros(1), np.zeros(1, dtype=bool))
    lower, upper = np.full((1, 20), 0.1), np.ones((1, 20))
    group = Group(ClauseRows((clause,)), lower, upper, np.zeros((1, 1)), np.zeros(1, dtype=np.int64))
    engine = NativeEngine(graph, threads=1)
    search = Falsifier(engine, group, lambda _, point: point, np.random.default_rng(0))
    assert search.pgd(Run(), 32, 20, polish=False) is None
    found = search.guided(Run())
    assert isinstance(found, np.ndarray) and bool(np.all((found >= lower) & (found <= upper)))
    scores = engine.evaluate(found[None])[0]
    assert scores[1] >= scores[0] - 1e-5
