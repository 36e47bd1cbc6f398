"""A network file as the torch module that its author may have written."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from verifier.graph.ir import Graph, Node


def as_stack(graph: Graph) -> nn.Sequential | None:
    """Linear, Conv2d, ReLU and Flatten layers that compute a graph [R, *S] -> [R, K]; None where others are needed."""
    layers: list[nn.Module] = [nn.Flatten()] if len(graph[graph.inputs[0]].shape) == 2 else []
    latest: Node | None = None
    for node in graph.nodes.values():
        if node.op != "Input":
            layer = _layer(node, graph[node.inputs[0]]) if latest and node.inputs == (latest.name,) else None
            if layer is None:
                return None
            layers.append(layer)
        latest = node
    return nn.Sequential(*layers).eval()


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
