"""A matrix that rows are multiplied by, sparse where few of its entries are not zero."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

#: Share of entries up to which the sparse product is the faster one.
_SPARSE = 0.1


class _SparseProduct(torch.autograd.Function):
    """rows @ matrix for a fixed sparse matrix, given as it is and transposed."""

    @staticmethod
    def forward(ctx, rows, matrix, transposed):  # type: ignore[no-untyped-def]
        ctx.matrix = matrix
        return (transposed @ rows.T.contiguous()).T

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return (ctx.matrix @ grad.T.contiguous()).T, None, None


@dataclass(frozen=True)
class RowMap:
    """rows [R, M] -> rows @ matrix [R, N].

    Attributes:
        matrix: [M, N], dense or in compressed sparse rows; transposed: [N, M], for the sparse form only.
        entries: numbers that are not zero, all of them where dense.
    """

    matrix: Tensor
    transposed: Tensor | None
    entries: int

    @classmethod
    def of(cls, matrix: Tensor) -> RowMap:
        """From a dense matrix."""
        entries = int(torch.count_nonzero(matrix))
        if entries > _SPARSE * matrix.numel():
            return cls(matrix, None, matrix.numel())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch calls its sparse rows a beta feature
            return cls(matrix.to_sparse_csr(), matrix.T.contiguous().to_sparse_csr(), entries)

    def apply(self, rows: Tensor) -> Tensor:
        """rows @ matrix, differentiable in the rows."""
        if self.transposed is None:
            return rows @ self.matrix
        return _SparseProduct.apply(rows, self.matrix, self.transposed)

    def dense(self) -> Tensor:
        """The matrix [M, N]."""
        return self.matrix if self.transposed is None else self.matrix.to_dense()
