"""What an ascent passes instead of rigorous bounds: the same values and gradients, up to rounding."""

from __future__ import annotations

import pytest
import torch

from verifier.bounds.backward import LinearForm
from verifier.bounds.concretize import climb, concretize
from verifier.bounds.product_step import FreeProduct
from verifier.ops.product import product_planes

SHAPE = (2, 3, 4)


def case(seed: int):
    """Coefficients, parameters and a box of x and y, [B, 1 or S, N]; some of no width."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    b, _, n = SHAPE
    ends = []
    for _ in range(2):
        low = draw(b, 1, n)
        ends.append((low, low + draw(b, 1, n).abs().clamp(min=0.3) - 0.3))
    return draw(*SHAPE), torch.rand(*SHAPE, dtype=torch.float64, generator=generator), ends[0], ends[1]


def by_planes(coeffs, share, x, y):
    below, above = product_planes(*x, *y, share, share)
    positive, negative = coeffs.clamp(min=0), coeffs.clamp(max=0)
    parts = [
        positive * getattr(below, key) + negative * getattr(above, key) for key in ("slope_x", "slope_y", "offset")
    ]
    return parts[0], parts[1], parts[2].sum(-1)


@pytest.mark.parametrize("seed", range(3))
def test_a_product_gives_what_its_planes_give(seed):
    coeffs, share, x, y = case(seed)
    weights = torch.randn(2, *SHAPE, dtype=torch.float64)
    results = []
    for step in (by_planes, lambda a, t, *ends: FreeProduct(t, *ends).step(a)):
        a, t = coeffs.clone().requires_grad_(True), share.clone().requires_grad_(True)
        on_x, on_y, offset = step(a, t, x, y)
        total = (weights[0] * on_x).sum() + (weights[1] * on_y).sum() + 3.0 * offset.sum()
        results.append((on_x, on_y, offset, *torch.autograd.grad(total, (a, t))))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_unbounded_products_count_only_where_used():
    infinite = (torch.full((1, 1, 2), -torch.inf), torch.full((1, 1, 2), torch.inf))
    coeffs = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]])
    _, _, offset = FreeProduct(torch.full((1, 2, 2), 0.5), infinite, infinite).step(coeffs)
    assert offset[0, 0] == 0
    assert not torch.isfinite(offset[0, 1])


def test_the_box_minimum_is_that_of_a_claim_up_to_rounding():
    coeffs, _, (low, high), _ = case(4)
    low, high = low[:, 0], high[:, 0]
    zero = torch.zeros(SHAPE[:2], dtype=torch.float64)
    results = []
    for minimum in (concretize, climb):
        a = coeffs.clone().requires_grad_(True)
        value, minimiser = minimum(LinearForm(a, zero + 1.0, zero, {}), low, high)
        results.append((value, minimiser, *torch.autograd.grad(value.sum(), a)))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(results[1][2], results[1][1])
