"""Formulas as a union of (input part) x (disjunction of clauses), built bottom-up without recursion.

Keeping the input part and the clauses as factors is what makes real files small: a formula with
a thousand boxes and ten output clauses stays a thousand branches that share one list of ten.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from verifier.errors import SpecError
from verifier.spec.columns import ColumnTable
from verifier.spec.rows import Row

MAX_CLAUSES = 1_000_000
_MAX_PAIRS = 20_000_000

Bounds = dict[int, tuple[float, float]]
ClauseRows = tuple[Row, ...]


class Branch(NamedTuple):
    """Inputs within `bounds` that satisfy `input_rows`, unsafe where one of `clauses` holds.

    Attributes:
        bounds: input column -> (lower, upper), closed; an absent column is unbounded.
        input_rows: rows over inputs alone that are no closed bound of one input.
        clauses: rows that mention an output, a hidden entry or a product; [()] is 'always'.
    """

    bounds: Bounds
    input_rows: ClauseRows
    clauses: list[ClauseRows]


NormalForm = list[Branch]
"""The union of its branches; [] is false."""


def conjunction(parts: Iterable[Row | NormalForm], columns: ColumnTable, bounds: Bounds | None = None) -> NormalForm:
    """All of `parts`, within `bounds` (which is taken over and changed).

    Raises:
        SpecError: the result would exceed MAX_CLAUSES clauses.
    """
    simple = _Conjunct(columns, bounds)
    forms: list[NormalForm] = []
    for part in parts:
        if isinstance(part, Row):
            simple.add_row(part)
        elif len(part) == 1 and len(part[0].clauses) == 1:
            simple.add_branch(part[0])
        else:
            forms.append(part)
    product = simple.form()
    # Small factors first: pruning and the limit then act on the smallest products.
    for form in sorted(forms, key=len):
        product = _product(product, form)
    return product


def disjunction(parts: Iterable[Row | NormalForm], columns: ColumnTable) -> NormalForm:
    """Any of `parts`; branches with equal input parts are joined.

    Raises:
        SpecError: the result would exceed MAX_CLAUSES clauses.
    """
    joined: dict[tuple, Branch] = {}
    for part in parts:
        for branch in conjunction([part], columns) if isinstance(part, Row) else part:
            key = (frozenset(branch.bounds.items()), branch.input_rows)
            known = joined.get(key)
            if known is None:
                joined[key] = branch
            else:
                joined[key] = Branch(branch.bounds, branch.input_rows, known.clauses + branch.clauses)
    result = list(joined.values())
    _check_size(result)
    return result


class _Conjunct:
    """Rows and one-clause branches being conjoined, in time linear in their number."""

    def __init__(self, columns: ColumnTable, bounds: Bounds | None = None) -> None:
        self._n_inputs = columns.n_inputs
        self._bounds: Bounds = {} if bounds is None else bounds
        self._input_rows: list[Row] = []
        self._clause: list[Row] = []
        self._false = False

    def add_row(self, row: Row) -> None:
        """Conjoin one row: a bound, an input row, or a row of the clause."""
        terms, limit, strict = row
        if not terms:
            self._false |= limit < 0 or (strict and limit == 0)
        elif len(terms) == 1 and not strict and terms[0][0] < self._n_inputs:
            column, sign = terms[0]
            self._bound(column, *((-math.inf, limit) if sign > 0 else (-limit, math.inf)))
        elif terms[-1][0] < self._n_inputs:
            self._input_rows.append(row)
        else:
            self._clause.append(row)

    def add_branch(self, branch: Branch) -> None:
        """Conjoin a branch that has one clause."""
        for column, (low, high) in branch.bounds.items():
            self._bound(column, low, high)
        self._input_rows.extend(branch.input_rows)
        self._clause.extend(branch.clauses[0])

    def _bound(self, column: int, low: float, high: float) -> None:
        known = self._bounds.get(column)
        if known is not None:
            low, high = max(low, known[0]), min(high, known[1])
        self._bounds[column] = (low, high)

    def form(self) -> NormalForm:
        """What was collected: one branch, or false."""
        return [] if self._false else [Branch(self._bounds, tuple(self._input_rows), [tuple(self._clause)])]


def _product(left: NormalForm, right: NormalForm) -> NormalForm:
    if len(left) * len(right) > _MAX_PAIRS:
        raise SpecError(
            f"the `or`s of the property multiply to {len(left) * len(right)} input regions "
            f"(limit {_MAX_PAIRS}); split the file into several properties"
        )
    result: NormalForm = []
    shared: dict[tuple[int, int], list[ClauseRows]] = {}
    total = 0
    for a in left:
        for b in right:
            bounds = _intersect(a.bounds, b.bounds)
            if bounds is None:
                continue
            total += len(a.clauses) * len(b.clauses)
            if total > MAX_CLAUSES:
                raise _too_many(total)
            key = (id(a.clauses), id(b.clauses))
            if key not in shared:
                shared[key] = _clause_product(a.clauses, b.clauses)
            result.append(Branch(bounds, a.input_rows + b.input_rows, shared[key]))
    return result


def _clause_product(left: list[ClauseRows], right: list[ClauseRows]) -> list[ClauseRows]:
    if left == [()]:
        return right
    if right == [()]:
        return left
    return [a + b for a in left for b in right]


def _intersect(left: Bounds, right: Bounds) -> Bounds | None:
    """Both sets of bounds, or None where they exclude each other."""
    if not left or not right:
        return left or right
    result = dict(left)
    for column, (low, high) in right.items():
        known = result.get(column)
        if known is not None:
            low, high = max(low, known[0]), min(high, known[1])
            if low > high:
                return None
        result[column] = (low, high)
    return result


def _check_size(form: NormalForm) -> None:
    total = sum(len(branch.clauses) for branch in form)
    if total > MAX_CLAUSES:
        raise _too_many(total)


def _too_many(total: int) -> SpecError:
    return SpecError(
        f"the property has at least {total} clauses in normal form (limit {MAX_CLAUSES}); "
        "split the file into several properties"
    )
