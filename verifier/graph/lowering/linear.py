"""Matrix products and convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from verifier.errors import ShapeError
from verifier.graph.lowering.arithmetic import add, mul
from verifier.graph.lowering.layout import broadcast_shape, expand, reshape, swap_last, transpose
from verifier.graph.lowering.values import Ref, Tracer, Value, is_constant


def dense(t: Tracer, x: Ref, weight: np.ndarray, bias: np.ndarray | None = None, rounding_terms: int = 0) -> Ref:
    """x @ weight + bias on the last axis; weight [in, out], bias [out].

    `rounding_terms` counts roundings beyond the `in` products and the bias (passes/rounding.py).
    """
    if x.ndim == 0 or x.shape[-1] != weight.shape[0]:
        raise ShapeError(f"node '{t.stem}' ({t.operator}): x {x.shape} does not fit weight {weight.shape}")
    attrs = _with_bias(weight, bias, weight.shape[1], rounding_terms)
    return t.emit("Dense", (x,), (*x.shape[:-1], weight.shape[1]), **attrs)


def matmul(t: Tracer, x: Value, y: Value) -> Value:
    """numpy.matmul of any two values."""
    if is_constant(x, y):
        return np.matmul(x, y)
    if x.ndim == 0 or y.ndim == 0 or x.shape[-1] != y.shape[max(-2, -y.ndim)]:
        raise ShapeError(f"node '{t.stem}' ({t.operator}): {tuple(x.shape)} @ {tuple(y.shape)} does not fit")
    if x.ndim == 1:
        result = matmul(t, reshape(t, x, (1, x.size)), y)
        return reshape(t, result, (*result.shape[:-2], result.shape[-1]) if y.ndim > 1 else ())
    if y.ndim == 1:
        result = matmul(t, x, reshape(t, y, (y.size, 1)))
        return reshape(t, result, result.shape[:-1])
    if isinstance(y, np.ndarray):
        return _matmul_constant(t, x, y)
    if isinstance(x, np.ndarray):
        return swap_last(t, _matmul_constant(t, swap_last(t, y), np.swapaxes(x, -1, -2)))
    return _matmul_variable(t, x, y)


def _matmul_constant(t: Tracer, x: Ref, weight: np.ndarray) -> Value:
    """x [..., m, in] @ weight [..., in, out], batch axes broadcast."""
    batch = np.broadcast_shapes(x.shape[:-2], weight.shape[:-2])
    if all(d == 1 for d in weight.shape[:-2]):
        flat = dense(t, x, weight.reshape(weight.shape[-2:]))
        return reshape(t, flat, (*batch, *flat.shape[-2:]))
    rows, width = x.shape[-2:]
    count = int(np.prod(batch, dtype=np.int64))
    blocks = np.broadcast_to(weight, (*batch, *weight.shape[-2:])).reshape(count, *weight.shape[-2:])
    x = reshape(t, expand(t, x, (*batch, rows, width)), (count, rows, width))
    x = transpose(t, x, (1, 0, 2))
    shape = (rows, count, weight.shape[-1])
    result = t.emit("BlockDense", (x,), shape, weight=np.ascontiguousarray(blocks))
    return reshape(t, transpose(t, result, (1, 0, 2)), (*batch, rows, weight.shape[-1]))


def _matmul_variable(t: Tracer, x: Ref, y: Ref) -> Value:
    """Every product spelt out: [..., m, n, k] elementwise, then summed over k."""
    m, k, n = x.shape[-2], x.shape[-1], y.shape[-1]
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    shape = (*batch, m, n, k)
    rows = expand(t, reshape(t, x, (*x.shape[:-1], 1, k)), shape)
    columns = swap_last(t, y)
    columns = expand(t, reshape(t, columns, (*columns.shape[:-2], 1, n, k)), shape)
    products = mul(t, rows, columns)
    return t.emit("ReduceSum", (products,), shape[:-1], axes=(len(shape) - 1,), keepdims=False)


def gemm(t: Tracer, a: Value, b: Value, c: Value | None, alpha: float = 1.0, beta: float = 1.0) -> Value:
    """alpha * a @ b + beta * c for matrices already transposed as wanted."""
    if isinstance(a, Ref) and isinstance(b, np.ndarray) and (c is None or isinstance(c, np.ndarray)):
        out = b.shape[1]
        if c is None or (c.size in (1, out) and (c.ndim < 2 or c.shape[0] == 1)):
            bias = np.zeros(out, b.dtype) if c is None else np.broadcast_to(c.reshape(-1), (out,))
            terms = 0
            if alpha != 1.0:
                b, terms = b.astype(np.float64) * alpha, 2
            if beta != 1.0:
                bias, terms = bias.astype(np.float64) * beta, terms + 2
            return dense(t, a, b, bias, terms)
    product = matmul(t, a, b)
    if alpha != 1.0:
        product = mul(t, product, np.asarray(alpha, dtype=str(product.dtype)))
    if c is None or beta == 0.0:
        return product
    if beta != 1.0:
        c = mul(t, c, np.asarray(beta, dtype=str(c.dtype)))
    return expand(t, add(t, product, c), broadcast_shape(t, product, c))


@dataclass(frozen=True)
class ConvSettings:
    """Geometry of a convolution over d spatial axes; pads = (begin..., end...)."""

    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int = 1
    output_padding: tuple[int, ...] = ()

    def attrs(self) -> dict[str, Any]:
        """The grammar's attributes for a Conv node."""
        return {
            "strides": self.strides, "pads": self.pads, "dilations": self.dilations, "groups": self.groups,
        }  # fmt: skip


def conv(
    t: Tracer,
    x: Ref,
    weight: np.ndarray,
    bias: np.ndarray | None,
    settings: ConvSettings,
    rounding_terms: int = 0,
) -> Ref:
    """Convolution; weight [out, in/groups, *k]."""
    d = x.ndim - 2
    if weight.ndim != d + 2 or x.shape[1] != weight.shape[1] * settings.groups:
        raise ShapeError(
            f"node '{t.stem}' ({t.operator}): x {x.shape}, weight {weight.shape}, groups {settings.groups} do not fit"
        )
    if min(settings.pads, default=0) < 0:
        raise t.unsupported("negative padding")
    spatial = [
        (x.shape[2 + i] + settings.pads[i] + settings.pads[d + i]
         - settings.dilations[i] * (weight.shape[2 + i] - 1) - 1) // settings.strides[i] + 1
        for i in range(d)
    ]  # fmt: skip
    if min(spatial, default=1) < 1:
        raise ShapeError(f"node '{t.stem}' ({t.operator}): the kernel {weight.shape[2:]} is larger than x {x.shape}")
    attrs = settings.attrs() | _with_bias(weight, bias, weight.shape[0], rounding_terms)
    return t.emit("Conv", (x,), (x.shape[0], weight.shape[0], *spatial), **attrs)


def conv_transpose(t: Tracer, x: Ref, weight: np.ndarray, bias: np.ndarray | None, settings: ConvSettings) -> Ref:
    """Transposed convolution; weight [in, out/groups, *k]."""
    d = x.ndim - 2
    if weight.ndim != d + 2 or x.shape[1] != weight.shape[0]:
        raise ShapeError(f"node '{t.stem}' ({t.operator}): x {x.shape}, weight {weight.shape} do not fit")
    out = weight.shape[1] * settings.groups
    spatial = [
        (x.shape[2 + i] - 1) * settings.strides[i] - settings.pads[i] - settings.pads[d + i]
        + settings.dilations[i] * (weight.shape[2 + i] - 1) + settings.output_padding[i] + 1
        for i in range(d)
    ]  # fmt: skip
    attrs = settings.attrs() | _with_bias(weight, bias, out, 0)
    return t.emit("ConvTranspose", (x,), (x.shape[0], out, *spatial), output_padding=settings.output_padding, **attrs)


def _with_bias(weight: np.ndarray, bias: np.ndarray | None, out: int, rounding_terms: int) -> dict[str, Any]:
    bias = np.zeros(out, dtype=weight.dtype) if bias is None else bias.reshape(-1)
    terms = rounding_terms + int(np.any(bias))
    attrs: dict[str, Any] = {"weight": np.ascontiguousarray(weight), "bias": bias}
    return attrs | ({"rounding_terms": terms, "bias_magnitude": np.abs(bias)} if terms else {})
