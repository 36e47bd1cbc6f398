"""Sparse matrices of convolutions against torch's convolutions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from verifier.graph.ir import GraphBuilder
from verifier.kernels.sparse import convolution_matrix


@pytest.mark.parametrize("zeros", [0.0, 0.4])
@pytest.mark.parametrize(
    "images, channels, groups, kernel, strides, pads, dilations",
    [
        (1, 4, 1, (3, 3), (2, 1), (1, 1), (1, 1)),
        (2, 4, 2, (3, 2), (1, 2), (1, 0), (1, 1)),
        (3, 6, 6, (3, 3), (1, 1), (2, 2), (2, 1)),
    ],
)
def test_the_matrix_of_a_convolution(
    images: int,
    channels: int,
    groups: int,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int],
    dilations: tuple[int, int],
    zeros: float,
) -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(6, channels // groups, *kernel))
    weight[rng.random(weight.shape) < zeros] = 0
    weight[0] *= zeros == 0
    x = rng.normal(size=(images, channels, 7, 6))
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(x), torch.from_numpy(weight), None, strides, pads, dilations, groups
    ).numpy()
    builder = GraphBuilder()
    name = builder.add("Input", (), x.shape, "x")
    attrs = {"strides": strides, "pads": (*pads, *pads), "dilations": dilations, "groups": groups}
    name = builder.add("Conv", (name,), expected.shape, "y", weight=weight, bias=np.zeros(6), **attrs)
    graph = builder.finish(("x",), (name,), dtype="float64")
    found = convolution_matrix(graph["y"], x.shape)
    assert np.allclose(found.to_dense() @ x.reshape(-1), expected.reshape(-1))
    assert found.values.all()
    for begin, end in zip(found.row_start[:-1], found.row_start[1:], strict=True):
        assert (np.diff(found.columns[begin:end]) > 0).all()
