"""Transformations in front of a network: one graph whose inputs are the parameters.

Requires: a network with one input, an image, a SemanticThreat, and the piece of it to build.
Returns: a graph of the grammar's operators that `verify` takes like any other network.
Method: each transformation becomes nodes in real arithmetic (`deployed_error` 0), its result may be off
by `rounding.pixel_error`, and is clipped to the valid range; the network follows with its own rounding.
Property: bounds of the graph enclose what the deployed network answers to the image transformed exactly,
or by any program within that error, for every parameter of the box.
Source: Mohapatra et al. 2020 (Semantify-NN), arXiv:1912.09533.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from verifier.attack.semantic.threat import SemanticThreat
from verifier.attack.semantic.transformations import Transformation, check_images
from verifier.certify.placing import Placing
from verifier.certify.semantic import colour
from verifier.certify.semantic.box import Piece, input_ends, whole
from verifier.certify.semantic.geometry import Motion, resample
from verifier.certify.semantic.rounding import pixel_error, unit_roundoff
from verifier.errors import ShapeError, SpecError
from verifier.graph.grammar import check
from verifier.graph.ir import Graph, Node
from verifier.graph.lowering.arithmetic import add, clip
from verifier.graph.lowering.layout import reshape, select, transpose
from verifier.graph.lowering.values import Ref, Tracer, Value

_COLOUR: dict[str, Callable[[Tracer, Value, Ref], Value]] = {
    "brightness": colour.brightness,
    "contrast": colour.contrast,
    "saturation": colour.saturation,
    "hue": colour.hue,
}
_MOTION = {"degrees": "degrees", "pixels down": "down", "pixels right": "right"}


def transformation_graph(image: np.ndarray, threat: SemanticThreat, piece: Piece | None = None) -> Graph:
    """The transformed image, (1, C, H, W), as a function of the parameters; float32.

    Args:
        image: [C, H, W]. piece: ranges and order; None: the threat's, whole, as given.
    Raises:
        SpecError, ShapeError: see `transformed_network`.
    """
    tracer, inputs, result = _front(image, threat, piece or whole(threat), "float32", "transform")
    return _finished(tracer.builder.nodes, inputs, (result.name,), "float32", "transformations of one image")


def transformed_network(
    network: Graph, image: np.ndarray, threat: SemanticThreat, placing: Placing, piece: Piece | None = None
) -> Graph:
    """The network's outputs as a function of the parameters that `image` is transformed with.

    Args:
        image: [C, H, W], numbers of the network's dtype. placing: how it goes into the network's input.
        piece: ranges that the parameters keep to, and the order; None: the threat's, whole, as given.
    Raises:
        SpecError: a transformation that has no graph form.
        ShapeError: the image does not fit the network or a transformation.
    """
    if len(network.inputs) != 1 or network[network.inputs[0]].size != image.size:
        shapes = ", ".join(str(list(network[name].shape)) for name in network.inputs)
        raise ShapeError(
            f"transformations: expected a network with one input of {image.size} numbers, an image "
            f"{list(image.shape)}, got inputs {shapes} from {network.source or 'the graph'}"
        )
    stem = "transform"
    while any(name.startswith(stem) for name in network.nodes):
        stem += "_"
    tracer, inputs, result = _front(image, threat, piece or whole(threat), network.dtype, stem)
    entry = network[network.inputs[0]]
    placed = reshape(tracer, transpose(tracer, result, (0, 2, 3, 1)) if placing.channels_last else result, entry.shape)
    nodes = dict(tracer.builder.nodes)
    for node in network.nodes.values():
        renamed = tuple(placed.name if name == entry.name else name for name in node.inputs)
        if node.name != entry.name:
            nodes[node.name] = replace(node, inputs=renamed)
    outputs = tuple(placed.name if name == entry.name else name for name in network.outputs)
    source = f"{network.source or 'a network'} behind transformations"
    return _finished(nodes, inputs, outputs, network.dtype, source, exact=set(tracer.builder.nodes))


def _front(
    image: np.ndarray, threat: SemanticThreat, piece: Piece, dtype: str, stem: str
) -> tuple[Tracer, tuple[str, ...], Ref]:
    """Nodes from the parameters to the transformed image."""
    if image.ndim != 3:
        raise ShapeError(f"transformations: expected one image [C, H, W], got {list(image.shape)}")
    check_images(torch.as_tensor(image)[None], threat.transformations)
    tracer = Tracer(stem=stem, operator="transformation")
    lower, upper = input_ends(threat, piece, image.size)
    parameters = tracer.emit("Input", (), (1, len(lower)), dtype)
    result: Value = image[None].astype(np.float64)
    shape: tuple[int, int, int] = image.shape  # type: ignore[assignment]
    counts = [len(step.identity) for step in threat.transformations]
    starts = np.cumsum([0, *counts]).tolist()
    for number in piece.order:
        at = starts[number]
        if number == len(counts):
            tracer.stem = f"{stem}/pixels"
            change = select(tracer, parameters, np.arange(at, at + image.size).reshape(1, *shape))
            size = max(abs(v) for v in threat.valid) + threat.pixel_eps
            result = _settled(tracer, add(tracer, result, change), 4 * size * unit_roundoff(dtype), threat.valid)
            continue
        step = threat.transformations[number]
        tracer.stem = f"{stem}/{step.name}"
        moving = [
            (select(tracer, parameters, np.array([[i]])), (float(lower[i]), float(upper[i])))
            for i in range(at, at + counts[number])
        ]
        changed = _apply(tracer, step, result, moving)
        result = _settled(tracer, changed, pixel_error(step, shape, threat.valid, dtype), threat.valid)
    return tracer, (parameters.name,), result


def _apply(t: Tracer, step: Transformation, image: Value, moving: list[tuple[Ref, tuple[float, float]]]) -> Ref:
    if step.name in _COLOUR:
        return _COLOUR[step.name](t, image, moving[0][0])
    unknown = [name for name in step.parameters if name not in _MOTION]
    if unknown:
        raise SpecError(f"transformation {step.name}: no graph form is known for it; it can be attacked only")
    return resample(t, image, Motion(**{_MOTION[n]: m for n, m in zip(step.parameters, moving, strict=True)}))


def _settled(t: Tracer, image: Ref, error: float, valid: tuple[float, float]) -> Ref:
    """The image, off by up to `error` a pixel, then clipped."""
    near = t.emit("Scale", (image,), image.shape, scale=np.ones(()), shift=np.zeros(()), deployed_error=error)
    return clip(t, near, np.array(valid[0]), np.array(valid[1]))


def _finished(
    nodes: dict[str, Node],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    dtype: str,
    source: str,
    exact: set[str] | None = None,
) -> Graph:
    """The graph, the transformations' nodes (`exact`; None: all) marked as work no program rounds."""
    marked = {
        name: node if (exact is not None and name not in exact) or "deployed_error" in node.attrs
        else replace(node, attrs={**node.attrs, "deployed_error": 0.0})
        for name, node in nodes.items()
    }  # fmt: skip
    graph = Graph(marked, inputs, outputs, dtype=dtype, source=source).pruned()
    check(graph)
    return graph
