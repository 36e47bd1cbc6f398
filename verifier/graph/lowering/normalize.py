"""Normalisation layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from verifier.errors import NetworkError
from verifier.graph.lowering.activation import unary
from verifier.graph.lowering.arithmetic import affine, mul
from verifier.graph.lowering.reduce import center, reduce_mean
from verifier.graph.lowering.values import Ref, Tracer

# (x - mean) / sqrt(var + eps) * gamma + beta has at most 9 roundings on a path, in whichever of
# the usual arrangements a program computes it; computing scale and shift here adds 6.
_BATCH_NORM_ROUNDINGS = 14


def batch_norm(
    t: Tracer,
    x: Ref,
    statistics: tuple[np.ndarray, np.ndarray],
    parameters: tuple[np.ndarray, np.ndarray],
    epsilon: float,
) -> Ref:
    """Inference batch normalisation over axis 1.

    Args:
        statistics: mean and variance, [C] each.
        parameters: gamma and beta, [C] each.
    """
    mean, variance = (v.astype(np.float64) for v in statistics)
    gamma, beta = (v.astype(np.float64) for v in parameters)
    if np.any(variance + epsilon <= 0):
        raise NetworkError(f"node '{t.stem}' ({t.operator}): variance + epsilon is not positive")
    scale = gamma / np.sqrt(variance + epsilon)
    shape = (-1,) + (1,) * (x.ndim - 2)
    return affine(
        t,
        x,
        scale.reshape(shape),
        (beta - mean * scale).reshape(shape),
        rounding_terms=_BATCH_NORM_ROUNDINGS,
        bias_magnitude=(np.abs(beta) + np.abs(mean * scale)).reshape(shape),
    )


def normalize(t: Tracer, x: Ref, axes: Sequence[int], epsilon: float) -> Ref:
    """(x - mean) / sqrt(variance + epsilon), mean and variance over `axes`."""
    centered = center(t, x, axes)
    variance = reduce_mean(t, unary(t, "Pow", centered, exponent=2.0), axes, True)
    deviation = unary(t, "Sqrt", affine(t, variance, 1.0, np.asarray(epsilon, dtype=x.dtype)))
    return mul(t, centered, unary(t, "Reciprocal", deviation))


def scale_and_shift(t: Tracer, x: Ref, scale: np.ndarray | None, shift: np.ndarray | None) -> Ref:
    """x * scale + shift as deployed: a product and a sum."""
    if scale is None and shift is None:
        return x
    terms = 1 if scale is not None and shift is not None else 0
    return affine(t, x, 1.0 if scale is None else scale, 0.0 if shift is None else shift, rounding_terms=terms)
