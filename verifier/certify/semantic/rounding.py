"""How far a floating-point program's pixels can be from a transformation in real arithmetic.

Proofs take every transformation in real arithmetic, and then let each of its pixels be off by this
much before the result is clipped. So they cover the exact transformation, the torch functions of the
attacks, and any other program that computes the same formulas with sums in any order and library
functions good to a few units in the last place. Second-order terms are covered by rounding up counts.
"""

from __future__ import annotations

import math

import numpy as np

from verifier.attack.semantic.transformations import Transformation, hue_matrices


def unit_roundoff(dtype: str) -> float:
    """Of the transforming program; in float64 the constants of the proof are rounded as often, so four times that."""
    return 2.0**-24 if dtype == "float32" else 2.0**-51


def pixel_error(step: Transformation, shape: tuple[int, int, int], valid: tuple[float, float], dtype: str) -> float:
    """The allowance in pixel units.

    Args:
        step: its box limits the parameters. shape: (C, H, W). valid: range of the pixels it is given.
    """
    size = max(abs(v) for v in valid)
    largest = [max(abs(a), abs(b)) for a, b in zip(step.lower, step.upper, strict=True)]
    channels, height, width = shape
    if step.name == "brightness":
        terms = 2 * (size + largest[0])
    elif step.name == "contrast":
        # The mean of n pixels meets n roundings, the grey value four more.
        terms = (channels * height * width + 16) * (1 + largest[0]) * size
    elif step.name == "saturation":
        terms = 16 * (1 + largest[0]) * size
    elif step.name == "hue":
        terms = 16 * float(sum(np.abs(m) for m in hue_matrices()).sum(axis=1).max()) * size
    else:
        terms = _resampling(step, largest, max(height, width), size, valid)
    return terms * unit_roundoff(dtype)


def _resampling(
    step: Transformation, largest: list[float], side: int, size: float, valid: tuple[float, float]
) -> float:
    """A coordinate is the product of a 2x3 matrix with numbers up to the side, each good to a few roundings:
    16 (1 + angle) (side + shift) in all. Interpolation passes it on times the range of the pixels, once an
    axis, and rounds its four weighted pixels itself."""
    angle = math.radians(largest[0]) if "degrees" in step.parameters else 0.0
    shift = max((v for v, name in zip(largest, step.parameters, strict=True) if name != "degrees"), default=0.0)
    spread = max(valid[1], 0.0) - min(valid[0], 0.0)  # zeros come in from outside
    return 32 * (1 + angle) * (side + shift) * spread + 8 * size
