"""Reader for VNN-LIB 1.0, one pass over a token list.

The common lines of a large file, `(assert (<= X_7 0.25))` and comparisons inside `and`/`or`, are
single tokens, so that a file of ten megabytes takes about a second. Everything nested goes
through an explicit stack and is normalised as its parentheses close.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from verifier.errors import ShapeError, SpecError, VerifierError
from verifier.spec import rows as exact
from verifier.spec.columns import ColumnTable
from verifier.spec.normal_form import Bounds, NormalForm, conjunction, disjunction
from verifier.spec.rows import Polynomial, Row

_ATOM = r"([XY]_\d{1,9}|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)"
_COMPARISON = rf"\(\s*([<>]=?|=)\s+{_ATOM}\s+{_ATOM}\s*\)"
_TOKEN = re.compile(
    rf"\(\s*assert\s+{_COMPARISON}\s*\)"  # 0-2: operator, left, right
    rf"|{_COMPARISON}"  # 3-5
    r"|\(\s*declare-(?:const\s+|fun\s+)([XY]_\d{1,9})\s+(?:\(\s*\)\s*)?Real\s*\)"  # 6
    r"|\(\s*([^\s()]*)"  # 7: an opening parenthesis with its head (may be "")
    r"|(\)|[^\s()]+)"  # 8: a closing parenthesis or a symbol
)
_OPEN = re.compile(r"\(")
_COMMENT = re.compile(r";[^\n]*")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?\Z")
_VARIABLE = re.compile(r"([XY])_(\d{1,9})\Z")
_COMPARISONS = frozenset(("<=", ">=", "<", ">", "="))
_ARITHMETIC = frozenset("+-*")
_FREE = (-math.inf, math.inf)
_LOGIC = frozenset(("and", "or", "assert"))
_IGNORED = frozenset(("set-logic", "set-info", "set-option", "check-sat", "get-model", "exit"))


@dataclass(frozen=True)
class Parsed:
    """The meaning of a file: `form` within the box [lower, upper] (infinite where absent), [N_in]."""

    form: NormalForm
    lower: np.ndarray
    upper: np.ndarray
    columns: ColumnTable


def parse(text: str, n_inputs: int, n_outputs: int) -> Parsed:
    """Read a VNN-LIB 1.0 property of a network with the given flat sizes.

    Raises:
        SpecError: malformed text (the message names the line) or a normal form beyond the limit.
        ShapeError: the file declares other numbers of inputs and outputs than the network has.
    """
    if ";" in text:
        text = _COMMENT.sub("", text)
    reader = _Reader(n_inputs, n_outputs)
    try:
        reader.run(text)
    except VerifierError as error:
        line = _line_of_token(text, reader.token)
        raise type(error)(f"line {line}: {error}") from error
    reader.check_declarations()
    return Parsed(
        conjunction(reader.parts, reader.columns),
        np.array(reader.lower),
        np.array(reader.upper),
        reader.columns,
    )


def _line_of_token(text: str, index: int) -> int:
    """Line number, from 1, of a token: searched again only when there is an error to report."""
    for k, match in enumerate(_TOKEN.finditer(text)):
        if k == index:
            return text.count("\n", 0, match.start()) + 1
    return text.count("\n") + 1


class _Frame:
    """An open parenthesis: its head symbol, the values read so far, and its token number."""

    __slots__ = ("bounds", "head", "token", "values")

    def __init__(self, head: str, token: int) -> None:
        self.head, self.token = head, token
        self.values: list[Any] = []
        self.bounds: Bounds = {}


class _Reader:
    def __init__(self, n_inputs: int, n_outputs: int) -> None:
        self.columns = ColumnTable(n_inputs, n_outputs)
        self.n_inputs, self.n_outputs = n_inputs, n_outputs
        self.lower = [-math.inf] * n_inputs
        self.upper = [math.inf] * n_inputs
        self.parts: list[Any] = []
        self.stack: list[_Frame] = []
        self.declared: set[str] = set()
        self.token = 0

    def run(self, text: str) -> None:
        """Read every token; on error `self.token` is the number of the offending one."""
        stack = self.stack
        for token, (op, left, right, inner_op, inner_left, inner_right, name, head, word) in enumerate(
            _TOKEN.findall(text)
        ):
            self.token = token
            if op:
                if stack:
                    raise SpecError(f"an assert inside '({stack[-1].head}'; a parenthesis is missing above")
                self._flat_assertion(op, left, right)
            elif inner_op:
                if not stack or stack[-1].head not in _LOGIC:
                    raise SpecError("a comparison is only legal inside assert, and, or")
                frame = stack[-1]
                taken = frame.head == "and" and inner_left[0] == "X"
                if not (taken and self._bound(frame, inner_op, inner_left, inner_right)):
                    frame.values.append(self._comparison(inner_op, inner_left, inner_right))
            elif word == ")":
                self._close()
            elif word:
                self._symbol(word)
            elif name:
                if stack:
                    raise SpecError(f"a declaration inside '({stack[-1].head}'; a parenthesis is missing above")
                self.declared.add(name)
            else:
                self._open(head, token)
        if stack:
            self.token = stack[-1].token
            raise SpecError(f"'({stack[-1].head}' is never closed ({len(stack)} open parentheses at the end)")

    def _flat_assertion(self, op: str, left: str, right: str) -> None:
        """One bound on one input goes straight into the box; anything else is a list of rows."""
        if left[0] == "X" and right[0] not in "XY" and op[-1] == "=" and len(op) == 2:
            column, value = int(left[2:]), float(right)
            if column >= self.n_inputs:
                self._variable(left)
            if value - value != 0.0:
                raise SpecError(f"the number '{right[:40]}' is outside the range of a double")
            if op == "<=":
                if value < self.upper[column]:
                    self.upper[column] = value
            elif value > self.lower[column]:
                self.lower[column] = value
        else:
            self.parts.append(self._comparison(op, left, right))

    def _bound(self, frame: _Frame, op: str, left: str, right: str) -> bool:
        """Take a closed bound of one input straight into an `and`'s box; False for anything else.

        Files of a hundred thousand boxes consist of these.
        """
        if right[0] in "XY" or len(op) != 2 or op[1] != "=":
            return False
        column, value = int(left[2:]), float(right)
        if column >= self.n_inputs or value - value != 0.0 or op[0] not in "<>":
            return False
        low, high = frame.bounds.get(column, _FREE)
        if op == "<=":
            frame.bounds[column] = (low, value if value < high else high)
        else:
            frame.bounds[column] = (value if value > low else low, high)
        return True

    def _comparison(self, op: str, left: str, right: str) -> Row | NormalForm:
        """A comparison between two atoms; see `rows.rounded_row` for the rounding."""
        rows = exact.compare_atoms(
            op,
            self._variable(left) if left[0] in "XY" else left,
            self._variable(right) if right[0] in "XY" else right,
            self.columns,
        )
        return rows[0] if len(rows) == 1 else conjunction(rows, self.columns)

    def _variable(self, name: str) -> int:
        index = int(name[2:])
        count, what, first = (
            (self.n_inputs, "inputs", 0) if name[0] == "X" else (self.n_outputs, "outputs", self.n_inputs)
        )
        if index >= count:
            message = f"{name}: the network has {count} {what}, {name[0]}_0 to {name[0]}_{count - 1}"
            if name in self.declared:
                raise ShapeError(f"{message}, but the property declares {name}; is it the right network?")
            raise SpecError(message)
        return first + index

    def _atom(self, word: str) -> Polynomial:
        if _VARIABLE.match(word):
            return {(self._variable(word),): Fraction(1)}
        if _NUMBER.match(word):
            value = exact.exact_number(word)
            return {(): value} if value else {}
        raise SpecError(f"'{word[:40]}' is neither a number nor a variable X_i or Y_i")

    def _symbol(self, word: str) -> None:
        if not self.stack:
            raise SpecError(f"'{word[:40]}' outside of any parentheses")
        frame = self.stack[-1]
        if frame.head in _COMPARISONS or frame.head in _ARITHMETIC:
            frame.values.append(self._atom(word))
        elif frame.head not in _IGNORED:
            raise SpecError(f"'{word[:40]}' is not a formula; '({frame.head}' takes comparisons, and, or")

    def _open(self, head: str, token: int) -> None:
        parent = self.stack[-1].head if self.stack else ""
        if head in ("and", "or") or head in _COMPARISONS:
            legal = parent in _LOGIC
        elif head in _ARITHMETIC:
            legal = parent in _COMPARISONS or parent in _ARITHMETIC
        elif head == "assert" or head in _IGNORED:
            legal = not self.stack
        elif head.startswith("declare-"):
            raise SpecError(
                "cannot read this declaration; expected (declare-const X_0 Real) or (declare-const Y_0 Real)"
            )
        else:
            raise SpecError(f"'({head[:40]}' is not a form of VNN-LIB 1.0 (assert, and, or, <=, >=, <, >, =, +, -, *)")
        if not legal:
            raise SpecError(
                f"'({head}' is not legal inside '({parent}'" if parent else f"'({head}' outside of an assert"
            )
        self.stack.append(_Frame(head, token))

    def _close(self) -> None:
        if not self.stack:
            raise SpecError("a closing parenthesis without an opening one")
        frame = self.stack.pop()
        if frame.head in _IGNORED:
            return
        (self.stack[-1].values if self.stack else self.parts).append(self._value(frame))

    def _value(self, frame: _Frame) -> Row | NormalForm | Polynomial:
        """The formula or polynomial of a closed form."""
        head, values = frame.head, frame.values
        if not values and not frame.bounds:
            raise SpecError(f"'({head}' is empty")
        if head == "assert":
            if len(values) != 1:
                raise SpecError(f"assert takes one formula, got {len(values)}; join them with (and ...)")
            return values[0]
        if head == "and":
            return conjunction(values, self.columns, frame.bounds)
        if head == "or":
            return disjunction(values, self.columns)
        if head in _COMPARISONS:
            if len(values) != 2:
                raise SpecError(f"'({head}' takes two sides, got {len(values)}")
            return conjunction(exact.compare(head, values[0], values[1], self.columns), self.columns)
        if head == "+":
            return exact.add(values)
        if head == "-":
            negated = [exact.negate(value) for value in values]
            return exact.add([values[0], *negated[1:]]) if len(values) > 1 else negated[0]
        product = values[0]
        for value in values[1:]:
            product = exact.multiply(product, value, self.columns)
        return product

    def check_declarations(self) -> None:
        """Compare the declared variables with the network's sizes."""
        declared_inputs = sum(name[0] == "X" for name in self.declared)
        declared_outputs = len(self.declared) - declared_inputs
        if (declared_inputs, declared_outputs) != (self.n_inputs, self.n_outputs):
            raise ShapeError(
                f"the property declares {declared_inputs} inputs and {declared_outputs} outputs, the network has "
                f"{self.n_inputs} inputs and {self.n_outputs} outputs; is it the right network?"
            )
