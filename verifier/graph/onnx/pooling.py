"""ONNX pooling and resizing."""

from __future__ import annotations

import numpy as np

from verifier.graph.lowering import pooling as build
from verifier.graph.lowering import resize
from verifier.graph.lowering.reduce import reduce_max, reduce_mean
from verifier.graph.lowering.values import Ref, Tracer, Value
from verifier.graph.onnx.call import Builder, Call, Lowering
from verifier.graph.onnx.linear import spatial_settings


def _window(call: Call, x: Ref) -> build.Window:
    kernel = tuple(call.attr("kernel_shape"))
    strides, pads, dilations = spatial_settings(call, x.shape[2:], kernel)
    return build.Window(kernel, strides, pads, dilations, bool(call.attr("ceil_mode", 0)))


def _max_pool(t: Tracer, call: Call) -> Value:
    if len(call.outputs) > 1 and call.outputs[1]:
        raise t.unsupported("the second output (indices of the maxima)")
    x = t.ref(call.inputs[0])
    return build.max_pool(t, x, _window(call, x))


def _average_pool(t: Tracer, call: Call) -> Value:
    x = t.ref(call.inputs[0])
    return build.average_pool(t, x, _window(call, x), bool(call.attr("count_include_pad", 0)))


def _global(reduce: Builder) -> Lowering:
    def lower(t: Tracer, call: Call) -> Value:
        return reduce(t, call.inputs[0], tuple(range(2, call.inputs[0].ndim)), True)

    return lower


def _resize(t: Tracer, call: Call) -> Value:
    x = call.inputs[0]
    old = call.opset < 11 or call.op_type == "Upsample"
    scales_at, sizes_at = (1, 9) if old else (2, 3)
    given = call.value(scales_at)
    scales = call.attr("scales") if given is None else [float(v) for v in t.constant(given, "scales").reshape(-1)]
    sizes = call.ints(t, "sizes", sizes_at)
    axes = [a % x.ndim for a in call.attr("axes") or range(x.ndim)]
    if sizes and call.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise t.unsupported("keep_aspect_ratio_policy other than stretch")
    full_scales, full_sizes = [1.0] * x.ndim, list(x.shape)
    for position, axis in enumerate(axes):
        if sizes:
            full_sizes[axis] = sizes[position]
            full_scales[axis] = sizes[position] / x.shape[axis]
        elif scales:
            full_scales[axis] = scales[position]
            full_sizes[axis] = int(np.floor(x.shape[axis] * scales[position]))
        else:
            raise t.unsupported("neither scales nor sizes are given")
    sampling = resize.Sampling(
        call.attr("coordinate_transformation_mode", "asymmetric" if old else "half_pixel"),
        call.attr("nearest_mode", "floor" if old else "round_prefer_floor"),
    )
    mode = call.attr("mode", "nearest")
    if mode == "nearest":
        return resize.resize_nearest(t, x, tuple(full_sizes), tuple(full_scales), sampling)
    if mode == "linear" and not call.attr("antialias", 0):
        return resize.resize_linear(t, t.ref(x), tuple(full_sizes), tuple(full_scales), sampling)
    raise t.unsupported(f"mode {mode}{' with antialias' if call.attr('antialias', 0) else ''}")


TABLE: dict[str, Lowering] = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalMaxPool": _global(reduce_max),
    "GlobalAveragePool": _global(reduce_mean),
    "Resize": _resize,
    "Upsample": _resize,
}
