"""Input sets from the command line: a property file, an npz box, or a ball around a stored input."""

from __future__ import annotations

import math
import os
import zipfile
from typing import TYPE_CHECKING

import numpy as np

from verifier.errors import SpecError

if TYPE_CHECKING:
    from verifier.graph.ir import Graph
    from verifier.spec.problem import InputSet

#: --norm -> p
NORMS = {"linf": math.inf, "l2": 2.0, "l1": 1.0}
FORMS = "a .vnnlib file, an .npz with 'lower' and 'upper', or CENTRE.npy:EPS"


def is_ball(text: str) -> bool:
    """True for CENTRE.npy:EPS."""
    return text.rpartition(":")[0].endswith(".npy")


def read_box(text: str, graph: Graph, norm: str = "linf") -> list[InputSet]:
    """The input sets that `text` names, see `FORMS`; a property file may hold several.

    Raises:
        SpecError: no such form or file, NaN, or a size that does not fit the network's inputs.
    """
    if is_ball(text):
        return [read_ball(text, graph, norm)]
    if norm != "linf":
        raise SpecError(f"--norm {norm}: expected CENTRE.npy:EPS as the input set, got '{text}'")
    if text.endswith(".npz"):
        return [_npz(text, graph)]
    if text.endswith((".vnnlib", ".vnnlib.gz")):
        from verifier.spec.load import load_query

        query = load_query(text, graph)
        sets = [case.inputs for case in query.problem.cases if not case.inputs.is_empty_box]
        if query.graph.input_size != graph.input_size or not sets:
            raise SpecError(f"--input {text}: expected bounds on every input of the one network")
        return _distinct(sets)
    raise SpecError(f"--input: expected {FORMS}, got '{text}'")


def read_ball(text: str, graph: Graph, norm: str) -> InputSet:
    """CENTRE.npy:EPS under a norm of `NORMS`.

    Raises:
        SpecError: a bad file, size or radius.
    """
    from verifier.spec.problem import lp_ball

    path, _, radius = text.rpartition(":")
    try:
        eps = float(radius)
    except ValueError:
        eps = math.nan
    if not 0 <= eps < math.inf:
        raise SpecError(f"'{text}': expected a radius >= 0 after the colon, got '{radius}'")
    center = _flat(_loaded(path), graph, path)
    return _deployed(lp_ball(center, eps, NORMS[norm]), graph)


def _npz(path: str, graph: Graph) -> InputSet:
    from verifier.spec.problem import InputSet

    file = _loaded(path)
    missing = [key for key in ("lower", "upper") if key not in file]
    if missing:
        raise SpecError(f"{path}: expected arrays 'lower' and 'upper', got {sorted(file)}")
    lower, upper = (_flat(file[key], graph, f"{path}[{key}]") for key in ("lower", "upper"))
    if np.any(lower > upper):
        first = int(np.flatnonzero(lower > upper)[0])
        raise SpecError(f"{path}: input {first} has lower {lower[first]:g} above upper {upper[first]:g}")
    return _deployed(InputSet(lower, upper), graph)


def _loaded(path: str):
    if not os.path.isfile(path):
        raise SpecError(f"'{path}': no such file; expected {FORMS}")
    try:
        found = np.load(path, allow_pickle=False)
        return dict(found) if hasattr(found, "files") else found
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise SpecError(f"'{path}': cannot be read as a numpy file: {error}") from error


def _flat(value: np.ndarray, graph: Graph, where: str) -> np.ndarray:
    if np.asarray(value).dtype.kind not in "fiub":
        raise SpecError(f"{where}: expected numbers, got {np.asarray(value).dtype}")
    flat = np.asarray(value, dtype=np.float64).reshape(-1)
    if flat.size != graph.input_size:
        raise SpecError(f"{where}: expected {graph.input_size} numbers (N_in of the network), got {flat.size}")
    if not np.all(np.isfinite(flat)):
        raise SpecError(f"{where}: holds NaN or infinite values")
    return flat


def _deployed(inputs: InputSet, graph: Graph) -> InputSet:
    """Points that the program's number type lacks become the two numbers around them."""
    from verifier.spec.problem import Case, Problem
    from verifier.spec.representable import with_deployed_inputs

    return with_deployed_inputs(Problem((Case(inputs, ()),), graph.output_size), graph.dtype).cases[0].inputs


def _distinct(sets: list[InputSet]) -> list[InputSet]:
    found: dict[bytes, InputSet] = {}
    for one in sets:
        key = b"".join(np.asarray(a).tobytes() for a in (one.lower, one.upper, one.row_coeffs, one.row_limits)
                       if a is not None)  # fmt: skip
        found.setdefault(key, one)
    return list(found.values())
