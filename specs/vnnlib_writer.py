"""Properties as VNN-LIB text, versions 1.0 and 2.0.

A property asks for an unsafe output: `sat` means that an image in the set is classified otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Property:
    """An unsafe set over the 64 inputs and 10 outputs of a digit classifier.

    Attributes:
        name: also the stem of the file.
        version: "1.0" or "2.0".
        comment: what is asked, one line.
        boxes: (lower, upper) decimals [64]; with several, the image may lie in any of them.
        clauses: any of them makes an output unsafe; each is a conjunction of rows
            (coefficients by output, limit): sum(coefficient * y) <= limit.
        input_rows: rows over the inputs that hold as well.
        strict: the clauses' rows use `<`.
        image, label: what the property is about, for reports.
    """

    name: str
    version: str
    comment: str
    boxes: Sequence[tuple[np.ndarray, np.ndarray]]
    clauses: Sequence[Sequence[tuple[dict[int, float], float]]]
    input_rows: Sequence[tuple[dict[int, float], float]] = ()
    strict: bool = False
    image: np.ndarray | None = None
    label: int = -1


def decimal(value: float) -> str:
    """Six decimals, never an exponent, as VNN-LIB 2.0 wants it."""
    return f"{value:.6f}"


def text(prop: Property, input_shape: tuple[int, ...]) -> str:
    """The property as a file's text."""
    return _text_1(prop) if prop.version == "1.0" else _text_2(prop, input_shape)


def _text_1(prop: Property) -> str:
    lines = [f"; {prop.comment}"]
    lines += [f"(declare-const X_{i} Real)" for i in range(64)]
    lines += [f"(declare-const Y_{i} Real)" for i in range(10)]
    lines += _assertions(prop, [f"X_{i}" for i in range(64)], [f"Y_{i}" for i in range(10)])
    return "\n".join(lines) + "\n"


def _text_2(prop: Property, input_shape: tuple[int, ...]) -> str:
    shape = ",".join(map(str, input_shape))
    inputs = [f"X[{','.join(map(str, index))}]" for index in np.ndindex(*input_shape)]
    lines = [
        f"; {prop.comment}",
        "(vnnlib-version <2.0>)",
        "(declare-network f",
        f"  (declare-input X float32 [{shape}])",
        "  (declare-output Y float32 [1,10]))",
        *_assertions(prop, inputs, [f"Y[0,{i}]" for i in range(10)]),
    ]
    return "\n".join(lines) + "\n"


def _assertions(prop: Property, inputs: list[str], outputs: list[str]) -> list[str]:
    boxes = [_bounds(box, inputs) for box in prop.boxes]
    if len(boxes) == 1:
        lines = [f"(assert {bound})" for bound in boxes[0]]
    else:
        lines = ["(assert (or", *(f"  (and {' '.join(bounds)})" for bounds in boxes), "))"]
    lines += [f"(assert {_row(row, limit, inputs, '<=')})" for row, limit in prop.input_rows]
    relation = "<" if prop.strict else "<="
    clauses = [[_row(row, limit, outputs, relation) for row, limit in clause] for clause in prop.clauses]
    joined = [rows[0] if len(rows) == 1 else f"(and {' '.join(rows)})" for rows in clauses]
    return [*lines, *([f"(assert {joined[0]})"] if len(joined) == 1 else ["(assert (or", *joined, "))"])]


def _bounds(box: tuple[np.ndarray, np.ndarray], inputs: list[str]) -> list[str]:
    pairs = zip(inputs, *box, strict=True)
    return [f"({op} {x} {decimal(v)})" for x, low, high in pairs for op, v in ((">=", low), ("<=", high))]


def _row(row: dict[int, float], limit: float, names: list[str], relation: str) -> str:
    """`y_a <= y_b` where the row is a plain comparison, the weighted sum otherwise."""
    if limit == 0 and sorted(row.values()) == [-1.0, 1.0]:
        a, b = (next(i for i, c in row.items() if c == sign) for sign in (1.0, -1.0))
        return f"({relation} {names[a]} {names[b]})"
    terms = [names[i] if c == 1.0 else f"(* {decimal(c)} {names[i]})" for i, c in row.items()]
    left = terms[0] if len(terms) == 1 else f"(+ {' '.join(terms)})"
    return f"({relation} {left} {decimal(limit)})"
