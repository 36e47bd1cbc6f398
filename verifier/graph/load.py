"""Reading a network file of any supported format."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

from verifier.errors import NetworkError, VerifierError
from verifier.graph.ir import Graph

_GZIP_MAGIC = b"\x1f\x8b"


def read_bytes(path: str | Path) -> bytes:
    """A file's content, decompressed when it is gzip.

    Raises:
        NetworkError: missing, unreadable, empty or a damaged archive.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise NetworkError(f"{path}: no such file") from None
    except OSError as error:
        raise NetworkError(f"{path}: cannot be read: {error.strerror}") from error
    if data[:2] == _GZIP_MAGIC:
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise NetworkError(f"{path}: damaged gzip archive: {error}") from error
    if not data:
        raise NetworkError(f"{path}: the file is empty")
    return data


def load_network(path: str | Path, *, simplified: bool = True, hidden: Sequence[str] = ()) -> Graph:
    """Read .onnx or .nnet, each also gzip-compressed, into a checked canonical graph.

    Args:
        path: the file; the format follows from the name, or from the content where it does not say.
        simplified: fuse and tidy the graph (passes.simplify); off shows the file as it is.
        hidden: ONNX tensors to append to the outputs.
    Raises:
        NetworkError: the file cannot be read as a network; the message starts with the path.
        UnsupportedOperator: it holds an operator outside the supported set.
    """
    path = Path(path)
    data = read_bytes(path)
    stem = path.name.removesuffix(".gz")
    try:
        if stem.endswith(".nnet") or (not stem.endswith(".onnx") and data[:2] == b"//"):
            from verifier.graph.nnet import import_nnet

            graph = import_nnet(data, source=str(path))
        else:
            from verifier.graph.onnx.importer import import_onnx

            graph = import_onnx(data, source=str(path), folder=path.parent, hidden=hidden)
        if simplified:
            from verifier.graph.passes import simplify

            graph = simplify(graph)
    except VerifierError as error:
        error.args = (f"{path}: {error}",)
        raise
    return graph
