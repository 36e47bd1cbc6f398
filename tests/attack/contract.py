"""One independent check of everything the calling convention promises about a result."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from verifier.attack.base import AttackResult
from verifier.attack.threat import LpThreat

INF = float("inf")


def size64(delta: np.ndarray, p: float) -> np.ndarray:
    """lp size of each row in float64, without the code under test."""
    flat = np.abs(delta.reshape(len(delta), -1).astype(np.float64))
    if p == 0:
        return (flat != 0).sum(1).astype(np.float64)
    return flat.max(1) if p == INF else np.linalg.norm(flat, ord=p, axis=1)


def check(
    module: torch.nn.Module, x: Tensor, y: Tensor, threat: LpThreat, result: AttackResult, targets: Tensor | None = None
) -> None:
    """Assert the contract with zero tolerance: shape, range, budget (bounded part), success, counts."""
    adversarial = result.adversarial
    assert adversarial.shape == x.shape and adversarial.dtype == x.dtype
    assert bool(adversarial.isfinite().all())
    assert float(adversarial.min()) >= 0.0 and float(adversarial.max()) <= 1.0
    delta = adversarial.double().numpy() - x.double().numpy()
    eps = np.broadcast_to(np.asarray(threat.eps, dtype=np.float64), (len(x),))
    sizes = size64(delta, float(threat.norm))
    assert np.all(sizes <= eps), f"budget exceeded by {np.max(sizes - eps)}"
    with torch.no_grad():
        prediction = module(adversarial).argmax(1)
    goal = prediction != y if targets is None else prediction == targets
    assert torch.equal(result.success, goal), "success is not the re-prediction of the returned sample"
    assert torch.equal(result.prediction, prediction)
    for p, name in ((0.0, "l0"), (1.0, "l1"), (2.0, "l2"), (INF, "linf")):
        np.testing.assert_allclose(result.distortion[name].numpy(), size64(delta, p), rtol=1e-12, atol=0)
    assert bool((result.queries >= 1).all()) and bool((result.restarts >= 0).all())
    assert bool((result.seconds >= 0).all())


class Counting(torch.nn.Module):
    """Counts the rows that pass through a module."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module, self.rows = module, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.module(x)
