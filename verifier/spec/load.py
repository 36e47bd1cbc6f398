"""Property file in, Query out: the only place that knows there are two languages."""

from __future__ import annotations

import gc
import gzip
import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from verifier.errors import ShapeError, SpecError
from verifier.graph.ir import Graph
from verifier.spec import vnnlib1
from verifier.spec.assemble import assemble, extra_columns
from verifier.spec.query import Query, flat_variables
from verifier.spec.query_graph import query_graph

_VERSION_2 = re.compile(r"^\s*\(\s*vnnlib-version\b", re.MULTILINE)


def load_query(path: str | Path, networks: Mapping[str, Graph] | Graph) -> Query:
    """Read a `.vnnlib` file (also gzip-compressed) and bind it to its networks.

    Args:
        path: VNN-LIB 1.0 or 2.0; a `(vnnlib-version` form means 2.0.
        networks: the network, or declared name -> network for several.
    Raises:
        SpecError: the file cannot be read; syntax, with its line; an input without bounds.
        ShapeError: declared sizes differ from the network's.
    """
    text = read_text(path)
    collecting = gc.isenabled()
    # A large file becomes millions of small live objects; walking them again and again frees nothing.
    gc.disable()
    try:
        return parse_query(text, networks)
    except (SpecError, ShapeError) as error:
        raise type(error)(f"{Path(path).name}: {error}") from error
    finally:
        if collecting:
            gc.enable()


def read_text(path: str | Path) -> str:
    """The text of a plain or gzip-compressed file.

    Raises:
        SpecError: missing file, damaged compression, or bytes that are no UTF-8 text.
    """
    try:
        data = Path(path).read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read the property file {path}: {error}") from error


def hidden_tensors(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Network name -> ONNX tensors the property reads inside it, for `load_network(..., hidden=...)`.

    Raises:
        SpecError: the file cannot be read.
    """
    text = read_text(path)
    if "declare-hidden" not in text:
        return {}
    from verifier.spec.vnnlib2_text import hidden_tensors as declared

    return declared(text)


def parse_query(text: str, networks: Mapping[str, Graph] | Graph) -> Query:
    """`load_query` for text already in memory."""
    if _VERSION_2.search(text):
        from verifier.spec.vnnlib2 import read_query

        return read_query(text, networks)
    graphs = {"f": networks} if isinstance(networks, Graph) else dict(networks)
    if len(graphs) != 1:
        raise SpecError(f"a VNN-LIB 1.0 property speaks about one network, got {len(graphs)}: {sorted(graphs)}")
    ((name, graph),) = graphs.items()
    parsed = vnnlib1.parse(text, graph.input_size, graph.output_size)
    numbers = extra_columns(parsed.form, parsed.columns)
    extras = tuple(parsed.columns[number] for number in numbers)
    identity = np.arange(graph.input_size)
    problem = assemble(parsed.form, (parsed.lower, parsed.upper), parsed.columns, numbers, dtype=graph.dtype)
    analysed = query_graph({name: graph}, identity, graph.input_size, extras)
    return Query(analysed, problem, "1.0", flat_variables(graph), {name: graph}, identity, extras)
