"""Softmax weights sum to one: bounds that use it hold, and cost nothing where all weights count alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_shortcuts import DTYPES, TOKENS, enclosed

from verifier.bounds.backward import backward
from verifier.bounds.concretize import concretize
from verifier.bounds.partition import common_part
from verifier.graph.evaluate import evaluate_all


def test_the_common_part_leaves_least():
    rng = np.random.default_rng(0)
    coeffs = torch.as_tensor(rng.standard_normal((2, 7, 3, 5)))
    width = torch.as_tensor(rng.random((2, 3, 5)))
    width[0, 0] = 0.0

    def left(mu: torch.Tensor) -> torch.Tensor:
        return (width.unsqueeze(1) * (coeffs - mu).abs()).sum(-1)

    mu = common_part(coeffs, width)
    assert mu.shape == (2, 7, 3, 1)
    least = torch.stack([left(coeffs[..., k : k + 1]) for k in range(5)]).amin(0)
    torch.testing.assert_close(left(mu), least)


def test_coefficients_without_a_number_have_no_common_part():
    coeffs = torch.full((1, 1, 4), torch.inf)
    assert common_part(coeffs, torch.ones(1, 4)).item() == 0.0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("radius", (0.0, 0.05, 1.0, 20.0))
def test_no_point_escapes(dtype, radius):
    """Rows over the weights and over what they average, far from zero, too, in both arithmetics."""
    for seed in range(3):
        engine, box, planes, (low, high), points = enclosed(seed, dtype, radius)
        network = engine.network
        (name,) = network.partitions
        rng = np.random.default_rng(seed)
        for node, shift in ((name, 0.0), (name, 1000.0), ("out", 0.0)):
            shape = network.graph[node].shape
            rows = torch.as_tensor(rng.standard_normal((1, 40, *shape)) + shift).to(dtype)
            bound = concretize(backward(network, {node: rows}, box, planes), low, high)[0][0]
            for arithmetic in ("float64", "float32"):
                values = evaluate_all(network.graph, points, arithmetic)[node].reshape(len(points), -1)
                least = (torch.as_tensor(values).double() @ rows[0].flatten(1).double().T).amin(0)
                assert torch.all(bound <= least), (seed, node, shift, arithmetic)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_equal_coefficients_are_bounded_exactly(dtype):
    engine, box, planes, (low, high), _ = enclosed(1, dtype, 0.5)
    (name,) = engine.network.partitions
    signs = torch.tensor([3.0, -3.0], dtype=dtype).reshape(1, 2, 1, 1, 1)
    rows = signs.expand(1, 2, *engine.network.graph[name].shape).clone()
    bound = concretize(backward(engine.network, {name: rows}, box, planes), low, high)[0][0]
    exact = torch.tensor([3.0, -3.0], dtype=torch.float64) * TOKENS
    torch.testing.assert_close(bound, exact, rtol=0, atol=1e-3)
    assert torch.all(bound <= exact)
    engine.network.partitions = frozenset()
    without = concretize(backward(engine.network, {name: rows}, box, planes), low, high)[0][0]
    assert torch.all(without < exact - 0.05)
