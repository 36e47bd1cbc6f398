"""Clean inputs on a plateau, where every derivative is zero: descents start again from noise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from verifier.attack.model import Model
from verifier.attack.registry import build
from verifier.attack.threat import LpThreat


class Plateau(nn.Module):
    """Scores (1, 2 relu(sum x - 2)): flat where the sum is at most 2, the second class beyond 2.5."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height = 2 * torch.relu(x.sum(1) - 2.0)
        return torch.stack([torch.ones_like(height), height], dim=1)


@pytest.mark.parametrize("attack, norm", [("cw", 2.0), ("ead_l1", 1.0)])
def test_a_flat_start_is_left(attack: str, norm: float) -> None:
    x = torch.full((4, 12), 0.1)
    label = torch.zeros(4, dtype=torch.int64)
    result = build(attack)(Model.from_torch(Plateau()), x, label, LpThreat(norm=norm), seed=0)
    assert bool(result.success.all())
    # the closest input of the second class adds 1.3 in all, evenly for the least l2 norm; noise adds about 2.4
    least = 1.3 if norm == 1.0 else 1.3 / 12**0.5
    assert bool((result.distortion[f"l{norm:g}"] < 1.5 * least).all())
