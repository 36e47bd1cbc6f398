"""The way back to the boundary: what it gains on boundaries with known distances, and what it asks for that."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import make_linear
from torch import Tensor, nn

from verifier.attack.boundary import walk_back
from verifier.attack.model import Model
from verifier.attack.registry import build
from verifier.attack.task import Task
from verifier.attack.threat import LpThreat


class Disc(nn.Module):
    """Class 1 inside the disc of radius `radius` whose edge is 1 away from the origin."""

    def __init__(self, radius: float):
        super().__init__()
        self.radius, self.centre = radius, torch.tensor([1 + radius, 0.0], dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        inside = self.radius**2 - (x - self.centre).square().sum(1)
        return torch.stack([torch.zeros_like(inside), inside], dim=1)

    def at(self, angle: float) -> Tensor:
        """A point just inside the edge, `angle` radians off the nearest one, [1, 2]."""
        side = torch.tensor([[-math.cos(angle), math.sin(angle)]], dtype=torch.float64)
        return self.centre + 0.999 * self.radius * side


def walked(angle: float, steps: int, polish: int) -> tuple[float, int]:
    """Distance reached from a point of a disc of radius 10, and queries."""
    disc, origin = Disc(10.0), torch.zeros(1, 2, dtype=torch.float64)
    space = LpThreat(norm=2.0, valid=None).space(origin)
    task = Task(Model.from_torch(disc), space, torch.tensor([0]), None, True, 0)
    task.rows().offer(disc.at(angle), torch.tensor([True]))
    with torch.no_grad():
        walk_back(task, steps, polish)
    assert int(disc(task.best).argmax()) == 1 and float(task.best_cost) == pytest.approx(float(task.best.norm()))
    return float(task.best_cost), int(task.queries)


def test_a_projection_that_overshoots_is_followed_part_of_the_way() -> None:
    """From 0.1 radians along the edge the whole way succeeds, from 0.17 half of it."""
    for angle, queries in ((0.1, 8), (0.17, 9)):
        along_the_ray, _ = walked(angle, steps=2, polish=0)
        reached, asked = walked(angle, steps=2, polish=1)
        assert 1 <= reached < 0.9 * along_the_ray and asked == queries


def test_what_cannot_gain_is_not_asked_about() -> None:
    """At the nearest point: both ends, two steps of the walk, and the derivatives that show there is no more."""
    reached, asked = walked(0.0, steps=2, polish=3)
    assert reached == pytest.approx(1.0, rel=1e-3) and asked == 5
    assert walked(0.1, steps=0, polish=0)[1] == 0


def test_deepfool_stops_where_no_slope_leads_out() -> None:
    linear = make_linear(2, dtype=torch.float64)
    flat = nn.Linear(linear.x.shape[1], 2).double()
    nn.init.zeros_(flat.weight)
    result = build("deepfool")(flat, linear.x, flat(linear.x).argmax(1), LpThreat(norm=2.0), seed=0)
    assert not bool(result.success.any()) and int(result.queries.max()) <= 3
