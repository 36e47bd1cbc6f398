"""From a normal form over columns to dense cases over the query graph's inputs and outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from verifier.errors import SpecError
from verifier.spec.columns import ColumnTable
from verifier.spec.normal_form import Branch, ClauseRows, NormalForm
from verifier.spec.problem import Case, Clause, InputSet, Problem
from verifier.spec.representable import below, hull_of_deployed_inputs
from verifier.spec.rows import Row

_MAX_ENTRIES = 400_000_000
_TIGHTEN_ROUNDS = 32

Box = tuple[np.ndarray, np.ndarray]


def extra_columns(form: NormalForm, columns: ColumnTable) -> list[int]:
    """Columns the clauses mention that are no plain network output, ascending."""
    found: set[int] = set()
    seen: set[int] = set()
    for branch in form:
        if id(branch.clauses) in seen:
            continue
        seen.add(id(branch.clauses))
        for rows in branch.clauses:
            for row in rows:
                if row.terms[0][0] < columns.n_inputs or row.terms[-1][0] >= columns.first_extra:
                    found.update(c for c, _ in row.terms)
    return sorted(c for c in found if not columns.n_inputs <= c < columns.first_extra)


def assemble(
    form: NormalForm,
    base: Box,
    columns: ColumnTable,
    extras: list[int],
    *,
    dtype: str,
    exact_real: bool = False,
    input_name: Callable[[int], str] = "X_{}".format,
) -> Problem:
    """The Problem whose cases are the branches of `form` inside the box `base`.

    Args:
        extras: `extra_columns(form, columns)`; clause columns are the network outputs, then these.
        base: lower and upper bounds that hold in every branch, [N_in], infinite where absent.
        dtype: the deployed program's number type.
        exact_real: the specification asks for real arithmetic; boxes are not widened to floats.
        input_name: how messages call the flat query input i.
    Raises:
        SpecError: an input without a bound, or a problem too large for dense rows.
    """
    width = columns.n_outputs + len(extras)
    _check_entries(form, columns.n_inputs, width)
    inputs = _input_sets(form, base, columns, dtype, exact_real, input_name)
    clauses = _clauses(form, columns, extras, width)
    cases = tuple(Case(box, clauses[id(branch.clauses)]) for box, branch in zip(inputs, form, strict=True))
    empty = sum(case.inputs.is_empty_box for case in cases)
    if empty:
        columns.note(f"{empty} of {len(cases)} input regions are empty (a lower bound exceeds its upper bound)")
    if not cases:
        columns.note("the constraints contradict each other: no input can be unsafe")
    return Problem(cases, width, exact_real, tuple(columns.notes))


def _check_entries(form: NormalForm, n_inputs: int, width: int) -> None:
    lists = {id(branch.clauses): branch.clauses for branch in form}.values()
    rows = sum(len(clause) for clauses in lists for clause in clauses)
    regions = sum(1 for branch in form if branch.bounds or branch.input_rows)
    entries = rows * width + regions * n_inputs * 2 + sum(len(b.input_rows) for b in form) * n_inputs
    if entries > _MAX_ENTRIES:
        raise SpecError(
            f"the property needs {entries * 8 / 2**30:.1f} GiB as dense rows ({rows} output rows of {width}, "
            f"{regions} input regions of {n_inputs}; limit {_MAX_ENTRIES * 8 / 2**30:.1f} GiB); "
            "split the file into several properties"
        )


def _input_sets(
    form: NormalForm,
    base: Box,
    columns: ColumnTable,
    dtype: str,
    exact_real: bool,
    input_name: Callable[[int], str],
) -> list[InputSet]:
    plain = [k for k, branch in enumerate(form) if not branch.input_rows]
    result: dict[int, InputSet] = {}
    if plain:
        lower, upper = _box_matrix([form[k] for k in plain], base)
        _require_bounds(lower, upper, input_name)
        if not exact_real:
            lower, upper = hull_of_deployed_inputs(lower, upper, dtype)
        for position, k in enumerate(plain):
            result[k] = InputSet(lower[position], upper[position])
    for k, branch in enumerate(form):
        if branch.input_rows:
            result[k] = _set_with_rows(branch, base, columns, dtype, exact_real, input_name)
    return [result[k] for k in range(len(form))]


def _box_matrix(branches: list[Branch], base: Box) -> Box:
    """Bounds of many branches at once, [K, N_in]; a branch only tightens the base."""
    lower = np.repeat(base[0][None], len(branches), axis=0)
    upper = np.repeat(base[1][None], len(branches), axis=0)
    entries = [(k, c, low, high) for k, b in enumerate(branches) for c, (low, high) in b.bounds.items()]
    if entries:
        rows, cols, lows, highs = zip(*entries, strict=True)
        at = (np.array(rows), np.array(cols))
        lower[at] = np.maximum(lower[at], lows)
        upper[at] = np.minimum(upper[at], highs)
    return lower, upper


def _require_bounds(lower: np.ndarray, upper: np.ndarray, input_name: Callable[[int], str]) -> None:
    missing = ~(np.isfinite(lower) & np.isfinite(upper))
    if np.any(missing):
        column = int(np.argmax(missing.any(axis=0)))
        k = int(np.argmax(missing[:, column]))
        which = "lower" if not np.isfinite(lower[k, column]) else "upper"
        raise SpecError(
            f"input {input_name(column)} has no {which} bound"
            + (f" in input region {k} of {missing.shape[0]}" if missing.shape[0] > 1 else "")
            + f" ({int(missing.any(axis=0).sum())} inputs lack a bound); every input needs both"
        )


def _set_with_rows(
    branch: Branch, base: Box, columns: ColumnTable, dtype: str, exact_real: bool, input_name: Callable[[int], str]
) -> InputSet:
    """One branch with linear or strict input rows.

    A strict bound of a single input is closed to the next float inside: the same set of inputs
    for the deployed program. Over the reals it stays a strict row.
    """
    lower, upper = _box_matrix([branch], base)
    lower, upper = lower[0], upper[0]
    linear = [row for row in branch.input_rows if len(row.terms) > 1]
    bounds = [row for row in branch.input_rows if len(row.terms) == 1]
    for (column, sign), limit, _ in ((row.terms[0], row.limit, row.strict) for row in bounds):
        if sign > 0:
            upper[column] = min(upper[column], limit)
        else:
            lower[column] = max(lower[column], -limit)
    if not (np.all(np.isfinite(lower)) and np.all(np.isfinite(upper))):
        _tighten_by_rows(lower, upper, linear)
    _require_bounds(lower[None], upper[None], input_name)
    if exact_real:
        return _with_rows(lower, upper, linear + bounds, columns.n_inputs)
    nonempty = bool(np.all(lower <= upper))
    lower, upper = hull_of_deployed_inputs(lower, upper, dtype)
    for row in bounds:
        column, sign = row.terms[0]
        if sign > 0:
            upper[column] = min(upper[column], below(row.limit, dtype))
        else:
            lower[column] = max(lower[column], -below(row.limit, dtype))
        columns.note(f"strict input bounds were closed to the next {dtype} number inside")
    if nonempty and np.any(lower > upper):
        columns.note(f"a strict input bound excludes every {dtype} number of its input region")
    return _with_rows(lower, upper, linear, columns.n_inputs)


def _with_rows(lower: np.ndarray, upper: np.ndarray, rows: list[Row], n_inputs: int) -> InputSet:
    if not rows:
        return InputSet(lower, upper)
    coeffs, limits, strict = _dense(rows, {}, n_inputs)
    return InputSet(lower, upper, coeffs, limits, row_strict=strict)


def _tighten_by_rows(lower: np.ndarray, upper: np.ndarray, rows: list[Row]) -> None:
    """Derive missing box bounds from linear rows, exactly and then rounded outward, in place.

    For `sum a_i x_i <= b`: a_j x_j <= b - sum over i != j of min(a_i x_i).
    """
    for _ in range(_TIGHTEN_ROUNDS):
        changed = False
        for row in rows:
            for target, coefficient in row.terms:
                if math.isfinite(upper[target] if coefficient > 0 else lower[target]):
                    continue
                rest = Fraction(row.limit)
                for column, other in row.terms:
                    end = lower[column] if other > 0 else upper[column]
                    if column != target and not math.isfinite(end):
                        break
                    if column != target:
                        rest -= Fraction(other) * Fraction(float(end))
                else:
                    value = rest / Fraction(coefficient)
                    if coefficient > 0:
                        upper[target] = _outward(value, math.inf)
                    else:
                        lower[target] = _outward(value, -math.inf)
                    changed = True
        if not changed:
            return


def _outward(value: Fraction, direction: float) -> float:
    try:
        near = float(value)
    except OverflowError:
        return math.copysign(math.inf, direction)
    inside = Fraction(near) < value if direction > 0 else Fraction(near) > value
    return math.nextafter(near, direction) if inside else near


def _clauses(form: NormalForm, columns: ColumnTable, extras: list[int], width: int) -> dict[int, tuple[Clause, ...]]:
    """Dense clauses by the identity of the list they come from; equal clauses are built once."""
    position = {column: columns.n_outputs + k for k, column in enumerate(extras)}
    lists = {id(branch.clauses): branch.clauses for branch in form}
    distinct = list(dict.fromkeys(clause for clauses in lists.values() for clause in clauses))
    rows = [row for clause in distinct for row in clause]
    coeffs, limits, strict = _dense(rows, position, width, shift=columns.n_inputs)
    built: dict[ClauseRows, Clause] = {}
    start = 0
    for clause in distinct:
        end = start + len(clause)
        built[clause] = Clause(coeffs[start:end], limits[start:end], strict[start:end])
        start = end
    return {key: tuple(built[c] for c in dict.fromkeys(clauses)) for key, clauses in lists.items()}


def _dense(
    rows: list[Row], position: dict[int, int], width: int, shift: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients [R, width], limits [R] and strictness [R]; columns outside `position` are shifted."""
    coeffs = np.zeros((len(rows), width))
    entries = [
        (r, position.get(column, column - shift), value) for r, row in enumerate(rows) for column, value in row.terms
    ]
    if entries:
        at_row, at_column, values = zip(*entries, strict=True)
        coeffs[at_row, at_column] = values
    limits = np.array([row.limit for row in rows], dtype=np.float64)
    strict = np.array([row.strict for row in rows], dtype=bool)
    return coeffs, limits, strict
