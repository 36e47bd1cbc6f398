"""The compiled kernels: one function each, over NumPy arrays or torch tensors on any device.

Shape letters: B boxes, S rows a box, N features. Bounds are rigorous: every kernel charges its own
rounding. `kernels.reference` says in plain NumPy what each computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from verifier.errors import ShapeError, SpecError
from verifier.kernels.arrays import Array, Call

FUNCTIONS = {"identity": 0, "relu": 1, "leaky_relu": 2, "sigmoid": 3, "tanh": 4}
NORMS = {"box": 0, "l1": 1, "l2": 2, "linf": 3}


@dataclass(frozen=True)
class LineArrays:
    """slope_lower z + offset_lower <= h <= slope_upper z + offset_upper; lower <= h <= upper where given."""

    slope_lower: Array
    offset_lower: Array
    slope_upper: Array
    offset_upper: Array
    lower: Array = None
    upper: Array = None


@dataclass(frozen=True)
class SplitArrays:
    """Split neurons: sign [B, N] in {-1, 0, 1} (+1: z >= 0) and multipliers [B, S, N] >= 0."""

    sign: Array
    multiplier: Array


@dataclass(frozen=True)
class StageCosts:
    """What z needs for rigour: magnitude [B, N] >= |z|, bias [N], charge [B, N] (METHODS section 7)."""

    magnitude: Array
    bias: Array
    charge: Array


@dataclass(frozen=True)
class Adam:
    """Settings of one projected step; `step` counts from 1."""

    rate: float = 0.1
    step: int = 1
    decay_first: float = 0.9
    decay_second: float = 0.999
    epsilon: float = 1e-8

    def settings(self) -> dict[str, float]:
        """What the kernel reads."""
        return {
            "rate": self.rate,
            "decay_first": self.decay_first,
            "decay_second": self.decay_second,
            "correct_first": 1 / (1 - self.decay_first**self.step),
            "correct_second": 1 / (1 - self.decay_second**self.step),
            "epsilon": self.epsilon,
        }


def _three(call: str, array: Array) -> tuple[int, int, int]:
    if array.ndim != 3:
        raise ShapeError(f"{call}: coeffs: expected [B, S, N], got {list(array.shape)}")
    b, s, n = array.shape
    return int(b), int(s), int(n)


def relax_step(
    coeffs: Array,
    lines: LineArrays,
    costs: StageCosts | None = None,
    split: SplitArrays | None = None,
    *,
    threads: int | None = None,
) -> tuple[Array, Array, Array]:
    """Backward relaxation step: rows on h become rows on z, in one read and one write.

    For every h in the enclosure, and z >= 0 or z <= 0 where split:
        coeffs @ h  >=  out @ z + offset - loss  (the bias is in `offset`, z without it in `out @ z`).

    Args:
        coeffs: [B, S, N]; lines: [B, N] or [B, S, N], each as it likes.
        costs: None leaves what z needs for rigour, the rounding of `out` included, to the caller, and the bias.
    Returns:
        out [B, S, N]; offset and loss, float64 [B, S], loss >= 0.
    Raises:
        ShapeError: arrays that do not fit.
    """
    b, s, n = _three("relax_step", coeffs)
    call = Call("relax_step", coeffs, threads)
    call.read("coeffs", coeffs, (b, s, n))
    per_row = 0
    for k, name in enumerate(("slope_lower", "offset_lower", "slope_upper", "offset_upper")):
        line = getattr(lines, name)
        per_row |= (line.ndim == 3) << k
        call.read(name, line, (b, s, n) if line.ndim == 3 else (b, n))
    if costs is None:
        call.absent("magnitude", "bias", "charge")
    else:
        call.read("magnitude", costs.magnitude, (b, n))
        call.read("bias", costs.bias, (n,))
        call.read("charge", costs.charge, (b, n))
    if split is None:
        call.absent("split_sign", "multiplier")
    else:
        call.read("split_sign", split.sign, (b, n))
        call.read("multiplier", split.multiplier, (b, s, n))
    out = call.create("out", (b, s, n), zero=False)
    offset, loss = call.create("offset", (b, s), "float64"), call.create("loss", (b, s), "float64")
    call.launch(boxes=b, rows=s, n=n, per_row=per_row)
    return out, offset, loss


def concretise(
    coeffs: Array,
    center: Array,
    radius: Array,
    offset: Array,
    loss: Array,
    *,
    norm: str = "box",
    budget: Array = None,
    threads: int | None = None,
) -> tuple[Array, Array]:
    """Least value of coeffs @ x + offset - loss over each box or ball, and where it is taken.

    Args:
        coeffs: [B, S, N]; center, radius: [B, N], radius >= 0; offset, loss: float64 [B, S].
        norm: "box" (center +- radius) or "l1", "l2", "linf": ||(x - center) / radius|| <= budget [B].
    Returns:
        value float64 [B, S], rounded down, -inf where not finite; minimiser [B, S, N], a candidate point.
    Raises:
        SpecError: an unknown norm, or a ball without budget.
    """
    if norm not in NORMS:
        raise SpecError(f"concretise: norm: expected one of {sorted(NORMS)}, got '{norm}'")
    b, s, n = _three("concretise", coeffs)
    call = Call("concretise", coeffs, threads)
    call.read("coeffs", coeffs, (b, s, n))
    call.read("center", center, (b, n))
    call.read("radius", radius, (b, n))
    call.read("offset", offset, (b, s), "float64")
    call.read("loss", loss, (b, s), "float64")
    if norm == "box":
        call.absent("budget")
    elif budget is None:
        raise SpecError(f"concretise: an {norm} ball needs its budget [B]")
    else:
        call.read("budget", budget, (b,))
    value, minimiser = call.create("value", (b, s), "float64"), call.create("minimiser", (b, s, n))
    call.launch(boxes=b, rows=s, n=n, norm=NORMS[norm])
    return value, minimiser


@dataclass(frozen=True)
class AffineLayer:
    """Weights of one layer and the deployed program's error, deployed_gamma (|W||x| + bias_magnitude) + tiny.

    Attributes:
        weight: dense [in, out] or convolution [out, in / groups, kernel_h, kernel_w].
        bias, bias_magnitude: [out].
    """

    weight: Array
    bias: Array
    bias_magnitude: Array
    deployed_gamma: float = 0.0
    tiny: float = 0.0


@dataclass(frozen=True)
class ConvSettings:
    """pads = (top, left, bottom, right)."""

    strides: Sequence[int] = (1, 1)
    pads: Sequence[int] = (0, 0, 0, 0)
    dilations: Sequence[int] = (1, 1)
    groups: int = 1


def interval_dense(
    lower: Array, upper: Array, layer: AffineLayer, *, threads: int | None = None
) -> tuple[Array, Array]:
    """Enclosure [B, out] of x @ weight + bias over boxes [B, in], rounded outward; (-inf, inf) for NaN or Inf."""
    if layer.weight.ndim != 2 or lower.ndim != 2:
        raise ShapeError(
            f"interval_dense: expected [B, in], weight [in, out]; got {list(lower.shape)}, {list(layer.weight.shape)}"
        )
    b, (inputs, outputs) = int(lower.shape[0]), (int(d) for d in layer.weight.shape)
    call = Call("interval_dense", lower, threads)
    for name, array in (("lower", lower), ("upper", upper)):
        call.read(name, array, (b, inputs))
    call.read("weight", layer.weight, (inputs, outputs))
    call.read("bias", layer.bias, (outputs,))
    call.read("bias_magnitude", layer.bias_magnitude, (outputs,))
    low, high = call.create("out_lower", (b, outputs)), call.create("out_upper", (b, outputs))
    call.launch(boxes=b, inputs=inputs, outputs=outputs, deployed_gamma=layer.deployed_gamma, tiny=layer.tiny)
    return low, high


def interval_conv(
    lower: Array, upper: Array, layer: AffineLayer, settings: ConvSettings, *, threads: int | None = None
) -> tuple[Array, Array]:
    """Enclosure [B, out, H', W'] of a 2-d convolution over boxes [B, C, H, W]; see interval_dense."""
    if layer.weight.ndim != 4 or lower.ndim != 4:
        raise ShapeError(f"interval_conv: expected 4 axes each, got {list(lower.shape)}, {list(layer.weight.shape)}")
    b, c, h, w = (int(d) for d in lower.shape)
    k, per_group, kh, kw = (int(d) for d in layer.weight.shape)
    groups = settings.groups
    if groups < 1 or per_group * groups != c or k % groups:
        raise ShapeError(f"interval_conv: {c} channels and {k} outputs do not fit {groups} groups of {per_group}")
    top, left, bottom, right = settings.pads
    out_h = (h + top + bottom - settings.dilations[0] * (kh - 1) - 1) // settings.strides[0] + 1
    out_w = (w + left + right - settings.dilations[1] * (kw - 1) - 1) // settings.strides[1] + 1
    if out_h < 1 or out_w < 1:
        raise ShapeError(f"interval_conv: the kernel {[kh, kw]} does not fit the padded input {[h, w]}")
    call = Call("interval_conv", lower, threads)
    for name, array in (("lower", lower), ("upper", upper)):
        call.read(name, array, (b, c, h, w))
    call.read("weight", layer.weight, (k, per_group, kh, kw))
    call.read("bias", layer.bias, (k,))
    call.read("bias_magnitude", layer.bias_magnitude, (k,))
    low, high = call.create("out_lower", (b, k, out_h, out_w)), call.create("out_upper", (b, k, out_h, out_w))
    sizes = {
        "boxes": b,
        "channels": c,
        "height": h,
        "width": w,
        "out_channels": k,
        "out_height": out_h,
        "out_width": out_w,
    }
    steps = {"kernel_h": kh, "kernel_w": kw, "stride_h": settings.strides[0], "stride_w": settings.strides[1]}
    edges = {"pad_top": top, "pad_left": left, "dilation_h": settings.dilations[0], "dilation_w": settings.dilations[1]}
    call.launch(**sizes, **steps, **edges, groups=groups, deployed_gamma=layer.deployed_gamma, tiny=layer.tiny)
    return low, high


def enclose(
    function: str,
    lower: Array,
    upper: Array,
    *,
    alpha: float = 0.0,
    deviation: float = 0.0,
    free_lower: Array = None,
    threads: int | None = None,
) -> LineArrays:
    """Lines below and above an elementwise function, and its interval, on [lower, upper] of any shape.

    Args:
        function: identity, relu, leaky_relu (with alpha in [0, 1]), sigmoid or tanh.
        deviation: error of the deployed function: absolute for sigmoid and tanh, relative to |x|, x < 0,
            for the relu family.
        free_lower: in [0, 1] like lower; the relu family's lower slope (alpha at 0, 1 at 1), else adaptive.
    """
    if function not in FUNCTIONS:
        raise SpecError(f"enclose: function: expected one of {sorted(FUNCTIONS)}, got '{function}'")
    if not 0 <= alpha <= 1:
        raise SpecError(f"enclose: alpha: expected a number in [0, 1], got {alpha}")
    call = Call("enclose", lower, threads)
    shape = tuple(int(d) for d in lower.shape)
    call.read("lower", lower, shape)
    call.read("upper", upper, shape)
    if free_lower is None:
        call.absent("free_lower")
    else:
        call.read("free_lower", free_lower, shape)
    names = ("slope_lower", "offset_lower", "slope_upper", "offset_upper", "out_lower", "out_upper")
    made = [call.create(name, shape) for name in names]
    count = 1
    for d in shape:
        count *= d
    call.launch(count=count, function=FUNCTIONS[function], alpha=alpha, deviation=deviation)
    return LineArrays(*made)


@dataclass(frozen=True)
class AdamState:
    """Parameters [B, S, N] and their moments; all three are updated in place."""

    value: Array
    first: Array
    second: Array


def ascend_slopes(
    coeffs: Array, point: Array, lower: Array, upper: Array, state: AdamState, adam: Adam, *, threads: int | None = None
) -> Array:
    """Step of relu slopes in [0, 1] along d bound / d slope = coeffs+ * z; returns the gradient [B, S, N].

    Args:
        coeffs: [B, S, N] on h; point: [B, S, N], z of the chosen lines at the minimiser; lower, upper: [B, N].
    """
    b, s, n = _three("ascend", coeffs)
    call = Call("ascend", coeffs, threads)
    call.read("coeffs", coeffs, (b, s, n))
    call.read("lower", lower, (b, n))
    call.read("upper", upper, (b, n))
    call.absent("split_sign")
    return _ascend(call, point, state, adam, (b, s, n), 1.0)


def ascend_multipliers(
    split_sign: Array, point: Array, state: AdamState, adam: Adam, *, threads: int | None = None
) -> Array:
    """Step of split multipliers >= 0 along d bound / d multiplier = -sign * z; returns the gradient."""
    b, s, n = _three("ascend", point)
    call = Call("ascend", point, threads)
    call.absent("coeffs", "lower", "upper")
    call.read("split_sign", split_sign, (b, n))
    return _ascend(call, point, state, adam, (b, s, n), 1e30)


def _ascend(call: Call, point: Array, state: AdamState, adam: Adam, shape: tuple[int, int, int], high: float) -> Array:
    call.read("point", point, shape)
    for name in ("value", "first", "second"):
        call.update(name, getattr(state, name), shape)
    gradient = call.create("gradient", shape)
    call.launch(boxes=shape[0], rows=shape[1], n=shape[2], low=0.0, high=high, **adam.settings())
    return gradient


def split_scores(coeffs: Array, lower: Array, upper: Array, bias: Array, *, threads: int | None = None) -> Array:
    """Best BaBSR score [B, N] of each relu over its box's rows; 0 where it is fixed.

    Args:
        coeffs: [B, S, N] on h; lower, upper: [B, N] of z; bias: [N] before the relu.
    Source: Bunel et al. 2020, JMLR 21(42).
    """
    b, s, n = _three("split_scores", coeffs)
    call = Call("split_scores", coeffs, threads)
    call.read("coeffs", coeffs, (b, s, n))
    call.read("lower", lower, (b, n))
    call.read("upper", upper, (b, n))
    call.read("bias", bias, (n,))
    score = call.create("score", (b, n))
    call.launch(boxes=b, rows=s, n=n)
    return score


def clip_boxes(coeffs: Array, limit: Array, lower: Array, upper: Array, *, threads: int | None = None) -> None:
    """Shrink boxes in place to coeffs[b, s] @ x <= limit[b, s], outward; a missed box gets (inf, -inf).

    Args:
        coeffs: float64 [B, S, N]; limit: float64 [B, S]; lower, upper: float64 [B, N].
    Source: Zhou et al. 2025, arXiv:2512.11087.
    """
    b, s, n = _three("clip_boxes", coeffs)
    call = Call("clip_boxes", coeffs, threads)
    call.read("coeffs", coeffs, (b, s, n), "float64")
    call.read("limit", limit, (b, s), "float64")
    call.update("lower", lower, (b, n), "float64")
    call.update("upper", upper, (b, n), "float64")
    call.launch(boxes=b, rows=s, n=n)
