"""Digit networks, grey and in colour, and the transformations they are tested with."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from verifier.attack.semantic.threat import SemanticThreat
from verifier.certify.semantic.box import parse_threat
from verifier.data.packaged import digits
from verifier.graph.ir import Graph, Node
from verifier.graph.load import load_network

SPECS = Path(__file__).parent.parent.parent / "specs" / "onnx"
#: What colours the digits, and what the colour network makes grey again.
TINT, MIX = np.array([1.0, 0.8, 0.6]), np.array([0.4, 0.5, 0.3333])


def threat(*texts: str) -> SemanticThreat:
    """Transformations as the command line writes them."""
    return parse_threat(texts, (0.0, 1.0))


@cache
def colour_network(channels_last: bool = False) -> Graph:
    """specs/onnx/conv.onnx behind a layer that mixes three channels."""
    grey = load_network(SPECS / "conv.onnx")
    (entry,) = grey.inputs
    shape = (1, 8, 8, 3) if channels_last else (1, 3, 8, 8)
    nodes = {"rgb": Node("rgb", "Input", (), shape)}
    source = "rgb"
    if channels_last:
        nodes["planes"] = Node("planes", "Transpose", ("rgb",), (1, 3, 8, 8), {"perm": (0, 3, 1, 2)})
        source = "planes"
    weight = MIX.astype(np.float32)[None, :, None, None]
    attrs = {"weight": weight, "bias": np.zeros(1, np.float32), "strides": (1, 1), "pads": (0, 0, 0, 0)}
    nodes[entry] = Node(entry, "Conv", (source,), (1, 1, 8, 8), {**attrs, "dilations": (1, 1), "groups": 1})
    nodes.update({name: node for name, node in grey.nodes.items() if name != entry})
    return replace(grey, nodes=nodes, inputs=("rgb",), input_names=("rgb",))


def samples(count: int, colour: bool = False) -> list[tuple[np.ndarray, int]]:
    """Images [C, 8, 8] and classes from the part of the digits that the networks were not trained on."""
    data = digits()
    tint = TINT if colour else np.ones(1)
    return [((data.x[i] * tint[:, None, None]).astype(np.float32), int(data.y[i])) for i in range(1500, 1500 + count)]
