"""Sparse matrices by row, and the ones that operators amount to: selection, blocks, convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verifier.graph.ir import Node


@dataclass(frozen=True)
class Sparse:
    """A [rows, cols] matrix by row; no position twice, columns ascending in a row.

    Attributes:
        values: float64 [K]; columns: int32 [K]; row_start: int64 [rows + 1].
    """

    rows: int
    cols: int
    values: np.ndarray
    columns: np.ndarray
    row_start: np.ndarray

    @staticmethod
    def build(row: np.ndarray, column: np.ndarray, value: np.ndarray, rows: int, cols: int) -> Sparse:
        """From coordinates in any order; entries at the same position are added, zeros left out."""
        key = row.astype(np.int64) * cols + column
        order = np.argsort(key, kind="stable")
        key, value = key[order], np.asarray(value, dtype=np.float64)[order]
        if key.size:
            first = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
            key, value = key[first], np.add.reduceat(value, first)
        keep = value != 0
        key, value = key[keep], value[keep]
        starts = np.searchsorted(key, np.arange(rows + 1, dtype=np.int64) * cols)
        return Sparse(rows, cols, value, (key % max(cols, 1)).astype(np.int32), starts.astype(np.int64))

    @staticmethod
    def diagonal(values: np.ndarray) -> Sparse:
        """diag(values)."""
        index = np.arange(values.size)
        return Sparse.build(index, index, values, values.size, values.size)

    @staticmethod
    def dense(matrix: np.ndarray) -> Sparse:
        """The nonzeros of a matrix."""
        row, column = np.nonzero(matrix)
        return Sparse.build(row, column, matrix[row, column], *matrix.shape)

    def to_dense(self) -> np.ndarray:
        """[rows, cols], float64."""
        matrix = np.zeros((self.rows, self.cols))
        matrix[np.repeat(np.arange(self.rows), np.diff(self.row_start)), self.columns] = self.values
        return matrix

    @staticmethod
    def select(indices: np.ndarray, cols: int) -> Sparse:
        """Row i picks x[indices[i]]; -1 gives an empty row."""
        row = np.flatnonzero(indices >= 0)
        return Sparse.build(row, indices[row], np.ones(row.size), indices.size, cols)

    @staticmethod
    def scatter(places: np.ndarray, rows: int) -> Sparse:
        """x[i] goes to row places[i]."""
        return Sparse.build(places, np.arange(places.size), np.ones(places.size), rows, places.size)

    @staticmethod
    def place(size: int, rows: int, begin: int) -> Sparse:
        """x [size] goes to rows begin, begin + 1, ..."""
        return Sparse.scatter(np.arange(begin, begin + size), rows)

    @staticmethod
    def sum(parts: Sequence[Sparse]) -> Sparse:
        """Sum of matrices of equal shape."""
        row = np.concatenate([np.repeat(np.arange(p.rows), np.diff(p.row_start)) for p in parts])
        column = np.concatenate([p.columns for p in parts])
        value = np.concatenate([p.values for p in parts])
        return Sparse.build(row, column, value, parts[0].rows, parts[0].cols)


def kronecker(blocks: np.ndarray) -> Sparse:
    """Block-diagonal matrix of blocks [K, out, in]."""
    k, out, size = blocks.shape
    block, row, column = np.nonzero(blocks)
    return Sparse.build(block * out + row, block * size + column, blocks[block, row, column], k * out, k * size)


def convolution_matrix(node: Node, shape: Sequence[int]) -> Sparse:
    """The matrix of a Conv node on flat features, for an input of `shape` [n, C, *spatial]."""
    weight, a = np.asarray(node.attrs["weight"], dtype=np.float64), node.attrs
    channels, per_group, *kernel = weight.shape
    # What output positions read is the same in every channel and image: taps come in ascending columns.
    grid = np.indices(node.shape[2:]).reshape(len(kernel), -1, 1)
    taps = np.indices(weight.shape[1:]).reshape(1 + len(kernel), -1)  # channel in group, *kernel
    column, inside = taps[0], np.ones((grid.shape[1], taps.shape[1]), dtype=bool)
    for i, size in enumerate(shape[2:]):
        at = grid[i] * a["strides"][i] + taps[1 + i] * a["dilations"][i] - a["pads"][i]
        inside &= (at >= 0) & (at < size)
        column = column * size + at
    value = weight.reshape(channels, -1).take(np.nonzero(inside)[1], axis=1)  # [channels, terms of all positions]
    group = np.arange(channels) // (channels // a["groups"])
    group = group + np.arange(shape[0])[:, None] * a["groups"]  # [n, channels]
    offset = (group * per_group * int(np.prod(shape[2:]))).astype(np.int32)
    columns = (column[inside].astype(np.int32) + offset[:, :, None]).reshape(-1)
    values = np.tile(value.reshape(-1), shape[0]) if shape[0] > 1 else value.reshape(-1)
    starts = np.concatenate([[0], np.cumsum(np.tile(inside.sum(axis=1), shape[0] * channels))])
    if not weight.all():
        kept = values != 0
        starts = np.concatenate([[0], np.cumsum(kept)])[starts]
        values, columns = values[kept], columns[kept]
    return Sparse(node.size, int(np.prod(shape, dtype=np.int64)), values, columns, starts.astype(np.int64))


def transposed_convolution_matrix(node: Node, shape: Sequence[int]) -> Sparse:
    """The matrix of a ConvTranspose node on flat features, for an input of `shape` [n, C, *spatial]."""
    weight, a = np.asarray(node.attrs["weight"], dtype=np.float64), node.attrs
    d, groups = weight.ndim - 2, a["groups"]
    size = int(np.prod(shape, dtype=np.int64))
    grid = np.indices(shape).reshape(d + 2, -1)  # n, in channel, *spatial
    taps = np.indices(weight.shape[1:]).reshape(d + 1, -1)  # out channel in group, *kernel
    channel = (grid[1] // (weight.shape[0] // groups) * weight.shape[1])[:, None] + taps[0]
    row = grid[0][:, None] * node.shape[1] + channel
    inside = np.ones_like(row, dtype=bool)
    for i in range(d):
        at = grid[2 + i][:, None] * a["strides"][i] + taps[1 + i] * a["dilations"][i] - a["pads"][i]
        inside &= (at >= 0) & (at < node.shape[2 + i])
        row = row * node.shape[2 + i] + at
    value = weight.reshape(weight.shape[0], -1)[grid[1]]
    column = np.broadcast_to(np.arange(size)[:, None], row.shape)
    return Sparse.build(row[inside], column[inside], value[inside], node.size, size)
