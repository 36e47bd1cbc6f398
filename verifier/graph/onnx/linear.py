"""ONNX matrix products, convolutions, batch and layer normalisation."""

from __future__ import annotations

import numpy as np

from verifier.graph.lowering import linear as build
from verifier.graph.lowering import normalize
from verifier.graph.lowering.layout import reshape, transpose
from verifier.graph.lowering.values import Ref, Tracer, Value
from verifier.graph.onnx.call import Call, Lowering


def _gemm(t: Tracer, call: Call) -> Value:
    a, b = call.inputs[:2]
    if call.attr("transA", 0):
        a = transpose(t, a, (1, 0))
    if call.attr("transB", 0):
        b = transpose(t, b, (1, 0))
    return build.gemm(t, a, b, call.value(2), call.attr("alpha", 1.0), call.attr("beta", 1.0))


def spatial_settings(
    call: Call, spatial: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """(strides, pads, dilations) with auto_pad resolved."""
    d = len(spatial)
    strides = tuple(call.attr("strides") or (1,) * d)
    dilations = tuple(call.attr("dilations") or (1,) * d)
    auto = call.attr("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        begins, ends = [], []
        for size, k, s, dil in zip(spatial, kernel, strides, dilations, strict=True):
            total = max(0, (-(-size // s) - 1) * s + dil * (k - 1) + 1 - size)
            small = total // 2
            begins.append(small if auto == "SAME_UPPER" else total - small)
            ends.append(total - begins[-1])
        return strides, (*begins, *ends), dilations
    pads = tuple(call.attr("pads") or (0,) * (2 * d)) if auto == "NOTSET" else (0,) * (2 * d)
    return strides, pads, dilations


def _conv(t: Tracer, call: Call) -> Value:
    weight = t.constant(call.inputs[1], "the kernel")
    bias = call.value(2)
    x = t.ref(call.inputs[0])
    strides, pads, dilations = spatial_settings(call, x.shape[2:], weight.shape[2:])
    settings = build.ConvSettings(strides, pads, dilations, call.attr("group", 1))
    return build.conv(t, x, weight, None if bias is None else t.constant(bias, "the bias"), settings)


def _conv_transpose(t: Tracer, call: Call) -> Value:
    weight = t.constant(call.inputs[1], "the kernel")
    bias = call.value(2)
    x = t.ref(call.inputs[0])
    d = x.ndim - 2
    strides = tuple(call.attr("strides") or (1,) * d)
    dilations = tuple(call.attr("dilations") or (1,) * d)
    extra = tuple(call.attr("output_padding") or (0,) * d)
    pads = tuple(call.attr("pads") or (0,) * (2 * d))
    auto, wanted = call.attr("auto_pad", "NOTSET"), call.attr("output_shape")
    if auto == "VALID":
        pads = (0,) * (2 * d)
    if wanted is not None or auto.startswith("SAME"):
        target = wanted[-d:] if wanted is not None else [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        begins, ends = [], []
        for i in range(d):
            full = strides[i] * (x.shape[2 + i] - 1) + extra[i] + (weight.shape[2 + i] - 1) * dilations[i] + 1
            total = full - int(target[i])
            small = total // 2
            begins.append(total - small if auto != "SAME_UPPER" else small)
            ends.append(total - begins[-1])
        pads = (*begins, *ends)
        # A target larger than the full result is reached by extra rows at the end.
        extra = tuple(e + max(0, -p) for e, p in zip(extra, pads[d:], strict=True))
        pads = (*pads[:d], *(max(0, p) for p in pads[d:]))
        if min(pads) < 0:
            raise t.unsupported("output_shape asks for negative padding at the beginning")
    settings = build.ConvSettings(strides, pads, dilations, call.attr("group", 1), extra)
    return build.conv_transpose(t, x, weight, None if bias is None else t.constant(bias, "the bias"), settings)


def _batch_norm(t: Tracer, call: Call) -> Value:
    if call.attr("training_mode", 0):
        raise t.unsupported("training_mode is on; export in inference mode")
    gamma, beta, mean, variance = (t.constant(v, "a batch-norm parameter") for v in call.inputs[1:5])
    return normalize.batch_norm(
        t, t.ref(call.inputs[0]), (mean, variance), (gamma, beta), call.attr("epsilon", float(np.float32(1e-5)))
    )


def _layer_norm(t: Tracer, call: Call) -> Value:
    x = t.ref(call.inputs[0])
    axes = tuple(range(call.attr("axis", -1) % x.ndim, x.ndim))
    scale, bias = call.inputs[1], call.value(2)
    result = normalize.normalize(t, x, axes, call.attr("epsilon", float(np.float32(1e-5))))
    return normalize.scale_and_shift(
        t, result, t.constant(scale, "the scale"), None if bias is None else t.constant(bias, "the bias")
    )


def _per_channel(value: np.ndarray, ndim: int) -> np.ndarray:
    return value.reshape(-1, *(1,) * (ndim - 2))


def _instance_norm(t: Tracer, call: Call) -> Value:
    x = t.ref(call.inputs[0])
    scale, bias = (_per_channel(t.constant(v, "a parameter"), x.ndim) for v in call.inputs[1:3])
    result = normalize.normalize(t, x, tuple(range(2, x.ndim)), call.attr("epsilon", float(np.float32(1e-5))))
    return normalize.scale_and_shift(t, result, scale, bias)


def _group_norm(t: Tracer, call: Call) -> Value:
    x = t.ref(call.inputs[0])
    groups = call.attr("num_groups")
    grouped = reshape(t, x, (x.shape[0], groups, -1))
    result = normalize.normalize(t, grouped, (2,), call.attr("epsilon", float(np.float32(1e-5))))
    scale, bias = (t.constant(v, "a parameter") for v in call.inputs[1:3])
    if scale.size == groups and scale.size != x.shape[1]:
        scale, bias = (np.repeat(v, x.shape[1] // groups) for v in (scale, bias))
    restored = reshape(t, result, x.shape)
    assert isinstance(restored, Ref)
    return normalize.scale_and_shift(t, restored, _per_channel(scale, x.ndim), _per_channel(bias, x.ndim))


TABLE: dict[str, Lowering] = {
    "Gemm": _gemm,
    "MatMul": lambda t, call: build.matmul(t, call.inputs[0], call.inputs[1]),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
}
