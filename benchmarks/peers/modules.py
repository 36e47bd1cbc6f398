"""A network file as the torch module that its author may have written."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from verifier.graph.ir import Graph, Node


class Shortcuts(nn.Module):
    """Layers by name, in order, and what each takes: one value, or two that are added."""

    def __init__(self, layers: dict[str, nn.Module], sources: dict[str, tuple[str, ...]]):
        super().__init__()
        self.layers, self.sources = nn.ModuleDict(layers), sources

    def forward(self, x: Tensor) -> Tensor:
        values = {"": x}
        for name, (first, *others) in self.sources.items():
            value = values[first]
            for other in others:
                value = value + values[other]
            values[name] = self.layers[name](value)
        return values[name]


def as_module(graph: Graph) -> nn.Module | None:
    """Linear, Conv2d, ReLU and Flatten layers and sums that compute a graph [R, *S] -> [R, K]: a Sequential where each
    takes what the last one gives; None where others are needed."""
    start = graph[graph.inputs[0]]
    layers: dict[str, nn.Module] = {"start": nn.Flatten() if len(start.shape) == 2 else nn.Identity()}
    sources: dict[str, tuple[str, ...]] = {"start": ("",)}
    names = {start.name: "start"}
    for node in graph.nodes.values():
        if node.op == "Input":
            continue
        layer = nn.Identity() if node.op == "Add" else _layer(node, graph[node.inputs[0]])
        if layer is None or (node.op != "Add" and len(node.inputs) != 1):
            return None
        name = names[node.name] = f"layer_{len(layers)}"
        layers[name], sources[name] = layer, tuple(names[source] for source in node.inputs)
    chain = ("", *layers)
    if all(taken == (before,) for taken, before in zip(sources.values(), chain, strict=False)):
        return nn.Sequential(*layers.values()).eval()
    return Shortcuts(layers, sources).eval()


def _layer(node: Node, source: Node) -> nn.Module | None:
    attrs = node.attrs
    if node.op == "Relu":
        return nn.ReLU()
    if node.op == "Reshape" and len(node.shape) == 2:
        return nn.Flatten()
    if node.op == "Dense" and len(source.shape) == 2:
        return _filled(nn.Linear(*attrs["weight"].shape), attrs["weight"].T, attrs.get("bias"))
    if node.op == "Conv" and len(node.shape) == 4 and attrs["pads"][:2] == attrs["pads"][2:] and attrs["groups"] == 1:
        out, into, *kernel = attrs["weight"].shape
        geometry = {"stride": attrs["strides"], "padding": attrs["pads"][:2], "dilation": attrs["dilations"]}
        return _filled(nn.Conv2d(into, out, kernel, **geometry), attrs["weight"], attrs.get("bias"))
    return None


def _filled(layer: Any, weight: Any, bias: Any) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.zero_() if bias is None else layer.bias.copy_(torch.tensor(bias))
    return layer
