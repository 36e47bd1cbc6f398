"""Modules read by following their `forward` symbolically, in milliseconds: `load_module` for what needs no export."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.module import _has_any_global_hook

from verifier.errors import NetworkError, VerifierError
from verifier.graph.ir import Graph
from verifier.graph.lowering.values import Tracer
from verifier.graph.passes import simplify
from verifier.graph.torch.call import Call
from verifier.graph.torch.importer import LOWERINGS, has_ref, to_array

_AVERAGE = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
#: Layer -> the ATen operation it calls on its input, and the other arguments of that. Exact types: what is derived from
#: a layer may compute anything.
_LAYERS: dict[type[nn.Module], tuple[str, Callable[[Any], dict[str, Any]]]] = {
    nn.Linear: ("linear", lambda m: {}),
    nn.Conv1d: ("conv1d", lambda m: _window(m) | {"groups": m.groups}),
    nn.Conv2d: ("conv2d", lambda m: _window(m) | {"groups": m.groups}),
    nn.BatchNorm1d: ("batch_norm", lambda m: {"training": m.running_mean is None, "eps": m.eps}),
    nn.BatchNorm2d: ("batch_norm", lambda m: {"training": m.running_mean is None, "eps": m.eps}),
    nn.MaxPool2d: ("max_pool2d", lambda m: _window(m) | {"kernel_size": m.kernel_size, "ceil_mode": m.ceil_mode}),
    nn.AvgPool2d: ("avg_pool2d", lambda m: {name: getattr(m, name) for name in _AVERAGE}),
    nn.AdaptiveAvgPool2d: ("adaptive_avg_pool2d", lambda m: {"output_size": m.output_size}),
    nn.ReLU: ("relu", lambda m: {}),
    nn.LeakyReLU: ("leaky_relu", lambda m: {"negative_slope": m.negative_slope}),
    nn.Sigmoid: ("sigmoid", lambda m: {}),
    nn.Tanh: ("tanh", lambda m: {}),
    nn.Flatten: ("flatten", lambda m: {"start_dim": m.start_dim, "end_dim": m.end_dim}),
}
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)

_WINDOW = "input weight bias stride padding dilation groups"
_POOL = "self kernel_size stride padding"
#: Function, or method by name -> the ATen operation it calls, and the names of its arguments there.
_FUNCTIONS: dict[Any, tuple[str, str]] = {
    **dict.fromkeys((operator.add, torch.add, "add"), ("add", "self other alpha")),
    **dict.fromkeys((operator.sub, torch.sub, "sub"), ("sub", "self other alpha")),
    **dict.fromkeys((operator.mul, torch.mul, "mul"), ("mul", "self other")),
    **dict.fromkeys((operator.truediv, torch.div, "div"), ("div", "self other rounding_mode")),
    **dict.fromkeys((operator.neg, torch.neg, "neg"), ("neg", "self")),
    **dict.fromkeys((functional.relu, torch.relu, "relu"), ("relu", "self inplace")),
    **dict.fromkeys((torch.sigmoid, "sigmoid"), ("sigmoid", "self")),
    **dict.fromkeys((torch.tanh, "tanh"), ("tanh", "self")),
    **dict.fromkeys((torch.flatten, "flatten"), ("flatten", "self start_dim end_dim")),
    **dict.fromkeys((torch.mean, "mean"), ("mean", "self dim keepdim")),
    torch.reshape: ("reshape", "self shape"),
    torch.cat: ("cat", "tensors dim"),
    "contiguous": ("contiguous", "self"),
    functional.leaky_relu: ("leaky_relu", "self negative_slope inplace"),
    functional.linear: ("linear", "input weight bias"),
    functional.conv1d: ("conv1d", _WINDOW),
    functional.conv2d: ("conv2d", _WINDOW),
    functional.batch_norm: ("batch_norm", "input running_mean running_var weight bias training momentum eps"),
    functional.max_pool2d: ("max_pool2d", f"{_POOL} dilation ceil_mode return_indices"),
    functional.avg_pool2d: ("avg_pool2d", f"{_POOL} ceil_mode count_include_pad divisor_override"),
    functional.adaptive_avg_pool2d: ("adaptive_avg_pool2d", "self output_size"),
}
#: Functions of shapes, and of weights alone.
_ON_SIZES = (operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv)
#: What the lowerings have no other word for.
_DEFAULTS: dict[str, dict[str, Any]] = {"conv1d": {"groups": 1}, "conv2d": {"groups": 1}, "batch_norm": {"eps": 1e-5}}
_VALUES = frozenset((bool, int, float, str, type(None)))
_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks"))


def state_of(module: nn.Module) -> Any | None:
    """What a module's answers hang on, cheap to take and to compare; None where nothing may be read.

    Nothing may be read where a part is in training mode, has a hook or a `forward` of its own.
    """
    parts = list(module.modules())
    if _has_any_global_hook() or not all(map(_is_plain, parts)):
        return None
    return [(id(part), type(part), _fields(part)) for part in parts], [(t.data_ptr(), t._version) for t in _held(parts)]


def load_traced(module: nn.Module, shape: Sequence[int], dtype: torch.dtype) -> Graph:
    """The graph of a module, in evaluation mode and without hooks (`state_of`), on one input.

    What torch.fx does not see, such as a choice that hangs on the batch's size or a sum written into a tensor that is
    used again, is not in the graph: compare both on some inputs before use.

    Args:
        shape: the input's, batch axis 1 included; dtype: its float32 or float64.
    Raises:
        VerifierError: torch.fx cannot follow it, it uses a layer or function outside the tables above, changes itself,
            does not fit the input, or holds NaN.
    """
    try:
        return _Walk(module, shape, dtype).graph()
    except VerifierError:
        raise
    except Exception as error:  # a stranger's code ran on stand-ins for tensors
        raise NetworkError(
            f"torch.fx cannot follow {type(module).__name__}: {type(error).__name__}: {error}; "
            "load_module exports it instead"
        ) from error


class _Walk:
    """Lowers what torch.fx saw of one module, in order."""

    def __init__(self, module: nn.Module, shape: Sequence[int], dtype: torch.dtype):
        self.module, self.nodes = module, _followed(module).nodes
        self.tracer = Tracer(stem="input")
        self.start = self.tracer.emit("Input", (), tuple(shape), str(dtype).removeprefix("torch."))
        self.values: dict[fx.Node, Any] = {}

    def graph(self) -> Graph:
        first, *rest = self.nodes
        self.values[first] = self.start
        for node in rest:
            self.tracer.stem = node.name
            args, kwargs = fx.map_arg((node.args, node.kwargs), self.values.__getitem__)
            if node.op == "output":
                found = self.tracer.ref(args[0])
            else:
                self.values[node] = getattr(self, f"_{node.op}")(node.target, *args, **kwargs)
        name = type(self.module).__name__
        return simplify(
            self.tracer.builder.finish((self.start.name,), (found.name,), dtype=self.start.dtype, source=name)
        )

    def _get_attr(self, target: str) -> Any:
        owner, _, name = target.rpartition(".")
        value = getattr(self.module.get_submodule(owner), name)
        return to_array(value, target) if isinstance(value, torch.Tensor) else value

    def _call_module(self, target: str, value: Any) -> Any:
        layer: Any = self.module.get_submodule(target)
        if type(layer) in _NOTHING:
            return value
        if type(layer) not in _LAYERS or getattr(layer, "padding_mode", "zeros") != "zeros":
            raise self.tracer.unsupported(f"the layer {type(layer).__name__}")
        name, settings = _LAYERS[type(layer)]
        held = {**layer._parameters, **layer._buffers}
        tensors = {k: to_array(v, f"{target}.{k}") for k, v in held.items() if v is not None}
        return self._lower(name, {"input": value, "self": value} | tensors | settings(layer))

    def _call_method(self, target: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        if target == "size" and not kwargs:
            return value.shape[args[0]] if args else value.shape
        if target in ("view", "reshape") and not kwargs:
            sizes = args[0] if isinstance(args[0], (tuple, list)) else args
            return self._lower("reshape", {"self": value, "shape": list(sizes)})
        return self._call_function(target, value, *args, **kwargs)

    def _call_function(self, target: Any, *args: Any, **kwargs: Any) -> Any:
        if target is getattr and args[1:] == ("shape",):
            return args[0].shape
        if target is functional.dropout and not kwargs["training"]:
            return args[0]
        if target in _ON_SIZES and not has_ref([args]):
            return target(*args)
        if target not in _FUNCTIONS:
            raise self.tracer.unsupported(f"the function {getattr(target, '__name__', target)}")
        name, listed = _FUNCTIONS[target]
        names = listed.split()
        given = {names[0] if k == "input" else k: v for k, v in kwargs.items()}
        if not set(given) <= set(names) or len(args) > len(names):
            raise self.tracer.unsupported(f"arguments other than {', '.join(names)}")
        given |= dict(zip(names, args, strict=False))
        return self._lower(name, _DEFAULTS.get(name, {}) | given)

    def _lower(self, name: str, arguments: dict[str, Any]) -> Any:
        self.tracer.operator = f"aten::{name}"
        return LOWERINGS[self.tracer.operator](self.tracer, Call(self.tracer.operator, "", arguments))


def _followed(module: nn.Module) -> fx.Graph:
    """What `forward` does, seen on a twin that shares the weights: it may leave nothing behind."""
    twin = deepcopy(module, {id(tensor): tensor for tensor in _held(module.modules())})
    before = state_of(twin)
    graph = fx.Tracer().trace(twin)
    if before is None or state_of(twin) != before:
        raise NetworkError(f"{type(module).__name__}: its forward changes it; only what stays as it is can be read")
    if sum(node.op == "placeholder" for node in graph.nodes) != 1:
        raise NetworkError(f"{type(module).__name__}: expected a forward of one tensor")
    return graph


def _is_plain(part: nn.Module) -> bool:
    held = vars(part)
    return not (held["training"] or "forward" in held or any(map(held.__getitem__, _HOOKS)))


def _held(parts: Iterable[nn.Module]) -> list[torch.Tensor]:
    tensors = (tensor for part in parts for held in (part._parameters, part._buffers) for tensor in held.values())
    return [tensor for tensor in tensors if tensor is not None]


def _fields(part: nn.Module) -> list[Any]:
    """Names, and settings by value, containers by identity and length, everything else by identity."""
    held = vars(part)
    return [
        *held,
        *(
            v if type(v) in _VALUES else (id(v), len(v)) if isinstance(v, (dict, list, set)) else id(v)
            for v in held.values()
        ),
    ]


def _window(layer: Any) -> dict[str, Any]:
    return {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
