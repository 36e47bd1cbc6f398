"""Writing and reading counterexamples in the format of the specification's own language.

Numbers are written with as many digits as it takes to read the very same double back, so that a
float32 comes back unchanged whether a reader uses float32 or float64.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from verifier.errors import ShapeError, SpecError
from verifier.spec.query import Query, Variable

_PAIR = re.compile(r"\(\s*([XY])_(\d{1,9})\s+([^\s()]+)\s*\)")
_HEADER = re.compile(r"^\s*(\S+)\s+(\S+)\s+\[([\d\s,]*)\]\s*$")


def write_witness(
    query: Query,
    x: np.ndarray,
    y: np.ndarray,
    hidden: Mapping[tuple[str, str], np.ndarray] | None = None,
) -> str:
    """A counterexample as text, with a final newline.

    VNN-LIB 1.0: `((X_0 v)`, one pair a line, all X then all Y, `)` at the end. VNN-LIB 2.0: for
    every declared variable in order a line `name type [d1,d2]`, then one value a line, row-major.

    Args:
        query: the question; its `variables` give the format.
        x: [N_in], flat query input. y: the networks' concatenated outputs, as replayed.
        hidden: (network, tensor) -> flat values; needed where hidden variables are declared.
    Raises:
        ShapeError: x or y have the wrong length. SpecError: a hidden variable's values are missing.
    """
    x, y = np.asarray(x).reshape(-1), np.asarray(y).reshape(-1)
    if x.size != query.graph.input_size or y.size != query.model_output_size:
        raise ShapeError(
            f"witness: expected {query.graph.input_size} inputs and {query.model_output_size} outputs, "
            f"got {x.size} and {y.size}"
        )
    x = x[query.input_map]
    if query.version == "1.0":
        pairs = [f"(X_{i} {_text(v)})" for i, v in enumerate(x)] + [f"(Y_{i} {_text(v)})" for i, v in enumerate(y)]
        return "(" + "\n".join(pairs) + ")\n"
    lines = []
    for variable in query.variables:
        shape = ",".join(map(str, variable.shape))
        lines.append(f"{variable.name} {variable.element_type} [{shape}]")
        lines.extend(map(_text, _entries(variable, x, y, hidden or {})))
    return "\n".join(lines) + "\n"


def _entries(
    variable: Variable, x: np.ndarray, y: np.ndarray, hidden: Mapping[tuple[str, str], np.ndarray]
) -> np.ndarray:
    if variable.kind == "hidden":
        values = hidden.get((variable.network, variable.tensor))
        if values is None:
            raise SpecError(f"witness: no values for hidden variable {variable.name} ('{variable.tensor}')")
        return values
    source = x if variable.kind == "input" else y
    return source[variable.offset : variable.offset + variable.size]


def _text(value: float) -> str:
    return np.format_float_positional(np.float64(value), unique=True, trim="0")


def read_witness(text: str, query: Query | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The flat query input and the networks' outputs of a written witness, float64.

    A first line `sat`, as result files have it, is skipped.

    Args:
        text: a witness of either language.
        query: needed for VNN-LIB 2.0, whose witnesses do not say which variables are inputs.
    Returns:
        x [N_in] and y [N_out]; y is empty if the witness lists no outputs.
    Raises:
        SpecError: malformed text, gaps in the indices, or values that are no numbers.
    """
    text = re.sub(r"\A\s*sat\b", "", text)
    if text.lstrip().startswith("("):
        x, y = _read_1(text)
    elif query is None:
        raise SpecError("witness: reading a VNN-LIB 2.0 witness needs the query it answers")
    else:
        x, y = _read_2(text, query)
    if query is None:
        return x, y
    if x.size != query.input_map.size or y.size not in (0, query.model_output_size):
        raise SpecError(
            f"witness: expected {query.input_map.size} inputs and {query.model_output_size} outputs, "
            f"got {x.size} and {y.size}"
        )
    flat = x[query.input_positions]
    if not np.array_equal(flat[query.input_map], x):
        raise SpecError("witness: inputs that the property equates have different values")
    return flat, y


def _read_1(text: str) -> tuple[np.ndarray, np.ndarray]:
    rest = _PAIR.sub("", text).split()
    if "".join(rest) not in ("()", ""):
        raise SpecError(f"witness: expected ((X_0 value) ... (Y_0 value)), got '{' '.join(rest)[:40]}'")
    found: dict[str, dict[int, float]] = {"X": {}, "Y": {}}
    for kind, index, value in _PAIR.findall(text):
        found[kind][int(index)] = _number(value)
    arrays = []
    for kind, values in found.items():
        if values and max(values) >= len(values):
            raise SpecError(f"witness: {len(values)} values of {kind}, but the largest index is {max(values)}")
        arrays.append(np.array([values[i] for i in range(len(values))]))
    return arrays[0], arrays[1]


def _read_2(text: str, query: Query) -> tuple[np.ndarray, np.ndarray]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    declared = {variable.name: variable for variable in query.variables}
    x = np.full(query.input_map.size, np.nan)
    y = np.full(query.model_output_size, np.nan)
    seen: set[str] = set()
    at = 0
    while at < len(lines):
        header = _HEADER.match(lines[at])
        variable = declared.get(header[1]) if header else None
        if variable is None:
            raise SpecError(f"witness: expected a declared variable `name type [shape]`, got '{lines[at][:60]}'")
        values = np.array([_number(line) for line in lines[at + 1 : at + 1 + variable.size]])
        if values.size != variable.size:
            raise SpecError(f"witness: {variable.name} needs {variable.size} values, got {values.size}")
        if variable.kind != "hidden":
            target = x if variable.kind == "input" else y
            target[variable.offset : variable.offset + variable.size] = values
        seen.add(variable.name)
        at += 1 + variable.size
    missing = [v.name for v in query.variables if v.kind == "input" and v.name not in seen]
    if missing:
        raise SpecError(f"witness: no values for input {missing[0]}")
    outputs = [v.name for v in query.variables if v.kind == "output"]
    return x, (y if all(name in seen for name in outputs) else np.empty(0))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise SpecError(f"witness: '{text[:40]}' is not a number") from error
