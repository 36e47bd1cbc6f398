"""Splits are scored by what relaxations cost at the minimiser, and an ascent that has stalled ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from network_cases import dense_net
from test_crossed_domains import domains_of

from verifier.bounds import domains, relaxation_costs
from verifier.bounds.domains import DomainEngine
from verifier.bounds.slopes import Ascent
from verifier.bounds.torch_engine import TorchEngine
from verifier.graph.evaluate import evaluate_all


def relu_domains(seed: int) -> DomainEngine:
    """One clause of one row on a box of a relu network."""
    engine = TorchEngine(dense_net("Relu", seed), dtype=torch.float64)
    rng = np.random.default_rng(seed)
    center = rng.standard_normal((1, 4))
    low, high = engine.boxes(center - 0.7, center + 0.7)
    row = torch.as_tensor(rng.standard_normal((1, 1, 3)))
    limit = torch.full((1, 1), 1e3, dtype=torch.float64)
    return DomainEngine(engine, engine.enclose(low, high), low, high, row, limit, limit < 0)


@pytest.mark.parametrize("seed", range(4))
def test_losses_add_up_to_what_the_bound_is_off_at_its_minimiser(seed, monkeypatch):
    monkeypatch.setattr(relaxation_costs, "WIDEST_SHARE", 0.0)
    whole = relu_domains(seed)
    bounds = whole.bound(whole.initial(np.array([0])), 8, lambda: False)
    values = evaluate_all(whole.network.graph, bounds.minimiser)
    (output,) = whole.network.graph.outputs
    there = float(values[output].reshape(-1) @ whole.clause_rows[0, 0].numpy()) - 1e3
    losses = whole.losses(bounds.batch)
    assert bool((losses >= 0).all())
    assert float(losses.sum()) == pytest.approx(there - bounds.row_margins[0, 0], abs=1e-3)  # rounding


def test_an_ascent_that_stalls_ends(monkeypatch):
    whole = relu_domains(0)
    passes = []
    evaluate = Ascent.evaluate

    def counted(self, *args, **kwargs):
        passes.append(1)
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(Ascent, "evaluate", counted)
    whole.bound(whole.initial(np.array([0])), 500, lambda: False)
    assert domains.STALL_STEPS < len(passes) < 100


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_children_hold_with_every_parameter_free(dtype):
    """Products share one parameter between their planes, and weights that sum to one are recentred."""
    engine, whole, rows, points = domains_of(2, dtype, 1)
    batch = whole.bound(whole.initial(np.array([0, 1])), 12, lambda: False).batch
    values = evaluate_all(engine.network.graph, points, "float32")
    margins = torch.as_tensor(values["y"].reshape(len(points), -1)).double() @ rows.double().flatten(0, 1).T - 1e6
    for _ in range(3):
        batch = whole.bound(whole.branch(batch), 6, lambda: False).batch
        for i in range(len(batch)):
            inside = torch.ones(len(points), dtype=torch.bool)
            for name, part in whole.slices.items():
                at = torch.as_tensor(values[name].reshape(len(points), -1))[:, whole.open[name]].to(dtype)
                split = batch.sign[i, part] != 0
                signed = batch.sign[i, part].to(dtype) * (at - batch.point[i, part])
                inside &= (signed >= 0)[:, split].all(1)
            if inside.any():
                assert float(batch.margin[i]) <= float(margins[inside, int(batch.clause[i])].min())
