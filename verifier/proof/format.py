"""What a proof file holds: for every clause of a property a tree of splits, and what proves its leaves.

A file is a ZIP of NumPy arrays (no pickles) and a JSON header. Trees are stored in preorder, a node's first child next
to it, so that the children of a node cover it by construction: x_i <= at and x_i >= at, or z >= 0 and z <= 0.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from verifier.errors import VerifierError
from verifier.outcome import Soundness

VERSION = 1
LEAF, INPUT, NEURON = 0, 1, 2


class ProofError(VerifierError):
    """A file that is no proof, or one of something else."""


@dataclass(frozen=True)
class Tree:
    """Splits of one case's input set, for some of its clauses.

    Attributes:
        case: number of the case; clauses: int [C], numbers of its clauses that every leaf refutes.
        kind: uint8 [T], LEAF, INPUT or NEURON, in preorder.
        number: int32 [T], the input or neuron that is split, 0 at leaves. Neurons are those that kinked steps read.
        at: float64 [T], where an input is split; 0 elsewhere.
        free: int32 [F], neurons whose lower slopes are given.
        slopes: uint8 [U, F], in 1/255 of their range; leaf: int32 [L], the row of each leaf, -1 for default slopes.
        multipliers: float32 [M], one for every split of a neuron above a leaf, top first, leaf after leaf.
    """

    case: int
    clauses: np.ndarray
    kind: np.ndarray
    number: np.ndarray
    at: np.ndarray
    free: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    slopes: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    leaf: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    multipliers: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))


@dataclass(frozen=True)
class NeuronRows:
    """Slopes that bound single neurons over a case's whole box, for all of its trees.

    Attributes:
        case: number of the case.
        neuron: int32 [R], neurons that are bounded; side: int8 [R], 1 from below, -1 from above.
        free: int32 [F]; slopes: uint8 [R, F], as in `Tree`.
    """

    case: int
    neuron: np.ndarray
    side: np.ndarray
    free: np.ndarray
    slopes: np.ndarray


@dataclass(frozen=True)
class Proof:
    """That no input of a property is unsafe.

    Attributes:
        networks, spec: SHA-256 of the files it is about, networks in the order of their names.
        soundness: IEEE_FLOAT or REAL_ARITHMETIC.
        trees: every clause of every case with inputs is in one of them.
        rows: of any case, one at most.
    """

    networks: tuple[str, ...]
    spec: str
    soundness: Soundness
    trees: tuple[Tree, ...]
    rows: tuple[NeuronRows, ...] = ()

    @property
    def leaf_count(self) -> int:
        """Leaves of all trees."""
        return sum(int(np.sum(t.kind == LEAF)) for t in self.trees)


#: Arrays of trees and of neuron rows, each with its type and number of axes.
_TREE = {
    "clauses": (np.int32, 1),
    "kind": (np.uint8, 1),
    "number": (np.int32, 1),
    "at": (np.float64, 1),
    "free": (np.int32, 1),
    "slopes": (np.uint8, 2),
    "leaf": (np.int32, 1),
    "multipliers": (np.float32, 1),
}
_ROWS = {"neuron": (np.int32, 1), "side": (np.int8, 1), "free": (np.int32, 1), "slopes": (np.uint8, 2)}


def save(proof: Proof, path: str | os.PathLike[str]) -> None:
    """Write a proof; the file appears whole or not at all."""
    header: dict[str, Any] = {
        "proof": VERSION,
        "networks": list(proof.networks),
        "spec": proof.spec,
        "soundness": proof.soundness.name,
    }
    whole: dict[str, Any] = {}
    for name, parts, layout in (("trees", proof.trees, _TREE), ("rows", proof.rows, _ROWS)):
        header[name] = {"cases": [p.case for p in parts]}
        header[name] |= {key: [list(getattr(p, key).shape) for p in parts] for key in layout}
        whole |= {f"{name}.{key}": _joined([getattr(p, key) for p in parts], kind) for key, (kind, _) in layout.items()}
    partial = Path(f"{os.fspath(path)}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **whole)
    partial.replace(path)


def read(path: str | os.PathLike[str]) -> Proof:
    """A proof file, as it stands: nothing in it is believed yet.

    Raises:
        ProofError: not a proof, of another version, or cut short.
    """
    expected = "expected a proof as `verifier verify --proof` writes it"
    if not zipfile.is_zipfile(path):
        with open(path, "rb"):  # a file that cannot be read says so itself
            raise ProofError(f"{path}: {expected}, got another kind of file, or one that was cut short")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        header = json.loads(arrays.pop("header").tobytes())
        if header["proof"] != VERSION:
            raise ProofError(f"{path}: expected a proof of version {VERSION}, got {header['proof']}")
        trees = tuple(Tree(case, **part) for case, part in _records(arrays, header, "trees", _TREE))
        rows = tuple(NeuronRows(case, **part) for case, part in _records(arrays, header, "rows", _ROWS))
        return Proof(tuple(header["networks"]), str(header["spec"]), Soundness[header["soundness"]], trees, rows)
    except (ValueError, KeyError, IndexError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ProofError(f"{path}: {expected}, got something else: {error}") from error


def digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _records(
    arrays: dict[str, np.ndarray], header: dict[str, Any], name: str, layout: dict[str, tuple[Any, int]]
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Case and arrays of every tree, or of every set of rows."""
    about = header[name]
    parts = {key: _cut(arrays[f"{name}.{key}"], about[key], *layout[key]) for key in layout}
    for k, case in enumerate(about["cases"]):
        yield int(case), {key: parts[key][k] for key in layout}


def _joined(parts: Sequence[np.ndarray], kind: Any) -> np.ndarray:
    flat = [np.asarray(p, dtype=kind).reshape(-1) for p in parts]
    return np.concatenate(flat) if flat else np.zeros(0, dtype=kind)


def _cut(whole: np.ndarray, shapes: list[list[int]], kind: Any, axes: int) -> list[np.ndarray]:
    """The arrays of every tree out of all of them."""
    if whole.dtype != kind or whole.ndim != 1:
        raise ValueError(f"an array of {whole.dtype} with {whole.ndim} axes")
    if any(len(s) != axes or min(s) < 0 for s in shapes):
        raise ValueError("shapes that do not fit")
    ends = np.cumsum([int(np.prod(s, dtype=np.int64)) for s in shapes], dtype=np.int64)
    if (int(ends[-1]) if len(ends) else 0) != whole.size:
        raise ValueError("an array of another length")
    return [part.reshape(shape) for part, shape in zip(np.split(whole, ends[:-1]), shapes, strict=False)]
