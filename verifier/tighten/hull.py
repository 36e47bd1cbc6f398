"""Neurons bounded over the box of what they read, not over one interval: cuts that no triangle has.

A neuron f(w x + b) with f of two pieces, convex, lies below its concave envelope over the box of x. That is the least
of exponentially many planes, of which sorting finds the one that a point violates most. Where inputs are many and
weights alike, the triangle is far above it.
Source: Anderson et al. 2020, arXiv:1811.01988; Tjandraatmadja et al. 2020, arXiv:2006.14076.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy import sparse

from verifier.tighten.model import LinearModel, Neurons, RowBuffer, led_by
from verifier.tighten.rounding import WIDEN, dot_error

#: The least violation, relative to the value, that is one.
LEAST_VIOLATION = 1e-5
#: Weights of one layer kept as a dense matrix.
MOST_WEIGHTS = 4_000_000


@dataclass(frozen=True)
class Envelopes:
    """Neurons of one layer, [K], over the columns that each reads, at most W; fewer are filled up with column 0, which
    is 0, and weight 0.

    Attributes:
        post: columns of f(z). sources: columns of x, [K, W].
        weight: [K, W], z - weight @ x in [low, high].
        slopes: [K, 2] of f left and right of 0, where f is 0; error: [K], |deployed f - f|.
    """

    post: np.ndarray
    sources: np.ndarray
    weight: np.ndarray
    low: np.ndarray
    high: np.ndarray
    slopes: np.ndarray
    error: np.ndarray

    def planes(self, point: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """f(z) <= slope @ x + offset on lower <= x <= upper [K, W], lowest at the point [K, W]: [K, W], [K].

        Any slope gives a valid plane: the offset is made for it, with rounding.
        """
        w, width = self.weight, upper - lower
        worst = np.where(w >= 0, lower, upper)
        falls = np.abs(w) * width
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            share = np.where(width > 0, np.abs(point - worst) / width, np.inf)
        order = np.argsort(share, axis=1)
        left = (np.maximum(w * lower, w * upper).sum(axis=1) + 0.5 * (self.low + self.high))[:, None]
        # z, when those so far are at their worst
        left = left - np.cumsum(np.take_along_axis(falls, order, axis=1), axis=1)
        after = np.concatenate([left[:, :1] + np.take_along_axis(falls, order[:, :1], axis=1), left[:, :-1]], axis=1)
        fall = np.maximum(np.take_along_axis(falls, order, axis=1), 1e-300)
        taken = np.clip(after / fall, 0.0, 1.0)  # whole while z stays positive, then a part of one
        part = np.empty_like(w)
        np.put_along_axis(part, order, taken, axis=1)
        flat, steep = self.slopes[:, :1], self.slopes[:, 1:]
        slope = (flat + (steep - flat) * part) * w
        return slope, self.offsets(slope, lower, upper)

    def offsets(self, slope: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """The largest of s z - slope @ x, over both pieces s and all x and z, rounded up, [K]."""
        most = np.maximum(np.abs(lower), np.abs(upper))
        found = np.full(len(slope), -np.inf)
        for s in self.slopes.T:
            steep = s[:, None] * self.weight - slope
            value = np.maximum(steep * lower, steep * upper).sum(axis=1)
            value = value + np.maximum(s * self.low, s * self.high)
            size = ((np.abs(s)[:, None] * np.abs(self.weight) + np.abs(slope)) * most).sum(axis=1)
            size = size + np.abs(s) * np.maximum(np.abs(self.low), np.abs(self.high))
            found = np.maximum(found, value + dot_error(size, 4 * slope.shape[1] + 4))
        return found + self.error * WIDEN

    def only(self, chosen: np.ndarray) -> Envelopes:
        """Some of the neurons, [k] places."""
        return Envelopes(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def add_rows(self, rows: RowBuffer, slope: np.ndarray, offset: np.ndarray, columns: int) -> None:
        """Append f(z) - slope @ x <= offset; slope [K, W], offset [K]."""
        used = slope != 0
        starts = np.concatenate([[0], np.cumsum(used.sum(axis=1))])
        rest = sparse.csr_matrix((-slope[used], self.sources[used], starts), shape=(len(offset), columns))
        rows.append(led_by(self.post, rest), np.full(len(offset), -np.inf), offset)


def envelopes(model: LinearModel) -> list[Envelopes]:
    """The layers of a model that have such neurons."""
    row_of = model.defining_rows()
    found = (_layer(model, neurons, row_of) for neurons in model.neurons)
    return [layer for layer in found if layer is not None]


def _layer(model: LinearModel, neurons: Neurons, row_of: np.ndarray) -> Envelopes | None:
    curve = neurons.curve
    if not curve.piecewise_linear or curve.knots.shape[1] != 1:
        return None
    ends = np.tile(np.array([-1.0, 0.0, 1.0]), (neurons.pre.size, 1))
    left, middle, right = curve.value(ends).T
    slopes = np.stack([-left, right], axis=1)
    rows = row_of[neurons.pre]
    keep = (curve.knots[:, 0] == 0) & (middle == 0) & (slopes[:, 1] > slopes[:, 0]) & (rows >= 0)
    if not keep.any():
        return None
    rows = rows[keep]
    block = model.matrix[rows]
    counts = np.diff(block.indptr)
    keys = np.repeat(np.arange(len(rows)), counts) * model.column_count + block.indices
    if np.unique(keys).size < keys.size:
        return None  # an entry in pieces, whose sum would round
    own = np.zeros(block.nnz, dtype=bool)
    own[block.indptr[:-1]] = True
    if np.isin(block.indices[~own], neurons.pre).any():
        return None  # a neuron that reads another of its layer
    width = int(counts.max()) - 1
    if len(rows) * width > MOST_WEIGHTS:
        return None
    sources, weight = np.zeros((len(rows), width), dtype=block.indices.dtype), np.zeros((len(rows), width))
    filled = np.arange(width) < counts[:, None] - 1
    sources[filled], weight[filled] = block.indices[~own], -block.data[~own]
    return Envelopes(
        neurons.post[keep], sources, weight, model.row_lower[rows], model.row_upper[rows], slopes[keep],
        curve.deployed_error[keep],
    )  # fmt: skip


def cuts(layers: Sequence[Envelopes], model: LinearModel, point: np.ndarray) -> RowBuffer:
    """Rows of the planes that a point [C] of the model violates, at most one a neuron.

    Property: they hold wherever the model's definitions and the bounds of the columns that neurons read do.
    """
    rows = RowBuffer()
    for layer in layers:
        x, y = point[layer.sources], point[layer.post]
        slope, offset = layer.planes(x, model.col_lower[layer.sources], model.col_upper[layer.sources])
        found = np.flatnonzero(y > (slope * x).sum(axis=1) + offset + LEAST_VIOLATION * (1.0 + np.abs(y)))
        layer.only(found).add_rows(rows, slope[found], offset[found], model.column_count)
    return rows
