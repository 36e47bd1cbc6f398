"""A network over an input set as one sparse linear model: columns, rows, and the curves between them.

Every number a linear node computes is a column tied to its inputs by one equality row with the
network's own coefficients, so building the model rounds nothing. Nodes that move numbers, and
neurons whose curve is the identity or a constant on their interval, are other names of columns
that exist. An unstable neuron is a pair of columns joined by its curve: the solver sees its
enclosing lines as rows (`relaxation_rows`), the rigorous bound uses the curve itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import sparse

from verifier.tighten.curves import Curve
from verifier.tighten.rounding import with_data


@dataclass(frozen=True)
class Neurons:
    """Unstable neurons of one node: column `post` = f(column `pre`), arrays [K].

    Attributes:
        node: where the pre-activation bounds are kept: the node that feeds the nonlinearity.
        positions: int [K], flat positions in that node.
        curve: f of these neurons.  No two neurons of a model share a `pre` or a `post` column.
    """

    node: str
    positions: np.ndarray
    pre: np.ndarray
    post: np.ndarray
    curve: Curve


@dataclass(frozen=True)
class LinearModel:
    """row_lower <= matrix @ columns <= row_upper, col_lower <= columns <= col_upper.

    Attributes:
        matrix: float64 CSR [R, C]; an entry may be stored in pieces (add them up), never rounded.
        row_lower, row_upper: float64 [R], +-inf where one-sided.
        col_lower, col_upper: float64 [C], finite. Column 0 is fixed to zero.
        relaxation_rows: bool [R], rows that follow from `neurons`; a bound may leave them out.
        definitions: (start, stop) ranges of rows that define new columns, in evaluation order; the
            first stored entry of such a row is its column, with coefficient 1.
        neurons: the curves, in evaluation order.
        inputs, outputs: int, columns of the flat inputs [N_in] and outputs [N_out].
        node_columns: node name -> int [size], the columns of its values.
    """

    matrix: sparse.csr_matrix
    row_lower: np.ndarray
    row_upper: np.ndarray
    col_lower: np.ndarray
    col_upper: np.ndarray
    relaxation_rows: np.ndarray
    definitions: tuple[tuple[int, int], ...]
    neurons: tuple[Neurons, ...]
    inputs: np.ndarray
    outputs: np.ndarray
    node_columns: dict[str, np.ndarray]

    @property
    def column_count(self) -> int:
        """C."""
        return self.matrix.shape[1]

    @property
    def row_count(self) -> int:
        """R."""
        return self.matrix.shape[0]

    @cached_property
    def transposed(self) -> tuple[sparse.csr_matrix, sparse.csr_matrix, int]:
        """The matrix's transpose and its magnitudes, CSR [C, R] each, and the most entries of a column."""
        turned = self.matrix.T.tocsr()
        return turned, with_data(turned, np.abs(turned.data)), int(np.max(np.diff(turned.indptr), initial=0))

    @cached_property
    def unpaired(self) -> np.ndarray:
        """Bool [C], columns that no neuron has."""
        found = np.ones(self.column_count, dtype=bool)
        for neurons in self.neurons:
            found[neurons.pre] = found[neurons.post] = False
        return found

    def cost(self, coeffs: np.ndarray) -> np.ndarray:
        """Objective over the columns from coefficients on the outputs, float64 [N_out] -> [S=C].

        Outputs that share a column would add their coefficients, with a rounding the bound
        could not see; so the builder gives every output a column of its own.
        """
        cost = np.zeros(self.column_count)
        cost[self.outputs] = coeffs
        return cost

    def defining_rows(self) -> np.ndarray:
        """Of every column [C] the row that defines it, -1 where none does."""
        found = np.full(self.column_count, -1)
        for start, stop in self.definitions:
            found[self.matrix.indices[self.matrix.indptr[start:stop]]] = np.arange(start, stop)
        return found

    def with_rows(self, block: sparse.csr_matrix, lower: np.ndarray, upper: np.ndarray) -> LinearModel:
        """The model with more rows [K, C], appended as ordinary (not relaxation) rows."""
        rows = RowBuffer()
        rows.append(self.matrix, self.row_lower, self.row_upper)
        rows.append(block, lower, upper)
        matrix, row_lower, row_upper = rows.finish(self.column_count)
        mask = np.concatenate([self.relaxation_rows, np.zeros(block.shape[0], dtype=bool)])
        return replace(self, matrix=matrix, row_lower=row_lower, row_upper=row_upper, relaxation_rows=mask)

    def without_rows(self, rows: np.ndarray) -> LinearModel:
        """The model without rows [K] that stand after its own, as `with_rows` adds them."""
        keep = np.ones(self.row_count, dtype=bool)
        keep[rows] = False
        return replace(
            self, matrix=self.matrix[keep], row_lower=self.row_lower[keep], row_upper=self.row_upper[keep],
            relaxation_rows=self.relaxation_rows[keep],
        )  # fmt: skip


def led_by(columns: np.ndarray, block: sparse.csr_matrix) -> sparse.csr_matrix:
    """The rows of a block [K, C], each with an entry 1 at its own column [K] stored before the others."""
    starts = block.indptr
    data, places = np.insert(block.data, starts[:-1], 1.0), np.insert(block.indices, starts[:-1], columns)
    return sparse.csr_matrix((data, places, starts + np.arange(len(starts))), shape=block.shape)


class RowBuffer:
    """Collects CSR blocks without ever adding two stored entries, which could round."""

    def __init__(self) -> None:
        self._data: list[np.ndarray] = []
        self._cols: list[np.ndarray] = []
        self._counts: list[np.ndarray] = []
        self._lower: list[np.ndarray] = []
        self._upper: list[np.ndarray] = []
        self.count = 0

    def append(self, block: sparse.csr_matrix, lower: np.ndarray, upper: np.ndarray) -> None:
        """Add the rows of a block; lower and upper are [rows]."""
        self._push(block.data, block.indices, np.diff(block.indptr), lower, upper)

    def append_terms(self, terms: list[tuple[np.ndarray, np.ndarray]], lower: np.ndarray, upper: np.ndarray) -> None:
        """Add rows of K entries each: `terms` is a list of (columns [rows], coefficients [rows])."""
        cols = np.stack([t[0] for t in terms], axis=1)
        data = np.stack([t[1] for t in terms], axis=1)
        counts = np.full(cols.shape[0], cols.shape[1])
        self._push(data.reshape(-1), cols.reshape(-1), counts, lower, upper)

    def finish(self, columns: int) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
        """(matrix [R, columns], lower [R], upper [R])."""
        counts = _joined(self._counts, np.int64)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        data, cols = _joined(self._data, np.float64), _joined(self._cols, np.int64)
        matrix = sparse.csr_matrix((data, cols, starts), shape=(self.count, columns))
        return matrix, _joined(self._lower, np.float64), _joined(self._upper, np.float64)

    def _push(self, data, cols, counts, lower, upper) -> None:
        self._data.append(np.asarray(data, dtype=np.float64))
        self._cols.append(np.asarray(cols, dtype=np.int64))
        self._counts.append(np.asarray(counts, dtype=np.int64))
        self._lower.append(np.asarray(lower, dtype=np.float64))
        self._upper.append(np.asarray(upper, dtype=np.float64))
        self.count += len(counts)


def _joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype=dtype)
