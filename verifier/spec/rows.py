"""Comparisons as linear rows `terms <= limit`, from exact polynomial arithmetic.

Numbers of a property file are decimals; a row holds doubles. The rounding in between never
removes an unsafe point (see `rounded_row`).
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import NamedTuple

from verifier.errors import SpecError
from verifier.spec.columns import ColumnTable

Polynomial = dict[tuple[int, ...], Fraction]
"""Monomial (ascending column numbers, with repetition; () is the constant) -> coefficient."""

_MAX_TERMS = 100_000
_MAX_EXPONENT = 400
_MAX_QUOTIENT = 10**300
_DECIMAL = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE]([-+]?\d{1,9}))?\Z")


class Row(NamedTuple):
    """`sum(coefficient * column) <= limit`, or `<` where strict; terms ascend by column, none is zero."""

    terms: tuple[tuple[int, float], ...]
    limit: float
    strict: bool = False


def exact_number(text: str) -> Fraction:
    """The rational value of a decimal.

    Raises:
        SpecError: not a decimal, or a magnitude no double can hold.
    """
    match = _DECIMAL.match(text)
    if match is None or len(text) > 4000:
        raise SpecError(f"'{text[:40]}' is not a number")
    if abs(int(match[1] or 0)) > _MAX_EXPONENT or math.isinf(float(text)):
        raise SpecError(f"the number '{text[:40]}' is outside the range of a double")
    return Fraction(text)


def add(parts: list[Polynomial]) -> Polynomial:
    """Sum of polynomials; zero coefficients are dropped."""
    total: Polynomial = {}
    for part in parts:
        for monomial, coefficient in part.items():
            total[monomial] = total.get(monomial, Fraction(0)) + coefficient
    return {m: c for m, c in total.items() if c}


def negate(part: Polynomial) -> Polynomial:
    """The polynomial times -1."""
    return {m: -c for m, c in part.items()}


def multiply(left: Polynomial, right: Polynomial, columns: ColumnTable) -> Polynomial:
    """Product of two polynomials.

    Raises:
        SpecError: the product has too many terms or too high a degree.
    """
    if len(left) * len(right) > _MAX_TERMS:
        raise SpecError(f"a product with {len(left) * len(right)} terms is too large (limit {_MAX_TERMS})")
    total: Polynomial = {}
    for a, ca in left.items():
        for b, cb in right.items():
            columns.check_degree(len(a) + len(b))
            key = tuple(sorted(a + b))
            total[key] = total.get(key, Fraction(0)) + ca * cb
    return {m: c for m, c in total.items() if c}


def compare(
    op: str, left: Polynomial, right: Polynomial, columns: ColumnTable, *, exact_real: bool = False
) -> list[Row]:
    """The rows whose conjunction is `left op right`, op one of <=, <, >=, >, = and ==."""
    difference = add([left, negate(right)])
    if op in ("=", "=="):
        rows = [_row(difference, False, columns, exact_real), _row(negate(difference), False, columns, exact_real)]
        return rows
    if op in (">", ">="):
        difference = negate(difference)
    return [_row(difference, op in ("<", ">"), columns, exact_real)]


def compare_atoms(
    op: str, left: int | str, right: int | str, columns: ColumnTable, *, exact_real: bool = False
) -> list[Row]:
    """`compare` for two atoms, each a column number or a decimal; most rows of a large file are such.

    A plain bound needs no exact arithmetic: see `rounded_row` for why nearest rounding is right.
    """
    if op in ("=", "=="):
        below = compare_atoms("<=", left, right, columns, exact_real=exact_real)
        return below + compare_atoms(">=", left, right, columns, exact_real=exact_real)
    if op[0] == ">":
        op, left, right = "<" + op[1:], right, left
    strict = op == "<"
    if isinstance(left, int) and isinstance(right, int):
        if left == right:
            return [Row((), 0.0, strict)]
        return [Row(((left, 1.0), (right, -1.0)) if left < right else ((right, -1.0), (left, 1.0)), 0.0, strict)]
    if isinstance(left, str) and isinstance(right, str):
        return [_row(add([_constant(left), negate(_constant(right))]), strict, columns, exact_real)]
    if isinstance(left, int):
        column, sign, number = left, 1.0, str(right)
    else:
        column, sign, number = int(right), -1.0, left
    if strict or exact_real:
        limit = exact_number(number) * int(sign)
        return [rounded_row({column: Fraction(int(sign))}, limit, strict, columns, exact_real=exact_real)]
    value = float(number)
    if value - value != 0.0:
        raise SpecError(f"the number '{number[:40]}' is outside the range of a double")
    return [Row(((column, sign),), sign * value, False)]


def _constant(text: str) -> Polynomial:
    value = exact_number(text)
    return {(): value} if value else {}


def _row(difference: Polynomial, strict: bool, columns: ColumnTable, exact_real: bool) -> Row:
    """`difference <= 0` with the constant moved to the right and products registered as columns."""
    terms = {(m[0] if len(m) == 1 else columns.product(m)): coefficient for m, coefficient in difference.items() if m}
    return rounded_row(terms, -difference.get((), Fraction(0)), strict, columns, exact_real=exact_real)


def rounded_row(
    terms: dict[int, Fraction], limit: Fraction, strict: bool, columns: ColumnTable, *, exact_real: bool = False
) -> Row:
    """The row in doubles; no point that satisfies the exact row is lost.

    - One variable v that the program holds as a float: the row is divided by |coefficient|, and
      the limit is rounded to nearest. Rounding is monotone and leaves v alone, so v <= c implies
      v <= double(c); v < c implies v < double(c), or v <= double(c) where double(c) < c.
    - Otherwise coefficients that are not doubles are made integers by a common factor, and the
      limit is rounded up. Coefficients with more digits than that allows are rounded to nearest
      and noted: they were printed from doubles.
    """
    if not terms:
        return Row((), (limit > 0) - (limit < 0), strict)
    ordered = sorted(terms.items())
    nearest = False
    if len(ordered) == 1 and abs(limit / ordered[0][1]) <= _MAX_QUOTIENT:
        column, coefficient = ordered[0]
        limit = limit / abs(coefficient)
        ordered = [(column, Fraction(1 if coefficient > 0 else -1))]
        nearest = not exact_real and columns.is_program_value(column)
    else:
        ordered, limit = _clear_denominators(ordered, limit, columns)
    rounded = _to_double(limit)
    if not nearest and Fraction(rounded) < limit:
        rounded = math.nextafter(rounded, math.inf)
    strict = strict and Fraction(rounded) >= limit
    return Row(tuple((c, _to_double(v)) for c, v in ordered), rounded, strict)


def _clear_denominators(
    ordered: list[tuple[int, Fraction]], limit: Fraction, columns: ColumnTable
) -> tuple[list[tuple[int, Fraction]], Fraction]:
    if all(_is_double(v) for _, v in ordered):
        return ordered, limit
    factor = math.lcm(*(v.denominator for _, v in ordered))
    scaled = [(c, v * factor) for c, v in ordered]
    if all(_is_double(v) for _, v in scaled):
        return scaled, limit * factor
    columns.note("coefficients with more digits than a double holds were rounded to nearest")
    return ordered, limit


def _is_double(value: Fraction) -> bool:
    try:
        return Fraction(float(value)) == value
    except OverflowError:
        return False


def _to_double(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise SpecError("arithmetic on the constants of a comparison leaves the range of a double") from error
