"""Image transformations with a few parameters, differentiable in image and parameters.

Each is a record: the names of its parameters, their identity values, the usual search box and a
torch function (images [R, C, H, W], parameters [R, P]) -> images. All but the geometric ones are
affine in the image for fixed parameters. `certify/semantic` builds the same formulas as graph nodes, for
proofs over all parameters of a box; a test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from verifier.errors import ShapeError, SpecError


@dataclass(frozen=True)
class Transformation:
    """A parametrised change of images.

    Attributes:
        name: unique in a threat.
        parameters: their names, with units; identity, lower, upper: one number each.
        apply: (images [R, C, H, W], parameters [R, P]) -> images [R, C, H, W], not clipped.
        channels: the channel count it needs, 0 for any.
    """

    name: str
    parameters: tuple[str, ...]
    identity: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    apply: Callable[[Tensor, Tensor], Tensor]
    channels: int = 0

    def within(self, lower: tuple[float, ...], upper: tuple[float, ...]) -> Transformation:
        """The same transformation over another box.

        Raises:
            SpecError: wrong length, or a box that does not contain the identity.
        """
        fits = len(lower) == len(upper) == len(self.identity)
        if not fits or not all(a <= i <= b for a, i, b in zip(lower, self.identity, upper, strict=True)):
            raise SpecError(
                f"{self.name}: expected {len(self.identity)} bounds around {list(self.identity)}, "
                f"got {list(lower)} to {list(upper)}"
            )
        return replace(self, lower=tuple(lower), upper=tuple(upper))


# BT.601 luma; YIQ rotations keep it, so hue changes do not change brightness
LUMA = (0.299, 0.587, 0.114)
_TO_IQ = ((0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def _spatial(x: Tensor, p: Tensor) -> Tensor:
    """Rotate by p[:, 0] degrees about the centre, then shift by p[:, 1], p[:, 2] pixels (down,
    right); bilinear, zeros from outside."""
    angle = p[:, 0] * (math.pi / 180.0)
    height, width = x.shape[2], x.shape[3]
    cos, sin = torch.cos(angle), torch.sin(angle)
    # affine_grid maps output to input coordinates in [-1, 1], hence the inverse of the motion
    down, right = -2.0 * p[:, 1] / height, -2.0 * p[:, 2] / width
    ratio = height / width
    matrix = torch.stack(
        [
            torch.stack([cos, sin * ratio, cos * right + sin * ratio * down], dim=1),
            torch.stack([-sin / ratio, cos, -sin / ratio * right + cos * down], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] == 1:
        return x
    weights = torch.tensor(LUMA, device=x.device, dtype=x.dtype)
    return torch.einsum("c,rchw->rhw", weights, x)[:, None]


def hue_matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, B, C, float64 [3, 3]: (A + cos(angle) B + sin(angle) C) turns the chroma plane of RGB colours."""
    to_yiq = np.array([LUMA, *_TO_IQ])
    back = np.linalg.inv(to_yiq)
    turns = (np.diag([1.0, 0.0, 0.0]), np.diag([0.0, 1.0, 1.0]), np.array([[0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]]))
    still, with_cos, with_sin = (back @ turn @ to_yiq for turn in turns)
    return still, with_cos, with_sin


def _hue(x: Tensor, p: Tensor) -> Tensor:
    """Rotate the chroma plane of YIQ by p[:, 0] radians."""
    still, with_cos, with_sin = (torch.as_tensor(m, device=x.device).to(x.dtype) for m in hue_matrices())
    cos, sin = (wave(p[:, 0])[:, None, None] for wave in (torch.cos, torch.sin))
    return torch.einsum("rij,rjhw->rihw", still + cos * with_cos + sin * with_sin, x)


def _over(value: Tensor) -> Tensor:
    return value[:, None, None, None]


HUE = Transformation("hue", ("radians",), (0.0,), (-math.pi,), (math.pi,), _hue, channels=3)
SATURATION = Transformation(
    "saturation",
    ("factor",),
    (1.0,),
    (0.7,),
    (1.3,),
    lambda x, p: _grey(x) + _over(p[:, 0]) * (x - _grey(x)),
    channels=3,
)
CONTRAST = Transformation(
    "contrast",
    ("factor",),
    (1.0,),
    (0.7,),
    (1.3,),
    lambda x, p: _grey(x).mean((1, 2, 3), keepdim=True) * (1 - _over(p[:, 0])) + _over(p[:, 0]) * x,
)
BRIGHTNESS = Transformation("brightness", ("shift",), (0.0,), (-0.2,), (0.2,), lambda x, p: x + _over(p[:, 0]))
ROTATION = Transformation(
    "rotation", ("degrees",), (0.0,), (-10.0,), (10.0,), lambda x, p: _spatial(x, F.pad(p[:, :1], (0, 2)))
)
TRANSLATION = Transformation(
    "translation",
    ("pixels down", "pixels right"),
    (0.0, 0.0),
    (-1.0, -1.0),
    (1.0, 1.0),
    lambda x, p: _spatial(x, F.pad(p, (1, 0))),
)
SPATIAL = Transformation(
    "spatial",
    ("degrees", "pixels down", "pixels right"),
    (0.0, 0.0, 0.0),
    (-30.0, -1.0, -1.0),
    (30.0, 1.0, 1.0),
    _spatial,
)

TRANSFORMATIONS: dict[str, Transformation] = {
    t.name: t for t in (HUE, SATURATION, CONTRAST, BRIGHTNESS, ROTATION, TRANSLATION, SPATIAL)
}


def check_images(x: Tensor, transformations: tuple[Transformation, ...]) -> None:
    """ShapeError unless x is an image batch with the channels the transformations need."""
    if x.ndim != 4:
        raise ShapeError(f"semantic threat: expected images [B, C, H, W], got {list(x.shape)}")
    for t in transformations:
        if t.channels and x.shape[1] != t.channels:
            raise ShapeError(
                f"{t.name}: expected {t.channels} channels, got {x.shape[1]}; leave it out for grey images"
            )
