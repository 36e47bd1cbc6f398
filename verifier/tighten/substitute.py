"""A model without the columns that nothing bends: linear maps of linear maps, with what composing them rounds.

A stable neuron is a linear function of what comes before it, and most neurons of a network on a small box are stable.
Written as one map from inputs and bent neurons to the next bent ones, a program has as many definitions as it has
curves; the simplex method's basis shrinks with them. The coefficients are products of the network's own, computed in
float64; what that rounds widens the rows, over the bounds of the columns that stay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from verifier.tighten.model import LinearModel, RowBuffer, led_by
from verifier.tighten.rounding import TINY, WIDEN, dot_error, row_terms, with_data


def substituted(model: LinearModel) -> LinearModel:
    """The model with every defined column written out that is no input, no output and no end of a curve.

    Property: every point of the model, without the columns that are gone, satisfies the result. The bounds of those
        columns are lost, so a bound may be weaker. The model itself where a coefficient is not finite.
    """
    kept = np.ones(model.column_count, dtype=bool)
    for start, stop in model.definitions:
        kept[_own(model, start, stop)] = False
    for columns in (model.inputs, model.outputs, *(c for n in model.neurons for c in (n.pre, n.post))):
        kept[columns] = True
    if kept.all():
        return model
    with np.errstate(over="ignore", invalid="ignore"):
        return _Substitution(model, kept).run()


def _own(model: LinearModel, start: int, stop: int) -> np.ndarray:
    """The columns that rows start..stop define."""
    return model.matrix.indices[model.matrix.indptr[start:stop]]


@dataclass
class _Forms:
    """Columns as forms over the kept ones: column k = matrix[k] @ kept + offset[k] +- error[k], |matrix[k] @ kept| <=
    size[k]; rows of columns not reached yet are empty."""

    matrix: sparse.csr_matrix
    offset: np.ndarray
    error: np.ndarray
    size: np.ndarray


class _Substitution:
    def __init__(self, model: LinearModel, kept: np.ndarray):
        self.model, self.kept = model, kept
        count = model.column_count
        self.most = np.where(kept, np.maximum(np.abs(model.col_lower), np.abs(model.col_upper)), 0.0)
        own = sparse.diags(kept.astype(np.float64), format="csr")
        own.eliminate_zeros()
        self.forms = _Forms(own, np.zeros(count), np.zeros(count), self.most.copy())
        self.rows = RowBuffer()
        self.definitions: list[tuple[int, int]] = []
        self.relaxation: list[np.ndarray] = []

    def run(self) -> LinearModel:
        model, done = self.model, 0
        for start, stop in model.definitions:
            self._plain(done, start)
            self._define(start, stop)
            done = stop
        self._plain(done, model.row_count)
        matrix, lower, upper = self.rows.finish(model.column_count)
        if not np.isfinite(matrix.data).all() or np.isnan(lower).any() or np.isnan(upper).any():
            return model
        return self._renumbered(matrix, lower, upper)

    def _written_out(self, block: sparse.csr_matrix) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray, np.ndarray]:
        """block @ columns as forms: (matrix over kept columns, offset, error, size), [K] each."""
        forms, sizes = self.forms, with_data(block, np.abs(block.data))
        terms = row_terms(block) + 4
        matrix = (block @ forms.matrix).tocsr()
        offset = block @ forms.offset
        magnitude = sizes @ (forms.size + np.abs(forms.offset))
        # What underflows in a coefficient is multiplied by its column.
        error = (sizes @ forms.error) * WIDEN + dot_error(magnitude, terms) + terms * TINY * (1 + self.most.sum())
        return matrix, offset, error * WIDEN, (sizes @ forms.size) * WIDEN + TINY

    def _define(self, start: int, stop: int) -> None:
        """Rows that define columns: forms for those that go, composed rows for those that stay."""
        model = self.model
        block = model.matrix[start:stop]
        own, first = block.indices[block.indptr[:-1]], np.zeros(block.nnz, dtype=bool)
        first[block.indptr[:-1]] = True
        starts = block.indptr - np.arange(len(block.indptr))
        rest = sparse.csr_matrix((-block.data[~first], block.indices[~first], starts), shape=block.shape)
        matrix, offset, error, size = self._written_out(rest)
        low, high = model.row_lower[start:stop], model.row_upper[start:stop]
        stay = self.kept[own]
        before = self.rows.count
        if stay.any():
            part = matrix[stay]
            rows = led_by(own[stay], with_data(part, -part.data))
            self._append(rows, low[stay], high[stay], offset[stay], error[stay])
            self.definitions.append((before, self.rows.count))
        gone = ~stay
        if not gone.any():
            return
        middle = 0.5 * low[gone] + 0.5 * high[gone]
        half = np.maximum(high[gone] - middle, middle - low[gone])
        slack = dot_error(np.abs(offset[gone]) + np.abs(middle) + half, 4)
        forms, columns = self.forms, own[gone]
        place = sparse.csr_matrix(
            (np.ones(len(columns)), (columns, np.flatnonzero(gone))), shape=(model.column_count, len(own))
        )
        forms.matrix = (forms.matrix + place @ matrix).tocsr()  # their rows were empty, so nothing is added up
        forms.offset[columns] = offset[gone] + middle
        forms.error[columns] = (error[gone] + half + slack) * WIDEN
        forms.size[columns] = size[gone]

    def _plain(self, start: int, stop: int) -> None:
        """Rows that define nothing; those without a column that goes stay as they are stored."""
        if start == stop:
            return
        model = self.model
        block, low, high = model.matrix[start:stop], model.row_lower[start:stop], model.row_upper[start:stop]
        touched = np.zeros(stop - start, dtype=bool)
        counts = np.diff(block.indptr)
        touched[np.repeat(np.arange(stop - start), counts)[~self.kept[block.indices]]] = True
        self.relaxation.append(self.rows.count + np.flatnonzero(model.relaxation_rows[start:stop][~touched]))
        self.rows.append(block[~touched], low[~touched], high[~touched])
        if touched.any():
            matrix, offset, error, _ = self._written_out(block[touched])
            self._append(matrix, low[touched], high[touched], -offset, error)

    def _append(
        self, rows: sparse.csr_matrix, low: np.ndarray, high: np.ndarray, offset: np.ndarray, error: np.ndarray
    ) -> None:
        """Rows in [low + offset - error, high + offset + error], rounded outward."""
        slack = [error + dot_error(np.abs(end) + np.abs(offset) + error, 4) for end in (low, high)]
        self.rows.append(rows, low + offset - slack[0], high + offset + slack[1])

    def _renumbered(self, matrix: sparse.csr_matrix, lower: np.ndarray, upper: np.ndarray) -> LinearModel:
        model, kept = self.model, self.kept
        number = np.where(kept, np.cumsum(kept) - 1, -1)
        relaxation = np.zeros(matrix.shape[0], dtype=bool)
        relaxation[np.concatenate([np.zeros(0, dtype=np.int64), *self.relaxation])] = True
        shape = (matrix.shape[0], int(kept.sum()))
        return LinearModel(
            matrix=sparse.csr_matrix((matrix.data, number[matrix.indices], matrix.indptr), shape=shape),
            row_lower=lower,
            row_upper=upper,
            col_lower=model.col_lower[kept],
            col_upper=model.col_upper[kept],
            relaxation_rows=relaxation,
            definitions=tuple(self.definitions),
            neurons=tuple(replace(n, pre=number[n.pre], post=number[n.post]) for n in model.neurons),
            inputs=number[model.inputs],
            outputs=number[model.outputs],
            node_columns={k: number[c] for k, c in model.node_columns.items() if kept[c].all()},
        )
