"""Cases that ask about the same rows, stacked, so that thousands of boxes are one array."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from verifier.spec.problem import Case, Clause, InputSet, Problem


class ClauseRows:
    """All rows of the clauses of a case, stacked.

    A clause is unsafe when all its rows satisfy coeffs @ y <= limits, so its margin is the largest
    coeffs @ y - limits: unsafe iff <= 0 (strict rows: < 0). The disjunction's margin is the smallest.

    Attributes:
        coeffs: [S, N_out]; strict: bool [S]; clause: int [S], each row's clause; count: C clauses.
    """

    def __init__(self, clauses: tuple[Clause, ...]):
        sizes = [len(c.limits) for c in clauses]
        self._set(
            np.concatenate([c.coeffs for c in clauses]),
            np.concatenate([c.strict for c in clauses]),
            np.asarray(sizes),
        )

    def _set(self, coeffs: np.ndarray, strict: np.ndarray, sizes: np.ndarray) -> None:
        self.count = len(sizes)
        self.coeffs, self.strict, self.clause = coeffs, strict, np.repeat(np.arange(self.count), sizes)
        self._starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        self.one_row_each = bool(np.all(sizes == 1))

    @cached_property
    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows without repetition [D, N_out], and for each row [S] its number among them, first met first."""
        numbers: dict[bytes, int] = {}
        number = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in self.coeffs])
        first = np.unique(number, return_index=True)[1]
        return self.coeffs[first], number

    def only(self, clauses: np.ndarray) -> ClauseRows:
        """The rows of some clauses (bool [C]), renumbered."""
        part = ClauseRows.__new__(ClauseRows)
        kept = clauses[self.clause]
        part._set(self.coeffs[kept], self.strict[kept], np.bincount(self.clause, minlength=self.count)[clauses])
        return part

    def clause_margins(self, row_margins: np.ndarray) -> np.ndarray:
        """Largest margin of each clause's rows, [..., S] -> [..., C]."""
        if self.one_row_each:
            return row_margins
        return np.maximum.reduceat(row_margins, self._starts, axis=-1)

    def proved(self, lower_margins: np.ndarray) -> np.ndarray:
        """Clauses that no point can satisfy, from lower bounds of row margins [..., S] -> [..., C].

        Comparisons are positive, so NaN proves nothing.
        """
        row_proved = np.where(self.strict, lower_margins >= 0, lower_margins > 0)
        if self.one_row_each:
            return row_proved
        return np.logical_or.reduceat(row_proved, self._starts, axis=-1)


@dataclass(frozen=True)
class Group:
    """Input boxes that share their rows; only the limits differ.

    Attributes:
        rows: the shared rows.
        lower, upper: [K, N_in]; limits: [K, S]; case: int [K], index into the problem's cases.
        inputs: the input set when it is more than a box (then K = 1).
    """

    rows: ClauseRows
    lower: np.ndarray
    upper: np.ndarray
    limits: np.ndarray
    case: np.ndarray
    inputs: InputSet | None = None

    @cached_property
    def widths(self) -> np.ndarray:
        """The widest box's extent along each input, [N_in]."""
        return np.max(self.upper - self.lower, axis=0)

    def asking(self, clauses: np.ndarray) -> Group:
        """The same boxes with some of the clauses (bool [C])."""
        if clauses.all():
            return self
        rows, limits = self.rows.only(clauses), self.limits[:, clauses[self.rows.clause]]
        return Group(rows, self.lower, self.upper, limits, self.case, self.inputs)

    def clause(self, index: int, number: int) -> Clause:
        """One of the clauses with the limits of box `index`."""
        own = self.rows.clause == number
        return Clause(self.rows.coeffs[own], self.limits[index][own], self.rows.strict[own])

    def only(self, index: int) -> Group:
        """The group of one of the boxes."""
        part = slice(index, index + 1)
        return Group(self.rows, self.lower[part], self.upper[part], self.limits[part], self.case[part], self.inputs)


def group_cases(problem: Problem) -> list[Group]:
    """The problem's non-empty cases, those with equal rows together.

    Cases without clauses or with an empty box can hold no counterexample and are left out; a clause
    without rows (every input is unsafe) is kept by the caller's `trivially_unsafe`.
    """
    groups: dict[tuple[bytes, ...], list[int]] = {}
    for index, case in enumerate(problem.cases):
        if case.inputs.is_empty_box or not case.clauses:
            continue
        key: tuple[bytes, ...] = tuple(c.coeffs.tobytes() + bytes(c.strict) for c in case.clauses)
        if not case.inputs.is_box:
            key = (*key, str(index).encode())
        groups.setdefault(key, []).append(index)
    return [_group(problem.cases, members) for members in groups.values()]


def _group(cases: tuple[Case, ...], members: list[int]) -> Group:
    first = cases[members[0]]
    return Group(
        ClauseRows(first.clauses),
        np.stack([cases[i].inputs.lower for i in members]),
        np.stack([cases[i].inputs.upper for i in members]),
        np.stack([np.concatenate([c.limits for c in cases[i].clauses]) for i in members]),
        np.asarray(members),
        None if first.inputs.is_box else first.inputs,
    )


def trivially_unsafe(problem: Problem) -> list[int]:
    """Indices of non-empty cases with a clause that constrains nothing: any input is a counterexample."""
    return [
        i
        for i, case in enumerate(problem.cases)
        if not case.inputs.is_empty_box and any(len(c.limits) == 0 for c in case.clauses)
    ]
