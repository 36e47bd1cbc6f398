"""Brightness, contrast, saturation and hue as graph nodes.

The same formulas as `attack/semantic/transformations.py`, with the grammar's operators. On an image
that is a constant each is affine in its parameter (hue: in the sine and cosine of it), so linear
bounds of it are exact; on an image that depends on earlier parameters there is one product a pixel.
An image is a constant or a node of shape (1, C, H, W); a parameter is a node of shape (1, 1).
"""

from __future__ import annotations

import numpy as np

from verifier.attack.semantic.transformations import LUMA, hue_matrices
from verifier.graph.lowering.activation import unary
from verifier.graph.lowering.arithmetic import add, mul, sub
from verifier.graph.lowering.layout import expand, reshape
from verifier.graph.lowering.values import Ref, Tracer, Value


def brightness(t: Tracer, image: Value, shift: Ref) -> Value:
    """image + shift."""
    return add(t, image, spread(t, shift, image.shape))


def contrast(t: Tracer, image: Value, factor: Ref) -> Value:
    """mean + factor * (image - mean), the mean that of the grey image."""
    channels, pixels = image.shape[1], image.shape[2] * image.shape[3]
    luma = np.array(LUMA) if channels == 3 else np.full(channels, 1.0 / channels)
    weight = np.repeat(luma, pixels)[:, None] / pixels
    if isinstance(image, np.ndarray):
        mean: Value = (image.reshape(1, -1) @ weight).reshape(1, 1, 1, 1)
    else:
        flat = reshape(t, image, (1, image.size))
        mean = spread(t, t.emit("Dense", (flat,), (1, 1), weight=weight, bias=np.zeros(1)), image.shape)
    return add(t, mean, mul(t, spread(t, factor, image.shape), sub(t, image, mean)))


def saturation(t: Tracer, image: Value, factor: Ref) -> Value:
    """grey + factor * (image - grey)."""
    grey = np.repeat(np.array(LUMA)[None], 3, axis=0)
    rest = mul(t, spread(t, factor, image.shape), _mix(t, image, np.eye(3) - grey))
    return add(t, _mix(t, image, grey), rest)


def hue(t: Tracer, image: Value, radians: Ref) -> Value:
    """Chroma turned by an angle: (A + cos B + sin C) image, three matrices over the channels."""
    still, with_cos, with_sin = hue_matrices()
    cos, sin = (spread(t, unary(t, op, radians), image.shape) for op in ("Cos", "Sin"))
    turned = add(t, mul(t, cos, _mix(t, image, with_cos)), mul(t, sin, _mix(t, image, with_sin)))
    return add(t, _mix(t, image, still), turned)


def spread(t: Tracer, scalar: Ref, shape: tuple[int, ...]) -> Ref:
    """One number (1, 1) at every pixel of `shape`."""
    return expand(t, reshape(t, scalar, (1,) * len(shape)), shape)


def _mix(t: Tracer, image: Value, matrix: np.ndarray) -> Value:
    """matrix [C, C] over the channels of every pixel."""
    if isinstance(image, np.ndarray):
        return np.einsum("ij,rjhw->rihw", matrix, image)
    return t.emit(
        "Conv", (image,), image.shape, weight=matrix[:, :, None, None], bias=np.zeros(len(matrix)), strides=(1, 1),
        pads=(0, 0, 0, 0), dilations=(1, 1), groups=1,
    )  # fmt: skip
