"""Plain stacks of layers, read layer by layer in milliseconds: the lowering of `load_module` without its tracing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from verifier.graph.ir import Graph
from verifier.graph.lowering.values import Tracer
from verifier.graph.passes import simplify
from verifier.graph.torch.call import Call
from verifier.graph.torch.importer import LOWERINGS, to_array

#: Layer -> the ATen operation it calls on its input, and the other arguments of that. Exact types: what is derived from
#: a layer may compute anything.
_CALLS: dict[type[nn.Module], tuple[str, Callable[[Any], dict[str, Any]]]] = {
    nn.Linear: ("aten::linear", lambda m: {}),
    nn.Conv1d: ("aten::conv1d", lambda m: _window(m) | {"groups": m.groups}),
    nn.Conv2d: ("aten::conv2d", lambda m: _window(m) | {"groups": m.groups}),
    nn.BatchNorm1d: ("aten::batch_norm", lambda m: {"training": m.running_mean is None, "eps": m.eps}),
    nn.BatchNorm2d: ("aten::batch_norm", lambda m: {"training": m.running_mean is None, "eps": m.eps}),
    nn.ReLU: ("aten::relu", lambda m: {}),
    nn.LeakyReLU: ("aten::leaky_relu", lambda m: {"negative_slope": m.negative_slope}),
    nn.Sigmoid: ("aten::sigmoid", lambda m: {}),
    nn.Tanh: ("aten::tanh", lambda m: {}),
    nn.Flatten: ("aten::flatten", lambda m: {"start_dim": m.start_dim, "end_dim": m.end_dim}),
}
_NOTHING = (nn.Identity, nn.Dropout)
_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks"))


def plain_layers(module: nn.Module) -> list[nn.Module] | None:
    """The layers of a stack that computes exactly what they do in evaluation mode, in order; None for another module.

    Nested `Sequential`s of the layers above, none in training mode, with a hook or with a `forward` of its own.
    """
    parts = list(_in_order(module))
    if not all(map(_is_plain, parts)) or _has_any_global_hook():
        return None
    return [part for part in parts if type(part) in _CALLS]


def _in_order(module: nn.Module) -> Iterator[nn.Module]:
    """The module and what it holds, as often as it holds it."""
    yield module
    for part in module.children() if type(module) is not nn.Sequential else module:
        yield from _in_order(part)


def _is_plain(part: nn.Module) -> bool:
    if part.training or "forward" in vars(part) or any(getattr(part, hooks) for hooks in _HOOKS):
        return False
    padded = getattr(part, "padding_mode", "zeros") == "zeros"
    return type(part) is nn.Sequential or type(part) in _NOTHING or (type(part) in _CALLS and padded)


def load_stack(layers: Sequence[nn.Module], shape: Sequence[int], dtype: torch.dtype) -> Graph:
    """The graph of `plain_layers` on one input.

    Args:
        shape: the input's, batch axis 1 included; dtype: its float32 or float64.
    Raises:
        VerifierError: the layers do not fit each other or the input, or hold NaN.
    """
    tracer = Tracer(stem="input")
    value = start = tracer.emit("Input", (), tuple(shape), str(dtype).removeprefix("torch."))
    for number, layer in enumerate(layers):
        name, arguments = _CALLS[type(layer)]
        tracer.stem, tracer.operator = f"layer_{number}", name
        held = {**layer._parameters, **layer._buffers}
        tensors = {k: to_array(v, f"{number}.{k}") for k, v in held.items() if v is not None}
        args = {"input": value, "self": value} | tensors | arguments(layer)
        value = tracer.ref(LOWERINGS[name](tracer, Call(name, "", args)))
    graph = tracer.builder.finish((start.name,), (value.name,), dtype=start.dtype, source="a stack of layers")
    return simplify(graph)


def _window(layer: Any) -> dict[str, Any]:
    return {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
