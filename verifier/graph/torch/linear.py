"""ATen matrix products, convolutions, normalisation and attention."""

from __future__ import annotations

from typing import Any

import numpy as np

from verifier.graph.lowering import linear as build
from verifier.graph.lowering import normalize
from verifier.graph.lowering.arithmetic import add, mul
from verifier.graph.lowering.layout import reshape, swap_last, transpose
from verifier.graph.lowering.reduce import softmax
from verifier.graph.lowering.values import Ref, Tracer, Value
from verifier.graph.torch.call import Call, Lowering, spread


def _array(t: Tracer, call: Call, name: str, what: str) -> np.ndarray | None:
    value = call.get(name)
    return None if value is None else t.constant(value, what)


def _linear(t: Tracer, call: Call) -> Value:
    x, weight, bias = call["input"], call["weight"], call.get("bias")
    if isinstance(x, Ref) and isinstance(weight, np.ndarray) and not isinstance(bias, Ref) and x.ndim:
        return build.dense(t, x, weight.T, bias)
    product = build.matmul(t, x, swap_last(t, weight))
    return product if bias is None else add(t, product, bias)


def _matmul(t: Tracer, call: Call) -> Value:
    return build.matmul(t, call["self"], call.get("other", call.get("mat2")))


def _einsum(t: Tracer, call: Call) -> Value:
    """Two operands without repeated letters or dots: one matrix product between two reshapes."""
    equation, (x, y) = call["equation"].replace(" ", ""), call["tensors"]
    (first, second), result = equation.split("->")[0].split(","), equation.partition("->")[2]
    if "->" not in equation or "." in equation or any(len(set(s)) != len(s) for s in (first, second, result)):
        raise t.unsupported(f"the equation {equation}")
    if not set(first) ^ set(second) <= set(result):
        raise t.unsupported(f"the equation {equation}: a sum over one operand alone")
    sizes = dict(zip(first, x.shape, strict=True)) | dict(zip(second, y.shape, strict=True))
    batch = [c for c in result if c in first and c in second]
    left, right = ([c for c in result if c in mine and c not in batch] for mine in (first, second))
    summed = [c for c in first if c in second and c not in result]

    def matrix(value: Value, letters: str, rows: list[str], columns: list[str]) -> Value:
        moved = transpose(t, value, [letters.index(c) for c in (*batch, *rows, *columns)])
        counts = [int(np.prod([sizes[c] for c in group], dtype=np.int64)) for group in (rows, columns)]
        return reshape(t, moved, (*(sizes[c] for c in batch), *counts))

    product = build.matmul(t, matrix(x, first, left, summed), matrix(y, second, summed, right))
    order = [*batch, *left, *right]
    product = reshape(t, product, [sizes[c] for c in order])
    return transpose(t, product, [order.index(c) for c in result])


def _addmm(t: Tracer, call: Call) -> Value:
    first, second = call.get("mat1", call.get("batch1")), call.get("mat2", call.get("batch2"))
    alpha, beta = call.number("alpha", 1.0), call.number("beta", 1.0)
    if first.ndim == 2:
        return build.gemm(t, first, second, call["self"], alpha, beta)
    product = build.matmul(t, first, second)
    if alpha != 1.0:
        product = mul(t, product, np.asarray(alpha, dtype=str(product.dtype)))
    return product if beta == 0.0 else add(t, product, mul(t, call["self"], np.asarray(beta, dtype=str(product.dtype))))


def _conv(t: Tracer, call: Call) -> Value:
    x, weight = t.ref(call["input"]), t.constant(call["weight"], "the kernel")
    d = weight.ndim - 2
    unbatched = x.ndim == d + 1
    x = reshape(t, x, (1, *x.shape)) if unbatched else x
    strides, dilations = spread(call.get("stride", 1), d), spread(call.get("dilation", 1), d)
    padding = call.get("padding", 0)
    if padding == "same":
        total = [dilations[i] * (weight.shape[2 + i] - 1) for i in range(d)]
        pads = (*(p // 2 for p in total), *(p - p // 2 for p in total))
    else:
        pads = (0,) * (2 * d) if padding == "valid" else spread(padding, d) * 2
    bias = _array(t, call, "bias", "the bias")
    if call.name.startswith("aten::conv_transpose") or call.get("transposed", False):
        settings = build.ConvSettings(
            strides, pads, dilations, call["groups"], spread(call.get("output_padding", 0), d)
        )  # fmt: skip
        y = build.conv_transpose(t, x, weight, bias, settings)
    else:
        y = build.conv(t, x, weight, bias, build.ConvSettings(strides, pads, dilations, call["groups"]))
    return reshape(t, y, y.shape[1:]) if unbatched else y


def _batch_norm(t: Tracer, call: Call) -> Any:
    if call.get("training", False):
        raise t.unsupported("training mode; export the module in evaluation mode")
    x = t.ref(call["input"])
    mean, variance = (_array(t, call, n, "a statistic") for n in ("running_mean", "running_var"))
    if mean is None or variance is None:
        raise t.unsupported("batch statistics (track_running_stats is off)")
    gamma, beta = (_array(t, call, n, "a parameter") for n in ("weight", "bias"))
    gamma = np.ones_like(mean) if gamma is None else gamma
    beta = np.zeros_like(mean) if beta is None else beta
    result = normalize.batch_norm(t, x, (mean, variance), (gamma, beta), call["eps"])
    return result if call.name == "aten::batch_norm" else (result, None, None)


def _layer_norm(t: Tracer, call: Call) -> Any:
    x = t.ref(call["input"])
    axes = tuple(range(x.ndim - len(call["normalized_shape"]), x.ndim))
    result = normalize.normalize(t, x, axes, call["eps"])
    scale, bias = (_array(t, call, n, "a parameter") for n in ("weight", "bias"))
    result = normalize.scale_and_shift(t, result, scale, bias)
    return result if call.name == "aten::layer_norm" else (result, None, None)


def _group_norm(t: Tracer, call: Call) -> Any:
    x = t.ref(call["input"])
    groups = call.get("num_groups", call.get("group"))
    result = normalize.normalize(t, reshape(t, x, (x.shape[0], groups, -1)), (2,), call["eps"])
    return _channelwise(t, call, reshape(t, result, x.shape), call.name == "aten::group_norm")


def _instance_norm(t: Tracer, call: Call) -> Any:
    x = t.ref(call["input"])
    if call.get("running_mean") is not None and not call.get("use_input_stats", True):
        return _batch_norm(t, Call("aten::batch_norm", "", call.args))
    return _channelwise(t, call, normalize.normalize(t, x, tuple(range(2, x.ndim)), call["eps"]), True)


def _channelwise(t: Tracer, call: Call, x: Ref, single: bool) -> Any:
    """Scale and shift by channel; the `native` forms return statistics, too."""
    parameters = [_array(t, call, n, "a parameter") for n in ("weight", "bias")]
    shaped = [None if v is None else v.reshape(-1, *(1,) * (x.ndim - 2)) for v in parameters]
    result = normalize.scale_and_shift(t, x, *shaped)
    return result if single else (result, None, None)


def _attention(t: Tracer, call: Call) -> Value:
    """softmax(q k' * scale + mask) v."""
    q, k, v, mask = call["query"], call["key"], call["value"], call.get("attn_mask")
    if call.get("is_causal", False) or call.get("dropout_p", 0.0) or (mask is not None and str(mask.dtype) == "bool"):
        raise t.unsupported("a causal or bool mask, or dropout")
    scale = call.number("scale", q.shape[-1] ** -0.5)
    scores = build.matmul(t, q, swap_last(t, k))
    scores = mul(t, scores, np.asarray(scale, dtype=str(scores.dtype)))
    scores = scores if mask is None else add(t, scores, mask)
    return build.matmul(t, softmax(t, scores, -1), v)


TABLE: dict[str, Lowering] = {
    "aten::linear": _linear,
    **dict.fromkeys(("aten::matmul", "aten::mm", "aten::bmm", "aten::mv", "aten::dot"), _matmul),
    "aten::einsum": _einsum,
    **dict.fromkeys(("aten::addmm", "aten::baddbmm"), _addmm),
    **dict.fromkeys(
        (
            "aten::convolution",
            *(f"aten::conv{d}d" for d in (1, 2, 3)),
            *(f"aten::conv_transpose{d}d" for d in (1, 2, 3)),
        ),
        _conv,
    ),
    **dict.fromkeys(("aten::batch_norm", "aten::_native_batch_norm_legit_no_training"), _batch_norm),
    **dict.fromkeys(("aten::layer_norm", "aten::native_layer_norm"), _layer_norm),
    **dict.fromkeys(("aten::group_norm", "aten::native_group_norm"), _group_norm),
    "aten::instance_norm": _instance_norm,
    "aten::scaled_dot_product_attention": _attention,
}
