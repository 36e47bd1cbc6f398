"""Proofs of the `unsat` verdicts of a list, one file each and a line in an index; what is there already is kept."""

from __future__ import annotations

import csv
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from verifier.batch.instances import Instance
from verifier.errors import VerifierError
from verifier.settings import Settings

INDEX = "proofs.csv"
COLUMNS = ("onnx", "vnnlib", "proof", "leaves", "bytes", "seconds", "reason")


@dataclass(frozen=True)
class Attempt:
    """What came of one instance: `proof` is the file's name in the folder, "" where none was found for `reason`."""

    instance: Instance
    proof: str
    reason: str


def prove_all(
    instances: Iterable[Instance],
    folder: Path,
    settings: Callable[[Instance], Settings],
    cancel: Callable[[], bool] = lambda: False,
) -> Iterable[Attempt]:
    """Look for a proof of every instance that the folder's index does not name yet, in its own time limit.

    Args:
        folder: exists. settings: of an instance; cancel: asked often, True ends the work after what is written.
    """
    from verifier.api import prove
    from verifier.proof.format import save

    index = folder / INDEX
    done = _indexed(index)
    for instance in instances:
        if (instance.onnx, instance.vnnlib) in done:
            continue
        name, began = _name(instance), time.monotonic()
        line: dict[str, object] = {"onnx": instance.onnx, "vnnlib": instance.vnnlib}
        try:
            proof = prove(instance.network, instance.spec, settings(instance), cancel=cancel)
        except VerifierError as error:
            if cancel():
                return
            name = ""
            line["reason"] = " ".join(str(error).split())
        else:
            save(proof, folder / name)
            line |= {"proof": name, "leaves": proof.leaf_count, "bytes": os.path.getsize(folder / name)}
        line["seconds"] = f"{time.monotonic() - began:.3f}"
        _append(index, line)
        done.add((instance.onnx, instance.vnnlib))
        yield Attempt(instance, name, str(line.get("reason", "")))


def found_in(folder: Path) -> int:
    """How many instances a folder holds a proof of."""
    if not (folder / INDEX).exists():
        return 0
    with (folder / INDEX).open(encoding="utf-8", newline="") as file:
        named = {row["proof"] for row in csv.DictReader(file) if row["proof"]}
    return sum((folder / name).exists() for name in named)


def _name(instance: Instance) -> str:
    return re.sub(r"[^A-Za-z0-9._=-]+", "_", f"{instance.onnx}--{instance.vnnlib}") + ".proof"


def _indexed(index: Path) -> set[tuple[str, str]]:
    """Instances that the index names; a line cut off by a kill is taken off the file."""
    if not index.exists():
        return set()
    text = index.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        index.write_text(whole, encoding="utf-8")
    rows = list(csv.DictReader(whole.splitlines()))
    return {(row["onnx"], row["vnnlib"]) for row in rows if not row["proof"] or (index.parent / row["proof"]).exists()}


def _append(index: Path, line: dict[str, object]) -> None:
    fresh = not index.exists() or index.stat().st_size == 0
    with index.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(line)
