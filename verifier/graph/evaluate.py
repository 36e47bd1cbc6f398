"""The meaning of a graph: plain numpy, the reference every engine is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from verifier.errors import ShapeError
from verifier.graph.convolution import convolve, convolve_transposed
from verifier.graph.elementwise import ELEMENTWISE
from verifier.graph.ir import Graph, Node

Inputs = np.ndarray | Mapping[str, np.ndarray]


def split_inputs(graph: Graph, inputs: Inputs, dtype: np.dtype | str) -> dict[str, np.ndarray]:
    """Input node name -> array [B, *shape].

    Args:
        inputs: flat [B, N_in] (or [N_in] for one sample), or a mapping from the model's input
            names, or the nodes', to arrays [B, *shape].
    Raises:
        ShapeError: sizes do not fit, or an input is missing.
    """
    if isinstance(inputs, Mapping):
        found = {}
        for node_name, model_name in zip(graph.inputs, graph.input_names, strict=True):
            key = model_name if model_name in inputs else node_name
            if key not in inputs:
                raise ShapeError(f"input '{model_name}' is missing; got {sorted(inputs)}")
            found[node_name] = np.asarray(inputs[key], dtype=dtype).reshape(-1, *graph[node_name].shape)
        return found
    flat = np.asarray(inputs, dtype=dtype)
    flat = flat[None] if flat.ndim == 1 else flat
    if flat.ndim != 2 or flat.shape[1] != graph.input_size:
        raise ShapeError(f"inputs: expected [B, {graph.input_size}] (B, N_in), got {list(flat.shape)}")
    found, at = {}, 0
    for name in graph.inputs:
        node = graph[name]
        found[name] = flat[:, at : at + node.size].reshape(-1, *node.shape)
        at += node.size
    return found


def evaluate_all(graph: Graph, inputs: Inputs, dtype: np.dtype | str = "float64") -> dict[str, np.ndarray]:
    """Every node's value [B, *shape], computed in `dtype`."""
    values = split_inputs(graph, inputs, dtype)
    batch = next(iter(values.values())).shape[0]
    with np.errstate(all="ignore"):
        for name, node in graph.nodes.items():
            if node.op == "Constant":
                values[name] = np.broadcast_to(node.attrs["value"].astype(dtype), (batch, *node.shape))
            elif node.op != "Input":
                values[name] = _value(node, [values[i] for i in node.inputs])
    return values


def evaluate(graph: Graph, inputs: Inputs, dtype: np.dtype | str = "float64") -> np.ndarray:
    """The network's outputs, flattened row-major and concatenated: [B, N_out] in `dtype`.

    Not a sound enclosure: an ordinary floating-point evaluation, NaN where the network gives NaN.
    """
    values = evaluate_all(graph, inputs, dtype)
    return np.concatenate([values[o].reshape(values[o].shape[0], -1) for o in graph.outputs], axis=1)


def _value(node: Node, xs: list[np.ndarray]) -> np.ndarray:
    rule = _VALUES.get(node.op)
    if rule is not None:
        return rule(node, *xs)
    x = xs[0]
    attrs = {k: v.astype(x.dtype) if isinstance(v, np.ndarray) else v for k, v in node.attrs.items()}
    return ELEMENTWISE[node.op](x, attrs).astype(x.dtype, copy=False)


def _like(x: np.ndarray, array: np.ndarray) -> np.ndarray:
    return np.asarray(array).astype(x.dtype, copy=False)


def _dense(node: Node, x: np.ndarray) -> np.ndarray:
    return x @ _like(x, node.attrs["weight"]) + _like(x, node.attrs["bias"])


def _block_dense(node: Node, x: np.ndarray) -> np.ndarray:
    return np.einsum("...ki,kio->...ko", x, _like(x, node.attrs["weight"]), optimize=True)


def _conv(node: Node, x: np.ndarray) -> np.ndarray:
    a = node.attrs
    merged = x.reshape(-1, *node_spatial(x))
    result = convolve(merged, _like(x, a["weight"]), a["strides"], a["pads"], a["dilations"], a["groups"])
    result = result + _like(x, a["bias"]).reshape(-1, *(1,) * (result.ndim - 2))
    return result.reshape(x.shape[0], *node.shape)


def _conv_transpose(node: Node, x: np.ndarray) -> np.ndarray:
    merged = x.reshape(-1, *node_spatial(x))
    result = convolve_transposed(merged, _like(x, node.attrs["weight"]), node.attrs, node.shape[2:])
    result = result + _like(x, node.attrs["bias"]).reshape(-1, *(1,) * (result.ndim - 2))
    return result.reshape(x.shape[0], *node.shape)


def node_spatial(x: np.ndarray) -> tuple[int, ...]:
    """Channels and spatial axes of [B, n, C, *spatial]."""
    return x.shape[2:]


def _select(node: Node, x: np.ndarray) -> np.ndarray:
    indices = node.attrs["indices"]
    flat = x.reshape(x.shape[0], -1)
    if not flat.shape[1]:
        return np.zeros((x.shape[0], *node.shape), dtype=x.dtype)
    picked = flat[:, np.maximum(indices, 0).reshape(-1)]
    if indices.size and indices.min() < 0:
        picked = np.where(indices.reshape(-1) < 0, 0, picked).astype(x.dtype)
    return picked.reshape(x.shape[0], *node.shape)


def _axes(node: Node, x: np.ndarray) -> tuple[int, ...]:
    return tuple(1 + a % (x.ndim - 1) for a in node.attrs["axes"])


def _softmax(node: Node, x: np.ndarray) -> np.ndarray:
    axis = 1 + node.attrs["axis"] % (x.ndim - 1)
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


_VALUES: dict[str, Callable[..., np.ndarray]] = {
    "Dense": _dense,
    "BlockDense": _block_dense,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Scale": lambda node, x: x * _like(x, node.attrs["scale"]) + _like(x, node.attrs["shift"]),
    "Add": lambda node, x, y: x + y,
    "Sub": lambda node, x, y: x - y,
    "Mul": lambda node, x, y: x * y,
    "Reshape": lambda node, x: x.reshape(x.shape[0], *node.shape),
    "Transpose": lambda node, x: x.transpose(0, *(1 + p for p in node.attrs["perm"])),
    "Select": _select,
    "Concat": lambda node, *xs: np.concatenate(xs, axis=1 + node.attrs["axis"] % (xs[0].ndim - 1)),
    "ReduceSum": lambda node, x: x.sum(axis=_axes(node, x), keepdims=node.attrs["keepdims"]),
    "ReduceMax": lambda node, x: x.max(axis=_axes(node, x), keepdims=node.attrs["keepdims"]),
    "Softmax": _softmax,
}
