"""Between torch modules and the verifier's graphs: so that a trained network can be proved about, and
an ONNX network repaired or read layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from verifier.data import Dataset
from verifier.errors import NetworkError, ShapeError
from verifier.graph.ir import Graph, GraphBuilder, Node
from verifier.training.architecture import LargestOverTokens, Normalise, TokensLast, load_model

_PLAIN = {nn.ReLU: "Relu", nn.Sigmoid: "Sigmoid", nn.Tanh: "Tanh"}


def layers_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of a feed-forward network in order, nested Sequentials unfolded.

    Raises:
        NetworkError: the model is not a sequence of layers.
    """
    if not isinstance(model, nn.Sequential):
        raise NetworkError(f"expected a sequence of layers (nn.Sequential), got {type(model).__name__}")
    for name, layer in model.named_children():
        if isinstance(layer, nn.Sequential):
            yield from ((f"{name}.{inner}", part) for inner, part in layers_of(layer))
        elif not isinstance(layer, (nn.Identity, nn.Dropout)):
            yield name, layer


def graph_of(model: nn.Module, shape: tuple[int, ...]) -> Graph:
    """The graph of a sequential torch module on one input of this shape, for `verifier.api.verify`.

    Args:
        shape: of one input, without the batch axis.
    Raises:
        NetworkError: a layer with no counterpart; names it.
    """
    builder = GraphBuilder()
    last = builder.add("Input", (), (1, *shape), "input")
    for name, layer in layers_of(model):
        last = _append(builder, last, layer, f"layer{name}")
    return builder.finish(("input",), (last,), dtype="float32", source=type(model).__name__)


def _append(builder: GraphBuilder, last: str, layer: nn.Module, name: str) -> str:
    before = builder.nodes[last].shape
    if type(layer) in _PLAIN:
        return builder.add(_PLAIN[type(layer)], (last,), before, name)
    if isinstance(layer, nn.LeakyReLU):
        return builder.add("LeakyRelu", (last,), before, name, alpha=layer.negative_slope)
    if isinstance(layer, nn.Flatten):
        return builder.add("Reshape", (last,), (1, int(np.prod(before))), name)
    if isinstance(layer, nn.Linear):
        weight, bias = _arrays(layer)
        return builder.add("Dense", (last,), (*before[:-1], layer.out_features), name, weight=weight.T, bias=bias)
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)) and not isinstance(layer.padding, str):
        return _append_convolution(builder, last, layer, name)
    if isinstance(layer, Normalise):
        center, scale = (part.detach().cpu().numpy() for part in (layer.center, layer.scale))
        moved = builder.add("Scale", (last,), before, f"{name}/center", scale=np.ones_like(center), shift=-center)
        inverse = 1.0 / scale.astype(np.float64)
        # One more rounding than a division: the reciprocal is itself rounded.
        return builder.add(
            "Scale", (moved,), before, name, scale=inverse, shift=np.zeros_like(inverse), rounding_terms=2
        )
    if isinstance(layer, TokensLast):
        return builder.add("Transpose", (last,), (before[0], before[2], before[1]), name, perm=(0, 2, 1))
    if isinstance(layer, LargestOverTokens):
        return builder.add("ReduceMax", (last,), before[:-1], name, axes=(len(before) - 1,), keepdims=False)
    raise NetworkError(f"layer '{name}' ({type(layer).__name__}) has no counterpart in the graph; export it to ONNX")


def _append_convolution(builder: GraphBuilder, last: str, layer: nn.Conv1d | nn.Conv2d, name: str) -> str:
    before = builder.nodes[last].shape
    weight, bias = _arrays(layer)
    pads, strides = tuple(map(int, layer.padding)), tuple(map(int, layer.stride))
    dilations, kernel = tuple(map(int, layer.dilation)), weight.shape[2:]
    sizes = [
        (size + 2 * pad - dilation * (width - 1) - 1) // stride + 1
        for size, pad, dilation, width, stride in zip(before[2:], pads, dilations, kernel, strides, strict=True)
    ]
    return builder.add(
        "Conv", (last,), (1, layer.out_channels, *sizes), name, weight=weight, bias=bias,
        strides=strides, pads=pads * 2, dilations=dilations, groups=layer.groups,
    )  # fmt: skip


def _arrays(layer: nn.Linear | nn.Conv1d | nn.Conv2d) -> tuple[np.ndarray, np.ndarray]:
    weight = layer.weight.detach().cpu().numpy()
    bias = np.zeros(weight.shape[0], weight.dtype) if layer.bias is None else layer.bias.detach().cpu().numpy()
    return weight, bias


def module_of(graph: Graph) -> nn.Sequential | None:
    """A trainable torch module of a graph that is one chain of common layers; None for any other graph."""
    chain = [node for node in graph.nodes.values() if node.op != "Input"]
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        return None
    layers: list[nn.Module] = []
    before = graph[graph.inputs[0]]
    for node in chain:
        layer = _layer(node, before)
        if node.inputs != (before.name,) or layer is None:
            return None
        layers.append(layer)
        before = node
    return nn.Sequential(*layers).eval()


class _Reshape(nn.Module):
    """A reshape whose first axis is the batch."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape = shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, *self.shape)


def _layer(node: Node, before: Node) -> nn.Module | None:
    a = node.attrs
    if node.op == "Dense":
        layer: nn.Linear | nn.Conv2d = nn.Linear(*a["weight"].shape)
        return _filled(layer, a["weight"].T, a["bias"])
    if node.op == "Conv" and a["weight"].ndim == 4 and tuple(a["pads"][:2]) == tuple(a["pads"][2:]):
        out, inner, *kernel = a["weight"].shape
        layer = nn.Conv2d(
            inner * a["groups"], out, tuple(kernel), tuple(a["strides"]), tuple(a["pads"][:2]),
            tuple(a["dilations"]), a["groups"],
        )  # fmt: skip
        return _filled(layer, a["weight"], a["bias"])
    if node.op == "Reshape" and node.shape[:1] == before.shape[:1] == (1,):
        return nn.Flatten() if len(node.shape) == 2 else _Reshape(node.shape[1:])
    if node.op == "LeakyRelu":
        return nn.LeakyReLU(float(a["alpha"]))
    plain: dict[str, type[nn.Module]] = {op: cls for cls, op in _PLAIN.items()}
    return plain[node.op]() if node.op in plain else None


def _filled(layer: nn.Linear | nn.Conv2d, weight: np.ndarray, bias: np.ndarray) -> nn.Module:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(np.asarray(weight, dtype=np.float32)))
        if layer.bias is not None:
            layer.bias.copy_(torch.tensor(np.asarray(bias, dtype=np.float32)))
    return layer


class GraphEvaluation(nn.Module):
    """Any graph as a module on batches [n, *shape] of its one input: differentiable, nothing to train."""

    def __init__(self, graph: Graph):
        super().__init__()
        from verifier.bounds.network import Network
        from verifier.outcome import Soundness

        self.network = Network(graph, torch.float32, torch.device("cpu"), Soundness.REAL_ARITHMETIC)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network.evaluate(x.flatten(1))


def open_model(path: str | Path, data: Dataset) -> nn.Module:
    """A classifier file of this project, or an ONNX or .nnet network, checked against the data.

    A network that is one chain of common layers becomes trainable; any other can be evaluated and
    differentiated only.

    Raises:
        NetworkError: unreadable; ShapeError: it does not take these rows or has too few outputs.
    """
    path = Path(path)
    if path.suffix in (".onnx", ".nnet") or path.name.endswith((".onnx.gz", ".nnet.gz")):
        from verifier.graph.load import load_network

        graph = load_network(path)
        found = module_of(graph)
        model = found if found is not None else GraphEvaluation(graph)
        size = int(np.prod(data.shape))
        if graph.input_size != size:
            raise ShapeError(f"{path}: takes {graph.input_size} inputs, the rows of '{data.name}' have {size}")
        shape = graph[graph.inputs[0]].shape[1:]
        if shape != data.shape:
            model = nn.Sequential(_Reshape(shape), model)
    else:
        model = load_model(path)
    try:
        with torch.no_grad():
            out = model(torch.tensor(data.x[:1]))
    except (RuntimeError, ValueError, NetworkError) as error:
        raise ShapeError(f"{path}: does not take rows of shape {data.shape}: {str(error).splitlines()[0]}") from error
    if out.ndim != 2 or out.shape[1] < len(data.classes):
        raise ShapeError(f"{path}: expected one output a class ({len(data.classes)}), got shape {list(out.shape[1:])}")
    return model.eval()


def graph_for(path: str | Path, model: nn.Module, data: Dataset) -> Graph:
    """The graph to prove about: the file's own for ONNX and .nnet, else the module's."""
    if Path(path).name.removesuffix(".gz").endswith((".onnx", ".nnet")):
        from verifier.graph.load import load_network

        return load_network(path)
    return graph_of(model, data.shape)
