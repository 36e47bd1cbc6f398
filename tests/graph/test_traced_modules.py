"""Modules followed symbolically: every layer and function of the tables computes what torch does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from verifier.errors import VerifierError
from verifier.graph.evaluate import evaluate
from verifier.graph.torch.traced import _FUNCTIONS, _LAYERS, load_traced

LAYERS: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(6, 3, bias=False), (6,)),
    (nn.Conv1d(2, 4, 3, stride=2, padding=1, dilation=2, groups=2), (2, 9)),
    (nn.Conv2d(2, 4, 3, stride=2, padding="valid"), (2, 6, 5)),
    (nn.BatchNorm1d(4, eps=0.1), (4,)),
    (nn.BatchNorm2d(2, affine=False), (2, 3, 3)),
    (nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), (2, 6, 6)),
    (nn.AvgPool2d(2, padding=1, count_include_pad=False), (2, 6, 6)),
    (nn.AdaptiveAvgPool2d((2, 3)), (2, 5, 6)),
    (nn.ReLU(), (4,)),
    (nn.LeakyReLU(0.3), (4,)),
    (nn.Sigmoid(), (4,)),
    (nn.Tanh(), (4,)),
    (nn.Flatten(1, 2), (2, 3, 2)),
]


class Forward(nn.Module):
    """A function of weights and an input [B, 2, 6, 6]."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]):
        super().__init__()
        self.function, generator = function, torch.Generator().manual_seed(1)
        for name, shape in {"w2": (3, 2, 3, 3), "w1": (2, 2, 3), "w": (4, 72), "b": (2,), "m": (2,)}.items():
            self.register_buffer(name, torch.rand(shape, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


FORWARDS: list[Callable[[Any, Any], Any]] = [
    lambda s, x: (2 + x) + torch.add(x, x, alpha=0.5) + x.add(1.0),
    lambda s, x: (1 - x) - torch.sub(input=x, other=0.25) - x.sub(x, alpha=3),
    lambda s, x: x * 3 + torch.mul(x, -2) + x.mul(0.5),
    lambda s, x: x / 2 + torch.div(x, 4.0) + x.div(-8),
    lambda s, x: -x + torch.neg(x) + x.neg(),
    lambda s, x: functional.relu(x, inplace=False) + torch.relu(-x) + (x + 1).relu(),
    lambda s, x: functional.sigmoid(x) + torch.sigmoid(-x) + x.sigmoid(),
    lambda s, x: functional.tanh(x) + torch.tanh(-x) + x.tanh(),
    lambda s, x: torch.flatten(x, 1) + x.flatten(start_dim=1),
    lambda s, x: torch.mean(x, (2, 3)) + x.mean(dim=[2, 3]),
    lambda s, x: torch.mean(x, 1, keepdim=True).contiguous(),
    lambda s, x: torch.reshape(x, (-1, 72)) + x.view(x.size(0), -1) + x.reshape((x.shape[0], x.shape[1] * 36)),
    lambda s, x: torch.cat([x, -x], dim=1) + torch.cat((x, x), 1),
    lambda s, x: functional.leaky_relu(x, 0.2) + functional.dropout(x, 0.9, False),
    lambda s, x: functional.linear(x.flatten(1), s.w),
    lambda s, x: functional.conv2d(x, s.w2, None, stride=2, padding=1),
    lambda s, x: functional.conv1d(x.flatten(2), s.w1, s.b, 2),
    lambda s, x: functional.batch_norm(x, s.m, s.b, weight=s.b, bias=s.m),
    lambda s, x: functional.max_pool2d(x, 2) + functional.avg_pool2d(x, 2) + functional.adaptive_avg_pool2d(x, 3),
]
#: What must be refused: torch does something else than the function's name says.
ODD: list[Callable[[Any, Any], Any]] = [
    lambda s, x: torch.div(x, 2.0, rounding_mode="floor"),
    lambda s, x: torch.mean(x, 1, dtype=torch.float64),
    lambda s, x: functional.dropout(x, 0.5, True),
    lambda s, x: functional.batch_norm(x, s.m, s.b, training=True),
    lambda s, x: functional.avg_pool2d(x, 2, divisor_override=3),
    lambda s, x: x[:, :1],
    lambda s, x: x + torch.ones(2, 6, 6),
]


def agree(module: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)) - 0.3
    graph = load_traced(module.eval(), x.shape, x.dtype)
    with torch.no_grad():
        expected = module(x).flatten().numpy()
    np.testing.assert_allclose(evaluate(graph, x.flatten().numpy())[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_layers(layer: nn.Module, shape: tuple[int, ...]) -> None:
    agree(nn.Sequential(nn.Identity(), layer), shape)


@pytest.mark.parametrize("number", range(len(FORWARDS)))
def test_functions(number: int) -> None:
    agree(Forward(FORWARDS[number]), (2, 6, 6))


def test_everything_in_the_tables_has_a_case() -> None:
    nodes = [node for function in FORWARDS for node in fx.Tracer().trace(Forward(function)).nodes]
    assert set(_FUNCTIONS) <= {node.target for node in nodes}
    assert set(_LAYERS) == {type(layer) for layer, _ in LAYERS}


@pytest.mark.parametrize("number", range(len(ODD)))
def test_what_is_used_in_another_way_is_refused(number: int) -> None:
    with pytest.raises(VerifierError):
        load_traced(Forward(ODD[number]).eval(), (1, 2, 6, 6), torch.float32)
