"""What a linear rule says it sums is at least what its matrix sums: every rounding bound counts on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from verifier.graph.ir import GraphBuilder
from verifier.ops.base import NodeTensors
from verifier.ops.linear import LINEAR

RNG = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return (1 + RNG.random(shape)).astype(np.float32)


def conv(kernel, strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), groups=1):
    attrs = {"strides": strides, "pads": pads, "dilations": dilations, "groups": groups, "bias": np.zeros(4, "f4")}
    span = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    size = [(9 + pads[i] + pads[2 + i] - span[i]) // strides[i] + 1 for i in range(2)]
    return "Conv", (1, 2, 9, 9), (1, 4, *size), attrs | {"weight": weights(4, 2 // groups, *kernel)}


CASES = {
    "dense": ("Dense", (3, 5), (3, 7), {"weight": weights(5, 7), "bias": np.zeros(7, "f4")}),
    "blocks": ("BlockDense", (3, 5), (3, 7), {"weight": weights(3, 5, 7)}),
    "conv": conv((3, 3), pads=(1, 1, 1, 1)),
    "conv in patches": conv((3, 3), strides=(3, 3)),
    "conv with gaps": conv((2, 2), strides=(3, 3)),
    "conv, uneven": conv((3, 2), strides=(2, 1), pads=(2, 0, 1, 1)),
    "conv, dilated": conv((3, 3), strides=(2, 2), dilations=(2, 1)),
    "conv, groups": conv((2, 2), groups=2),
    "transposed conv": (
        "ConvTranspose",
        (1, 4, 4, 4),
        (1, 6, 9, 9),
        {
            "weight": weights(4, 3, 3, 3),
            "bias": np.zeros(6, "f4"),
            "strides": (2, 2),
            "pads": (0, 0, 0, 0),
            "output_padding": (0, 0),
            "dilations": (1, 1),
            "groups": 2,
        },
    ),
    "select": ("Select", (4,), (6,), {"indices": np.array([0, 0, 0, 2, 3, -1])}),
    "moved": ("Select", (4,), (4,), {"indices": np.array([3, 1, 0, 2])}),
    "sum": ("ReduceSum", (2, 3, 4), (3,), {"axes": (0, 2), "keepdims": False}),
    "scale": ("Scale", (3,), (3,), {"scale": weights(3), "shift": weights(3)}),
}


@pytest.mark.parametrize("case", CASES)
def test_counts_cover_the_matrix(case):
    op, inner, outer, attrs = CASES[case]
    builder = GraphBuilder()
    x = builder.add("Input", (), inner, "x")
    graph = builder.finish((x,), (builder.add(op, (x,), outer, "y", **attrs),))
    rule, at = LINEAR[op], NodeTensors(graph, graph["y"], torch.float64, torch.device("cpu"))
    unit = torch.eye(graph["y"].size, dtype=torch.float64).reshape(-1, *outer)
    (matrix,) = rule.transpose(at, unit)
    used = matrix.flatten(1) != 0  # [out, in]
    into, back = int(used.sum(1).max()), int(used.sum(0).max())
    assert rule.summands(at) >= into or into == 1
    assert rule.carried(at) >= back or back == 1
    assert rule.terms(at) == max(rule.summands(at), rule.carried(at))
    assert rule.carried(at) <= 2 * back + 1, "far from what is summed"
