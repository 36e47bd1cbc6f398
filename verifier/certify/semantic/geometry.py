"""Rotation and translation as graph nodes: sampling coordinates, then bilinear interpolation.

Output pixel p (relative to the centre c) is sampled at  R(angle)^T (p - shift) + c, the inverse of
the motion, with zeros outside the image. Coordinates are affine in sine, cosine and shifts (and in
their products when both move); how far each coordinate can get decides which pixels it can meet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from verifier.certify.semantic.interpolation import Basis, bases, weighted_sums
from verifier.graph.lowering.activation import unary
from verifier.graph.lowering.arithmetic import affine, mul
from verifier.graph.lowering.layout import concat, reshape, select
from verifier.graph.lowering.values import Ref, Tracer, Value

Range = tuple[float, float]
#: A motion's parameter: its node of shape (1, 1) and its range.
Moving = tuple[Ref, Range]


@dataclass(frozen=True)
class Motion:
    """What moves; None for what stays: angle in degrees, shifts in pixels."""

    degrees: Moving | None = None
    down: Moving | None = None
    right: Moving | None = None


def resample(t: Tracer, image: Value, motion: Motion) -> Ref:
    """The moved image (1, C, H, W): a sum of products of piecewise linear functions of coordinates."""
    _, channels, height, width = image.shape
    lower, upper = reach(motion, height, width)
    pool, found = bases(t, coordinates(t, motion, height, width), lower, upper)
    size = height * width
    axes = list(zip(found[:size], found[size:], strict=True))
    flat = _of_constant(t, image[0], pool, axes) if isinstance(image, np.ndarray) else _of_node(t, image, pool, axes)
    return reshape(t, flat, (1, channels, height, width))


def coordinates(t: Tracer, motion: Motion, height: int, width: int) -> Ref:
    """Node of shape (2 * H * W,): row coordinates of all pixels, then column coordinates."""
    y, x = _centred(height, width)
    one, none = np.ones_like(y), np.zeros_like(y)
    centre = np.concatenate([none + (height - 1) / 2, none + (width - 1) / 2])
    terms: list[tuple[Ref, np.ndarray, np.ndarray]] = []
    if motion.degrees is None:
        centre = centre + np.concatenate([y, x])
        if motion.down is not None:
            terms.append((motion.down[0], -one, none))
        if motion.right is not None:
            terms.append((motion.right[0], none, -one))
    else:
        radians = affine(t, motion.degrees[0], np.array(math.pi / 180.0), 0.0)
        cos, sin = unary(t, "Cos", radians), unary(t, "Sin", radians)
        terms += [(cos, y, x), (sin, -x, y)]
        if motion.down is not None:
            terms += [(mul(t, cos, motion.down[0]), -one, none), (mul(t, sin, motion.down[0]), none, -one)]
        if motion.right is not None:
            terms += [(mul(t, cos, motion.right[0]), none, -one), (mul(t, sin, motion.right[0]), one, none)]
    joined = concat(t, [node for node, _, _ in terms], 1)
    weight = np.stack([np.concatenate([a, b]) for _, a, b in terms])
    placed = t.emit("Dense", (joined,), (1, weight.shape[1]), weight=weight, bias=centre)
    return reshape(t, placed, (weight.shape[1],))


def reach(motion: Motion, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """What the coordinates can reach, float64 [2 * H * W] each: their place at the middle of the ranges,
    plus or minus the longest way that the parameters can move a point."""
    y, x = _centred(height, width)
    angle, half_angle = (math.radians(v) for v in _middle(motion.degrees))
    (down, half_down), (right, half_right) = _middle(motion.down), _middle(motion.right)
    cos, sin = math.cos(angle), math.sin(angle)
    row = cos * (y - down) - sin * (x - right) + (height - 1) / 2
    column = cos * (x - right) + sin * (y - down) + (width - 1) / 2
    far = np.hypot(np.abs(y - down) + half_down, np.abs(x - right) + half_right)
    turned = abs(sin) + half_angle
    way = np.concatenate(
        [half_down + turned * half_right + half_angle * far, half_right + turned * half_down + half_angle * far]
    )
    middle = np.concatenate([row, column])
    return middle - way, middle + way


def _middle(moving: Moving | None) -> tuple[float, float]:
    if moving is None:
        return 0.0, 0.0
    low, high = moving[1]
    return 0.5 * (low + high), 0.5 * (high - low)


def _centred(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of every pixel from the centre, float64 [H * W] each."""
    y, x = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    return y.reshape(-1), x.reshape(-1)


def _of_constant(t: Tracer, image: np.ndarray, pool: Ref, axes: list[tuple[Basis, Basis]]) -> Ref:
    """Pixels [C * H * W] of a known image [C, H, W]: products only where its mixed differences are not 0."""
    size = len(axes)
    rows: list[list[tuple[int, float]]] = [[] for _ in range(image.shape[0] * size)]
    constant = np.zeros(len(rows))
    pairs: list[tuple[int, int]] = []
    for p, (by, bx) in enumerate(axes):
        coeffs = by.to_terms @ _patch(image, by, bx) @ bx.to_terms.T  # [C, terms of y, terms of x]
        for i, j in zip(*np.nonzero(np.any(coeffs != 0, axis=0)), strict=True):
            a, b = by.terms[i], bx.terms[j]
            place = max(a, b)
            if a >= 0 and b >= 0:
                place = pool.size + len(pairs)
                pairs.append((a, b))
            for c, weight in enumerate(coeffs[:, i, j].tolist()):
                if place < 0:
                    constant[c * size + p] = weight
                elif weight:
                    rows[c * size + p].append((place, weight))
    return weighted_sums(t, _with_products(t, pool, pairs), rows, constant)


def _of_node(t: Tracer, image: Ref, pool: Ref, axes: list[tuple[Basis, Basis]]) -> Ref:
    """Pixels [C * H * W] of an image that varies itself: weights (products of two hats) times pixels."""
    _, channels, height, width = image.shape
    size = len(axes)
    hats: list[list[tuple[int, float]]] = []
    constant: list[float] = []
    pairs: list[tuple[int, int]] = []
    met: list[list[tuple[int, int]]] = []
    for by, bx in axes:
        at = [_hats(b, n, hats, constant) for b, n in ((by, height), (bx, width))]
        met.append([])
        for k, a in at[0]:
            for m, b in at[1]:
                met[-1].append((len(pairs), k * width + m))
                pairs.append((a, b))
    shape = (channels * size, max(1, max(len(m) for m in met)))
    if not pairs:
        return t.ref(np.zeros(shape[0], dtype=image.dtype))
    shares = weighted_sums(t, pool, hats, np.array(constant))
    left, right = (select(t, shares, np.array(side)) for side in zip(*pairs, strict=True))
    weights = mul(t, left, right)
    which, source = np.full(shape, -1, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
    for c in range(channels):
        for p, entries in enumerate(met):
            for j, (pair, pixel) in enumerate(entries):
                which[c * size + p, j], source[c * size + p, j] = pair, c * size + pixel
    parts = mul(t, select(t, weights, which), select(t, image, source))
    return t.emit("ReduceSum", (parts,), (shape[0],), axes=(1,), keepdims=False)


def _hats(basis: Basis, size: int, hats: list[list[tuple[int, float]]], constant: list[float]) -> list[tuple[int, int]]:
    """Append the hat of every pixel 0..size-1 that a coordinate can meet; (pixel, place) of each."""
    found = []
    for j in range(len(basis.terms)):
        pixel = basis.first + j
        if 0 <= pixel < size:
            column = basis.to_terms[:, j]
            found.append((pixel, len(hats)))
            hats.append([(p, w) for p, w in zip(basis.terms[1:], column[1:].tolist(), strict=True) if w])
            constant.append(float(column[0]))
    return found


def _patch(image: np.ndarray, by: Basis, bx: Basis) -> np.ndarray:
    """Pixels [C, n, m] that two coordinates can meet, zeros outside the image."""
    rows, columns = (b.first + np.arange(len(b.terms)) for b in (by, bx))
    inside = ((rows >= 0) & (rows < image.shape[1]))[:, None] & ((columns >= 0) & (columns < image.shape[2]))
    chosen = image[:, np.clip(rows, 0, image.shape[1] - 1)][:, :, np.clip(columns, 0, image.shape[2] - 1)]
    return np.where(inside, chosen, 0.0)


def _with_products(t: Tracer, pool: Ref, pairs: list[tuple[int, int]]) -> Ref:
    if not pairs:
        return pool
    left, right = (select(t, pool, np.array(side)) for side in zip(*pairs, strict=True))
    return concat(t, [pool, mul(t, left, right)], 0)
