"""What a legal graph is: the canonical operators, their attributes and their shapes.

About eighty ONNX operators lower to the forty below (graph/onnx). Everything after the
importer knows only these. x, y are inputs; "last" is the last axis.

Linear (exact in bound propagation)
    Input         ()                      -
    Constant      ()        value         an output or operand that depends on no input
    Dense         (x)       weight [in, out], bias [out]   x @ weight + bias on the last axis
    Conv          (x)       weight [out, in/groups, *k], bias [out], strides, pads, dilations, groups
                            1d/2d/3d, x is [n, in, *spatial]; pads = (begin..., end...)
    ConvTranspose (x)       weight [in, out/groups, *k], bias, strides, pads, dilations, groups, output_padding
    Scale         (x)       scale, shift  x * scale + shift; both broadcast to x's shape (x's shape is the result's)
    Add, Sub      (x, y)                  equal shapes
    Reshape       (x)                     row-major; target is the node's shape
    Transpose     (x)       perm
    Select        (x)       indices       result.flat[i] = x.flat[indices.flat[i]], 0 where the index is -1:
                                          Slice, Gather, Split, Expand, Tile, Pad, nearest Resize, ScatterND
    Concat        (x, ...)  axis
    ReduceSum     (x)       axes, keepdims
    BlockDense    (x)       weight [K, in, out]  x [..., K, in] -> [..., K, out], one matrix per slice
Rounded in the deployed program, but linear: any of the above may carry
    rounding_terms (int, roundings fused into this node beyond its own) and
    bias_magnitude (array like bias/shift: |terms| summed before cancellation).
Any node may carry deployed_error: a number that replaces the operator's own allowance for the
deployed program's rounding (0 for helper nodes that the program does not have).
Reciprocal may carry sums_to_one: in exact arithmetic the last axis does, as a softmax's weights.
Elementwise nonlinear (x)
    Relu, LeakyRelu (alpha), PRelu (slope, broadcasts), Elu (alpha), Selu (alpha, gamma), Celu (alpha),
    Clip (lower, upper; arrays or +-inf), HardSigmoid (alpha, beta), HardSwish,
    Sigmoid, Tanh, Atan, Erf, Softplus, Softsign, Gelu (approximate: "none"|"tanh"), Silu,
    Exp, Log, Sqrt, Reciprocal, Pow (exponent: float), Abs, Sign, Floor, Ceil, Round, Sin, Cos,
    Greater (threshold), GreaterEqual (threshold): 1.0 where true, else 0.0
Several variables
    Mul           (x, y)                  elementwise, equal shapes
    Softmax       (x)       axis
    ReduceMax     (x)       axes, keepdims   (MaxPool = Select into windows + ReduceMax)
A two-variable MatMul is Mul on two Selects + ReduceSum; Div is Mul by Reciprocal; Min and Max of
two variables are a relu of the difference; LayerNormalization is means, Pow, Sqrt, Reciprocal, Mul.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from verifier.errors import NetworkError, ShapeError
from verifier.graph.ir import Graph, Node


@dataclass(frozen=True)
class OperatorForm:
    """Number of inputs (None = one or more), required and optional attributes, and kind."""

    kind: str
    arity: int | None
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


_ROUNDING = ("rounding_terms", "bias_magnitude")
_CONV = ("weight", "bias", "strides", "pads", "dilations", "groups")

OPERATORS: dict[str, OperatorForm] = {
    "Input": OperatorForm("linear", 0),
    "Constant": OperatorForm("linear", 0, ("value",)),
    "Dense": OperatorForm("linear", 1, ("weight", "bias"), _ROUNDING),
    "Conv": OperatorForm("linear", 1, _CONV, _ROUNDING),
    "ConvTranspose": OperatorForm("linear", 1, (*_CONV, "output_padding"), _ROUNDING),
    "Scale": OperatorForm("linear", 1, ("scale", "shift"), _ROUNDING),
    "Add": OperatorForm("linear", 2),
    "Sub": OperatorForm("linear", 2),
    "Reshape": OperatorForm("linear", 1),
    "Transpose": OperatorForm("linear", 1, ("perm",)),
    "Select": OperatorForm("linear", 1, ("indices",)),
    "Concat": OperatorForm("linear", None, ("axis",)),
    "ReduceSum": OperatorForm("linear", 1, ("axes", "keepdims"), _ROUNDING),
    "BlockDense": OperatorForm("linear", 1, ("weight",), _ROUNDING),
    **{
        op: OperatorForm("unary", 1)
        for op in (
            *("Relu", "HardSwish", "Sigmoid", "Tanh", "Atan", "Erf", "Softplus", "Softsign", "Silu", "Exp", "Log"),
            *("Sqrt", "Abs", "Sign", "Floor", "Ceil", "Round", "Sin", "Cos"),
        )
    },
    "Reciprocal": OperatorForm("unary", 1, (), ("sums_to_one",)),
    "LeakyRelu": OperatorForm("unary", 1, ("alpha",)),
    "PRelu": OperatorForm("unary", 1, ("slope",)),
    "Elu": OperatorForm("unary", 1, ("alpha",)),
    "Celu": OperatorForm("unary", 1, ("alpha",)),
    "Selu": OperatorForm("unary", 1, ("alpha", "gamma")),
    "Clip": OperatorForm("unary", 1, ("lower", "upper")),
    "HardSigmoid": OperatorForm("unary", 1, ("alpha", "beta")),
    "Gelu": OperatorForm("unary", 1, ("approximate",)),
    "Pow": OperatorForm("unary", 1, ("exponent",)),
    "Greater": OperatorForm("unary", 1, ("threshold",)),
    "GreaterEqual": OperatorForm("unary", 1, ("threshold",)),
    "Mul": OperatorForm("multi", 2),
    "Softmax": OperatorForm("multi", 1, ("axis",)),
    "ReduceMax": OperatorForm("multi", 1, ("axes", "keepdims")),
}


def check(graph: Graph, *, constants: bool = True) -> None:
    """Raise unless every node is legal: known operator, attributes, finite constants, shapes.

    Args:
        constants: also look for NaN and Inf, which reads every weight.
    Raises:
        NetworkError: unknown operator or attribute, a name used before its definition, NaN or Inf constants.
        ShapeError: a node's shape is not what its operator gives for its inputs.
    """
    seen: set[str] = set()
    for name, node in graph.nodes.items():
        if name != node.name:
            raise NetworkError(f"node '{node.name}' is filed under '{name}'")
        form = OPERATORS.get(node.op)
        if form is None:
            raise NetworkError(f"node '{name}': operator {node.op} is not in the grammar")
        if (form.arity is not None and len(node.inputs) != form.arity) or (form.arity is None and not node.inputs):
            wanted = form.arity or "at least 1"
            raise NetworkError(f"node '{name}' ({node.op}): expected {wanted} inputs, got {len(node.inputs)}")
        missing = set(form.required) - set(node.attrs)
        extra = set(node.attrs) - set(form.required) - set(form.optional) - {"deployed_error"}
        if missing or extra:
            raise NetworkError(
                f"node '{name}' ({node.op}): missing attributes {sorted(missing)}, unknown {sorted(extra)}"
            )
        undefined = [i for i in node.inputs if i not in seen]
        if undefined:
            raise NetworkError(f"node '{name}' ({node.op}) reads {undefined} before their definition")
        if constants:
            _check_finite(node)
        rule = _SHAPES.get(node.op, _same_shape if form.kind == "unary" else None)
        expected = rule(node, [graph[i].shape for i in node.inputs]) if rule else node.shape
        if tuple(expected) != node.shape:
            raise ShapeError(f"node '{name}' ({node.op}): expected shape {tuple(expected)}, got {node.shape}")
        seen.add(name)
    for name in (*graph.inputs, *graph.outputs):
        if name not in seen:
            raise NetworkError(f"graph input or output '{name}' is not a node")


def _check_finite(node: Node) -> None:
    allow_inf = node.op == "Clip"
    for key, value in node.attrs.items():
        if isinstance(value, (float, np.ndarray)) and np.asarray(value).dtype.kind == "f":
            good = ~np.isnan(value) if allow_inf else np.isfinite(value)
            if not np.all(good):
                raise NetworkError(
                    f"node '{node.name}' ({node.op}): attribute {key} holds {int(np.sum(~good))} NaN or infinite "
                    "values; nothing can be proved about such a network, re-export it"
                )


def _same_shape(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    if any(s != shapes[0] for s in shapes):
        raise ShapeError(f"node '{node.name}' ({node.op}): inputs must have equal shapes, got {shapes}")
    return shapes[0]


def _dense(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    weight, bias = node.attrs["weight"], node.attrs["bias"]
    if weight.ndim != 2 or shapes[0][-1:] != weight.shape[:1] or bias.shape != weight.shape[1:]:
        raise ShapeError(
            f"node '{node.name}' (Dense): x {shapes[0]}, weight {weight.shape}, bias {bias.shape} do not fit"
        )
    return (*shapes[0][:-1], weight.shape[1])


def _block_dense(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    weight = node.attrs["weight"]
    if weight.ndim != 3 or shapes[0][-2:] != weight.shape[:2]:
        raise ShapeError(f"node '{node.name}' (BlockDense): x {shapes[0]}, weight {weight.shape} do not fit")
    return (*shapes[0][:-1], weight.shape[2])


def _conv(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    x, w, a = shapes[0], node.attrs["weight"], node.attrs
    d = len(x) - 2
    if w.ndim != d + 2 or x[1] != w.shape[1] * a["groups"]:
        raise ShapeError(f"node '{node.name}' (Conv): x {x}, weight {w.shape}, groups {a['groups']} do not fit")
    out = [
        (x[2 + i] + a["pads"][i] + a["pads"][d + i] - a["dilations"][i] * (w.shape[2 + i] - 1) - 1) // a["strides"][i]
        + 1
        for i in range(d)
    ]
    return (x[0], w.shape[0], *out)


def _conv_transpose(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    x, w, a = shapes[0], node.attrs["weight"], node.attrs
    d = len(x) - 2
    if w.ndim != d + 2 or x[1] != w.shape[0]:
        raise ShapeError(f"node '{node.name}' (ConvTranspose): x {x}, weight {w.shape} do not fit")
    out = [
        (x[2 + i] - 1) * a["strides"][i]
        - a["pads"][i]
        - a["pads"][d + i]
        + a["dilations"][i] * (w.shape[2 + i] - 1)
        + a["output_padding"][i]
        + 1
        for i in range(d)
    ]
    return (x[0], w.shape[1] * a["groups"], *out)


def _reduce(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    axes = {a % len(shapes[0]) for a in node.attrs["axes"]}
    if node.attrs["keepdims"]:
        return tuple(1 if i in axes else n for i, n in enumerate(shapes[0]))
    return tuple(n for i, n in enumerate(shapes[0]) if i not in axes)


def _reshape(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    if np.prod(shapes[0], dtype=np.int64) != node.size:
        raise ShapeError(f"node '{node.name}' (Reshape): {shapes[0]} cannot become {node.shape}")
    return node.shape


def _select(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    indices = node.attrs["indices"]
    size = int(np.prod(shapes[0], dtype=np.int64))
    if indices.size and (indices.min() < -1 or indices.max() >= size):
        raise ShapeError(f"node '{node.name}' (Select): indices must be in -1..{size - 1}")
    return tuple(indices.shape)


def _concat(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    axis = node.attrs["axis"] % len(shapes[0])
    rest = {s[:axis] + s[axis + 1 :] for s in shapes}
    if len(rest) != 1:
        raise ShapeError(f"node '{node.name}' (Concat): shapes {shapes} differ outside axis {axis}")
    return (*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :])


def _scale(node: Node, shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    return np.broadcast_shapes(shapes[0], np.shape(node.attrs["scale"]), np.shape(node.attrs["shift"]))


_SHAPES: dict[str, Callable[[Node, list[tuple[int, ...]]], tuple[int, ...]]] = {
    "Constant": lambda node, shapes: node.attrs["value"].shape,
    "Dense": _dense,
    "BlockDense": _block_dense,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Scale": _scale,
    "Add": _same_shape,
    "Sub": _same_shape,
    "Mul": _same_shape,
    "Softmax": _same_shape,
    "Reshape": _reshape,
    "Transpose": lambda node, shapes: tuple(shapes[0][p] for p in node.attrs["perm"]),
    "Select": _select,
    "Concat": _concat,
    "ReduceSum": _reduce,
    "ReduceMax": _reduce,
}
