"""ATen reductions, softmax, pooling and resampling."""

from __future__ import annotations

from typing import Any

import numpy as np

from verifier.graph.lowering import pooling, resize
from verifier.graph.lowering import reduce as build
from verifier.graph.lowering.activation import unary
from verifier.graph.lowering.arithmetic import neg
from verifier.graph.lowering.layout import reshape, transpose
from verifier.graph.lowering.linear import dense
from verifier.graph.lowering.values import Ref, Tracer, Value
from verifier.graph.torch.call import Call, Lowering, spread


def _axes(call: Call) -> list[int] | None:
    axes = call.get("dim")
    return None if axes is None or axes == [] else [int(a) for a in np.atleast_1d(axes)]


def _reduction(name: str) -> Lowering:
    reduce = getattr(build, f"reduce_{name}")
    return lambda t, call: reduce(t, call["self"], _axes(call), bool(call.get("keepdim", False)))


def _extremum(name: str) -> Lowering:
    """max and min: over everything, elementwise with another tensor, or (values, indices) along one axis."""
    reduce = getattr(build, f"reduce_{name}")

    def lower(t: Tracer, call: Call) -> Any:
        if call.overload == "other":
            from verifier.graph.lowering.arithmetic import maximum, minimum

            return (maximum if name == "max" else minimum)(t, call["self"], call["other"])
        result = reduce(t, call["self"], _axes(call), bool(call.get("keepdim", False)))
        return result if call.overload == "" else (result, None)

    return lower


def _softmax(t: Tracer, call: Call) -> Value:
    function = build.log_softmax if "log_softmax" in call.name else build.softmax
    return function(t, call["self"], call["dim"])


def _arg_extremum(t: Tracer, call: Call) -> Value:
    x, axis, keep = call["self"], call.get("dim"), bool(call.get("keepdim", False))
    if axis is None:
        x, axis = reshape(t, x, (x.size,)), 0
    x = x if call.name.endswith("argmax") else neg(t, x)
    return build.arg_max(t, x, axis, keep)


def _logsumexp(t: Tracer, call: Call) -> Value:
    total = build.reduce_sum(t, unary(t, "Exp", call["self"]), _axes(call), bool(call.get("keepdim", False)))
    return unary(t, "Log", total)


def _windowed(t: Tracer, call: Call) -> tuple[Ref, pooling.Window, bool]:
    """(x with a batch axis, the window, whether the batch axis was added)."""
    x = t.ref(call["self"])
    d = int(call.name.split("pool")[1][0])
    unbatched = x.ndim == d + 1
    x = reshape(t, x, (1, *x.shape)) if unbatched else x
    kernel = spread(call["kernel_size"], d)
    strides = spread(call.get("stride") or kernel, d)
    window = pooling.Window(
        kernel, strides, spread(call.get("padding", 0), d) * 2, spread(call.get("dilation", 1), d),
        bool(call.get("ceil_mode", False)),
    )  # fmt: skip
    return x, window, unbatched


def _max_pool(t: Tracer, call: Call) -> Any:
    x, window, unbatched = _windowed(t, call)
    y = pooling.max_pool(t, x, window)
    y = reshape(t, y, y.shape[1:]) if unbatched else y
    return (y, None) if call.name.endswith("indices") else y


def _average_pool(t: Tracer, call: Call) -> Value:
    if call.get("divisor_override") is not None:
        raise t.unsupported("divisor_override")
    x, window, unbatched = _windowed(t, call)
    y = pooling.average_pool(t, x, window, bool(call.get("count_include_pad", True)))
    return reshape(t, y, y.shape[1:]) if unbatched else y


def _adaptive_average(t: Tracer, call: Call) -> Value:
    """Mean over parts of nearly equal size: one matrix along each axis that shrinks."""
    x, sizes = t.ref(call["self"]), call["output_size"]
    sizes = spread(sizes, int(call.name.split("pool")[1][0]))
    if all(s == 1 for s in sizes):
        return build.reduce_mean(t, x, range(x.ndim - len(sizes), x.ndim), True)
    for offset, out in enumerate(sizes):
        axis = x.ndim - len(sizes) + offset
        size = x.shape[axis]
        if size == out:
            continue
        weight = np.zeros((size, out))
        for i in range(out):
            start, end = i * size // out, -(-(i + 1) * size // out)
            weight[start:end, i] = 1.0 / (end - start)
        order = [a for a in range(x.ndim) if a != axis] + [axis]
        # Deployed: sums and one quotient; here the weights are rounded as well.
        averaged = dense(t, transpose(t, x, order), weight, rounding_terms=3)
        x = transpose(t, averaged, [int(i) for i in np.argsort(order)])
    return x


def _resize(t: Tracer, call: Call) -> Value:
    """upsample_nearest*/bilinear2d and relatives, their sizes or factors given."""
    x = t.ref(call.get("self", call.get("input")))
    d = x.ndim - 2
    sizes = call.get("output_size")
    factors = call.get("scale_factors") or [call.get(k) for k in ("scales_d", "scales_h", "scales_w", "scales")]
    factors = [float(f) for f in factors if f is not None]
    if sizes is None:
        sizes = [int(np.floor(n * f)) for n, f in zip(x.shape[2:], factors, strict=True)]
    scales = factors if len(factors) == d else [s / n for s, n in zip(sizes, x.shape[2:], strict=True)]
    full_sizes, full_scales = (*x.shape[:2], *sizes), (1.0, 1.0, *scales)
    if "nearest" in call.name:
        exact = "exact" in call.name
        sampling = resize.Sampling("half_pixel" if exact else "asymmetric", "round_prefer_ceil" if exact else "floor")
        return resize.resize_nearest(t, x, full_sizes, full_scales, sampling)
    aligned = bool(call.get("align_corners", False))
    sampling = resize.Sampling("align_corners" if aligned else "half_pixel")
    return resize.resize_linear(t, x, full_sizes, full_scales, sampling)


TABLE: dict[str, Lowering] = {
    "aten::sum": _reduction("sum"),
    "aten::mean": _reduction("mean"),
    "aten::amax": _reduction("max"),
    "aten::amin": _reduction("min"),
    "aten::max": _extremum("max"),
    "aten::min": _extremum("min"),
    "aten::argmax": _arg_extremum,
    "aten::argmin": _arg_extremum,
    "aten::logsumexp": _logsumexp,
    **dict.fromkeys(("aten::softmax", "aten::_softmax", "aten::log_softmax", "aten::_log_softmax"), _softmax),
    **dict.fromkeys((f"aten::max_pool{d}d{s}" for d in (1, 2, 3) for s in ("", "_with_indices")), _max_pool),
    **dict.fromkeys((f"aten::avg_pool{d}d" for d in (1, 2, 3)), _average_pool),
    **dict.fromkeys(
        (f"aten::{p}adaptive_avg_pool{d}d" for d in (1, 2, 3) for p in ("", "_")), _adaptive_average
    ),
    **dict.fromkeys((f"aten::{p}upsample_nearest{s}{d}d" for p in ("", "_") for s in ("", "_exact") for d in (1, 2, 3)),
                    _resize),
    **dict.fromkeys(("aten::upsample_linear1d", "aten::upsample_bilinear2d", "aten::upsample_trilinear3d"), _resize),
}  # fmt: skip
