"""The relaxation step by kernel and by torch's operations: the same rows, a rigorous offset, the same gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from network_cases import CASES

from verifier.bounds import relax_step
from verifier.bounds.relax_step import RelaxStep, fused_step, plain_step
from verifier.bounds.torch_engine import TorchEngine
from verifier.graph.evaluate import evaluate


def drawn(per_row: tuple[bool, ...], dtype: torch.dtype, shape: tuple[int, ...] = (3, 5, 4, 7)) -> list[torch.Tensor]:
    """Coefficients [B, S, *shape] and four planes [B, 1 or S, *shape]."""
    torch.manual_seed(0)
    coeffs = torch.randn(shape, dtype=dtype)
    coeffs[:, :, 0, 0] = 0
    sizes = [shape if own else (shape[0], 1, *shape[2:]) for own in per_row]
    return [coeffs, *(torch.randn(size, dtype=dtype) for size in sizes)]


PER_ROW = [(False,) * 4, (True,) * 4, (True, True, False, False)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("per_row", PER_ROW)
def test_both_ways_agree_and_the_kernel_never_claims_more(per_row, dtype):
    arrays = drawn(per_row, dtype)
    rows, offset = fused_step(*arrays)
    expected, _ = plain_step(*arrays)
    wide = [x.double() for x in arrays]
    _, exact = plain_step(*wide)
    assert torch.equal(rows, expected)
    assert bool((offset <= exact + 1e-13).all())
    loss = (wide[0].abs() * torch.maximum(wide[2].abs(), wide[4].abs())).flatten(2).sum(-1)
    assert bool((exact - offset <= 60 * torch.finfo(dtype).eps * loss + 1e-12).all())


def test_an_infinite_offset_counts_only_where_it_is_used():
    arrays = drawn((False,) * 4, torch.float32)
    for plane in (arrays[2], arrays[4]):
        plane[:, :, 0, 0] = -torch.inf
    _, offset = fused_step(*arrays)
    assert bool(torch.isfinite(offset).all())
    arrays[0][0, 2, 0, 0] = 1.0
    _, offset = fused_step(*arrays)
    assert not offset[0, 2] > -torch.inf and bool(torch.isfinite(offset[1:]).all())


def test_gradients_do_not_depend_on_the_way(monkeypatch):
    found = []
    for kernel in (False, True):
        monkeypatch.setattr(relax_step, "takes_kernel", lambda _, kernel=kernel: kernel)
        arrays = [x.requires_grad_(True) for x in drawn((False,) * 4, torch.float64)]
        rows, offset = RelaxStep.apply(*arrays)
        found.append(torch.autograd.grad(rows.square().sum() + offset.sum(), arrays))
    for plain, fused in zip(*found, strict=True):
        assert torch.allclose(plain, fused)


@pytest.mark.parametrize("case", CASES)
def test_bounds_of_whole_networks_hold_with_the_kernel(case, monkeypatch):
    graph, rng = CASES[case](), np.random.default_rng(4)
    center = rng.standard_normal(graph.input_size)
    lower, upper = ((center + side * 0.2).astype(np.float32).astype(np.float64) for side in (-1, 1))
    points = np.clip(lower + rng.random((300, graph.input_size)) * (upper - lower), lower, upper).astype(np.float32)
    rows = rng.standard_normal((4, graph.output_size))
    bounds = []
    for kernel in (False, True):
        monkeypatch.setattr(relax_step, "takes_kernel", lambda _, kernel=kernel: kernel)
        bounds.append(TorchEngine(graph, dtype=torch.float32).bound_boxes(lower[None], upper[None], rows).lower[0])
    for arithmetic in ("float64", "float32"):
        values = evaluate(graph, points.astype(np.float64), arithmetic).astype(np.float64) @ rows.T
        assert np.all(values >= bounds[1])
    np.testing.assert_allclose(bounds[1], bounds[0], rtol=1e-3, atol=1e-3)
