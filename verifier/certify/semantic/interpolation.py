"""Piecewise linear functions of a coordinate, exactly, as sums of relus.

A function that is linear between integers is, for s in [first, last],

    f(s) = f(first) + (f(first+1) - f(first)) (s - first) + sum over k of (second difference of f at k) relu(s - k),

k running over the integers strictly between. A coordinate that stays between two integers needs no
relu at all; one that crosses a single integer needs one. Bilinear sampling is linear in the row and
in the column coordinate, so it is a sum of products of two such terms, one for each axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verifier.graph.lowering.activation import unary
from verifier.graph.lowering.arithmetic import affine
from verifier.graph.lowering.layout import concat, select
from verifier.graph.lowering.values import Ref, Tracer

#: Coordinates are taken this much further than they are known to reach, in pixels.
MARGIN = 1e-6


@dataclass(frozen=True)
class Basis:
    """Terms 1, s - first, relu(s - k), ... of one coordinate.

    Attributes:
        first: the integer below the coordinate.
        terms: places in the pool of terms; -1 stands for the constant 1.
        to_terms: float64 [n, n], coefficients of the terms from the values at first, first + 1, ...
    """

    first: int
    terms: tuple[int, ...]
    to_terms: np.ndarray


def bases(t: Tracer, coordinates: Ref, lower: np.ndarray, upper: np.ndarray) -> tuple[Ref, list[Basis]]:
    """The pool of terms of every coordinate, a node of shape (M,), and where to find them.

    Args:
        coordinates: node of shape (Q,), in pixels. lower, upper: float64 [Q], what they can reach.
    """
    first = np.floor(lower - MARGIN).astype(np.int64)
    last = np.floor(upper + MARGIN).astype(np.int64)
    owners = [q for q in range(len(first)) for _ in range(last[q] - first[q])]
    knots = [k for q in range(len(first)) for k in range(first[q] + 1, last[q] + 1)]
    pool = affine(t, coordinates, 1.0, -first.astype(np.float64))
    if knots:
        beyond = affine(t, select(t, coordinates, np.array(owners)), 1.0, -np.array(knots, dtype=np.float64))
        pool = concat(t, [pool, unary(t, "Relu", beyond)], 0)
    found, at = [], len(first)
    for q in range(len(first)):
        count = int(last[q] - first[q])
        found.append(Basis(int(first[q]), (-1, q, *range(at, at + count)), _to_terms(count)))
        at += count
    return pool, found


def _to_terms(knots: int) -> np.ndarray:
    """[knots + 2, knots + 2]: value, first slope, then second differences."""
    n = knots + 2
    matrix = np.zeros((n, n))
    matrix[0, 0] = 1.0
    matrix[1, :2] = -1.0, 1.0
    for k in range(knots):
        matrix[2 + k, k : k + 3] = 1.0, -2.0, 1.0
    return matrix


def weighted_sums(t: Tracer, pool: Ref, rows: list[list[tuple[int, float]]], constant: np.ndarray) -> Ref:
    """Sparse sums: node of shape (len(rows),), row i = constant[i] + sum of weight * pool[place].

    Args:
        rows: (place, weight) pairs; their number may differ.
    """
    width = max(1, max(len(row) for row in rows))
    places = np.full((len(rows), width), -1, dtype=np.int64)
    weights = np.zeros((len(rows), width))
    for i, row in enumerate(rows):
        for j, (place, weight) in enumerate(row):
            places[i, j], weights[i, j] = place, weight
    chosen = affine(t, select(t, pool, places), weights, 0.0)
    total = t.emit("ReduceSum", (chosen,), (len(rows),), axes=(1,), keepdims=False)
    return affine(t, total, 1.0, constant)
