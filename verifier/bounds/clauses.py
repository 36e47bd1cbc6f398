"""The clauses of a group's box as arrays with equally many rows, for engines that bound them together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verifier.spec.groups import Group


@dataclass(frozen=True)
class PaddedClauses:
    """C clauses of S rows each; short clauses repeat a row, which changes no maximum.

    Attributes:
        rows: [C, S, N_out]; limits, strict: [C, S].
    """

    rows: np.ndarray
    limits: np.ndarray
    strict: np.ndarray

    @staticmethod
    def of(group: Group, index: int) -> PaddedClauses:
        """The clauses of box `index` of a group."""
        members = [np.flatnonzero(group.rows.clause == c) for c in range(group.rows.count)]
        wide = max(len(m) for m in members)
        padded = np.stack([np.resize(m, wide) for m in members])
        return PaddedClauses(group.rows.coeffs[padded], group.limits[index][padded], group.rows.strict[padded])

    def closed(self, clause: np.ndarray, row_margins: np.ndarray) -> np.ndarray:
        """bool [B]: clause [B] is refuted by lower bounds row_margins [B, S]. NaN refutes nothing."""
        refuted: np.ndarray = np.where(self.strict[clause], row_margins >= 0, row_margins > 0)
        return np.any(refuted, axis=1)

    def open(self, margins: np.ndarray) -> np.ndarray:
        """Numbers of the clauses that margins [C, S] leave open."""
        return np.flatnonzero(~self.closed(np.arange(len(margins)), margins))
