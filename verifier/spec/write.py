"""Writing a Problem as a property file, so that properties made in Python can be shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal

import numpy as np

from verifier.errors import ShapeError, SpecError
from verifier.spec.problem import Case, Clause, InputSet, Problem

Shape = tuple[int, ...]
_TRUE, _FALSE = "(<= 0.0 0.0)", "(<= 1.0 0.0)"


def write_vnnlib(
    problem: Problem,
    input_shapes: Sequence[Shape],
    output_shapes: Sequence[Shape],
    version: str = "1.0",
    *,
    dtype: str = "float32",
    comment: str = "",
) -> str:
    """The problem as text that `load_query` reads back to the same sets.

    Args:
        problem: cases without lp balls other than boxes.
        input_shapes, output_shapes: shapes of the model's tensors in model order; VNN-LIB 1.0
            needs only their sizes.
        version: "1.0" or "2.0".
        dtype: the network's number type, declared in 2.0 unless the problem is `exact_real`.
        comment: put at the top, each line after `;`.
    Raises:
        SpecError: a constraint the language cannot express, or an unknown version.
        ShapeError: the shapes do not add up to the problem's sizes.
    """
    _check_sizes(problem, input_shapes, output_shapes)
    x_name: Callable[[int], str]
    y_name: Callable[[int], str]
    if version == "1.0":
        if problem.exact_real:
            raise SpecError("VNN-LIB 1.0 cannot ask for real arithmetic; write version 2.0")
        head, x_name, y_name = _declarations_1(input_shapes, output_shapes), "X_{}".format, "Y_{}".format
    elif version == "2.0":
        element = "real" if problem.exact_real else dtype
        head, x_names, y_names = _declarations_2(input_shapes, output_shapes, element)
        x_name, y_name = x_names.__getitem__, y_names.__getitem__
    else:
        raise SpecError(f"version: expected '1.0' or '2.0', got {version!r}")
    writer = _Writer(x_name, y_name, exact=problem.exact_real)
    lines = [f"; {line}" for line in comment.splitlines()] + head + [""]
    lines.extend(f"(assert {formula})" for formula in writer.problem(problem))
    return "\n".join(lines) + "\n"


def _check_sizes(problem: Problem, input_shapes: Sequence[Shape], output_shapes: Sequence[Shape]) -> None:
    inputs = sum(int(np.prod(shape, dtype=np.int64)) for shape in input_shapes)
    outputs = sum(int(np.prod(shape, dtype=np.int64)) for shape in output_shapes)
    sizes = {case.inputs.size for case in problem.cases}
    if outputs != problem.output_size or sizes - {inputs}:
        raise ShapeError(
            f"the shapes give {inputs} inputs and {outputs} outputs, the problem has "
            f"{sorted(sizes)} and {problem.output_size}"
        )


def _declarations_1(input_shapes: Sequence[Shape], output_shapes: Sequence[Shape]) -> list[str]:
    sizes = [sum(int(np.prod(s, dtype=np.int64)) for s in shapes) for shapes in (input_shapes, output_shapes)]
    return [f"(declare-const {letter}_{i} Real)" for letter, n in zip("XY", sizes, strict=True) for i in range(n)]


def _declarations_2(
    input_shapes: Sequence[Shape], output_shapes: Sequence[Shape], element: str
) -> tuple[list[str], list[str], list[str]]:
    lines = ["(vnnlib-version <2.0>)", "(declare-network f"]
    entries: list[list[str]] = []
    for letter, kind, shapes in (("X", "input", input_shapes), ("Y", "output", output_shapes)):
        names: list[str] = []
        for k, shape in enumerate(shapes):
            name = letter if len(shapes) == 1 else f"{letter}{k}"
            lines.append(f"  (declare-{kind} {name} {element} [{','.join(map(str, shape))}])")
            names.extend(f"{name}[{','.join(map(str, at))}]" if at else name for at in np.ndindex(*shape))
        entries.append(names)
    return [*lines, ")"], entries[0], entries[1]


class _Writer:
    """Formulas of the parts of a problem; `exact` writes every number to its last digit."""

    def __init__(self, x_name: Callable[[int], str], y_name: Callable[[int], str], *, exact: bool) -> None:
        self._x_name, self._y_name, self._exact = x_name, y_name, exact

    def problem(self, problem: Problem) -> list[str]:
        """Formulas to conjoin: one assertion each for a single case, else one `or` over the cases."""
        if len(problem.cases) == 1:
            return self._case(problem.cases[0])
        if not problem.cases:
            return [_FALSE]
        return ["(or\n  " + "\n  ".join(f"(and {' '.join(self._case(case))})" for case in problem.cases) + ")"]

    def _case(self, case: Case) -> list[str]:
        formulas = self._inputs(case.inputs)
        clauses = [self._clause(clause) for clause in case.clauses]
        if not clauses:
            formulas.append(_FALSE)
        elif len(clauses) == 1:
            formulas.append(clauses[0])
        else:
            formulas.append("(or " + " ".join(clauses) + ")")
        return formulas

    def _inputs(self, inputs: InputSet) -> list[str]:
        if inputs.ball is not None:
            raise SpecError(f"VNN-LIB has no norm constraints; an l{inputs.ball.p:g} ball cannot be written")
        formulas = []
        for i, (low, high) in enumerate(zip(inputs.lower.tolist(), inputs.upper.tolist(), strict=True)):
            formulas.append(f"(>= {self._x_name(i)} {self._number(low)})")
            formulas.append(f"(<= {self._x_name(i)} {self._number(high)})")
        if inputs.row_coeffs is not None and inputs.row_limits is not None:
            strict = np.zeros(len(inputs.row_limits), bool) if inputs.row_strict is None else inputs.row_strict
            for row, limit, is_strict in zip(inputs.row_coeffs, inputs.row_limits, strict, strict=True):
                formulas.append(self._row(row, float(limit), bool(is_strict), self._x_name))
        return formulas

    def _clause(self, clause: Clause) -> str:
        rows = [
            self._row(row, float(limit), bool(strict), self._y_name)
            for row, limit, strict in zip(clause.coeffs, clause.limits, clause.strict, strict=True)
        ]
        if not rows:
            return _TRUE
        return rows[0] if len(rows) == 1 else "(and " + " ".join(rows) + ")"

    def _row(self, coeffs: np.ndarray, limit: float, strict: bool, name: Callable[[int], str]) -> str:
        """`coeffs @ v <= limit`, in the shortest form that reads back to the same row."""
        at = np.flatnonzero(coeffs).tolist()
        values = [float(coeffs[i]) for i in at]
        less, greater = ("<", ">") if strict else ("<=", ">=")
        if values == [1.0]:
            return f"({less} {name(at[0])} {self._number(limit, strict)})"
        if values == [-1.0]:
            return f"({greater} {name(at[0])} {self._number(-limit, strict)})"
        if sorted(values) == [-1.0, 1.0] and limit == 0:
            up, down = (at[0], at[1]) if values[0] > 0 else (at[1], at[0])
            return f"({less} {name(up)} {name(down)})"
        terms = [
            name(i) if v == 1.0 else f"(- {name(i)})" if v == -1.0 else f"(* {self._number(v, True)} {name(i)})"
            for i, v in zip(at, values, strict=True)
        ]
        left = "0.0" if not terms else terms[0] if len(terms) == 1 else "(+ " + " ".join(terms) + ")"
        return f"({less} {left} {self._number(limit, True)})"

    def _number(self, value: float, exact: bool = False) -> str:
        """A decimal without exponent that reads back as the same double; `exact` is equal to it as a rational."""
        if not exact and not self._exact:
            return np.format_float_positional(value, unique=True, trim="0")
        text = format(Decimal(value), "f")
        return text if "." in text else text + ".0"
