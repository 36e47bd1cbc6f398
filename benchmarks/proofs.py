"""Proofs found and checked on folders of instances: how many, how large, how long.

    python benchmarks/proofs.py FOLDER [FOLDER ...] [--timeout 60] [--rows FILE]

A folder holds an instances.csv, as for `verifier run`; instances expected to be unsat are asked, a
limited time each, on one thread. A proof counts when `check` accepts the file. Seconds are wall time; `verify` is the
same instance with the same limit and no proof. --rows keeps a line for each instance, and goes on where it ended.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"

from verifier import api
from verifier.batch.instances import Instance, read_instances
from verifier.errors import VerifierError
from verifier.outcome import Verdict
from verifier.proof.format import save
from verifier.settings import Settings

FIELDS = ("folder", "onnx", "vnnlib", "verify_s", "unsat", "proof_s", "leaves", "bytes", "check_s", "why")


def measured(instance: Instance, timeout_s: float) -> dict[str, object]:
    """One instance."""
    net, spec = instance.network, instance.spec
    found: dict[str, object] = {"folder": instance.folder.name, "onnx": instance.onnx, "vnnlib": instance.vnnlib}
    settings = Settings(timeout_s=timeout_s, threads=1)
    began = time.monotonic()
    found["unsat"] = api.verify(net, spec, settings).verdict is Verdict.UNSAT
    found["verify_s"] = round(time.monotonic() - began, 3)
    began = time.monotonic()
    try:
        proof = api.prove(net, spec, settings)
    except VerifierError as reason:
        return found | {"why": str(reason)}
    found["proof_s"] = round(time.monotonic() - began, 3)
    with tempfile.TemporaryDirectory() as place:
        save(proof, f"{place}/proof")
        began = time.monotonic()
        checked = api.check(f"{place}/proof", net, spec)
        found["check_s"] = round(time.monotonic() - began, 3)
        return found | {"leaves": checked.leaves, "bytes": os.path.getsize(f"{place}/proof")}


def table_row(folder: str, rows: list[dict[str, str]]) -> str:
    """A folder's line."""
    proved = [r for r in rows if r["check_s"]]
    told = sum(r["unsat"] == "True" for r in rows)
    if not proved:
        return f"| {folder} | {len(rows)} | {told} | 0 | - | - | - | - |"
    middle = {k: median(float(r[k]) for r in proved) for k in ("proof_s", "leaves", "bytes", "check_s")}
    most = {k: max(float(r[k]) for r in proved) for k in middle}
    texts = [
        f"{middle[k]:{form}} ({most[k]:{form}})"
        for k, form in (("proof_s", ".2f"), ("leaves", ".0f"), ("bytes", ".0f"), ("check_s", ".2f"))
    ]
    return f"| {folder} | {len(rows)} | {told} | {len(proved)} | " + " | ".join(texts) + " |"


def main() -> None:
    """Measure and print a Markdown table; medians, largest in brackets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--timeout", type=float, default=60.0)
    parser.add_argument("--rows", type=Path)
    args = parser.parse_args()
    rows_file = args.rows or Path(tempfile.mkstemp(suffix=".csv")[1])
    if not rows_file.exists() or not rows_file.stat().st_size:
        rows_file.write_text(",".join(FIELDS) + "\n", encoding="utf-8")
    done = {(r["folder"], r["onnx"], r["vnnlib"]) for r in csv.DictReader(rows_file.open(encoding="utf-8"))}
    for folder in args.folders:
        for instance in read_instances(folder / "instances.csv"):
            key = (instance.folder.name, instance.onnx, instance.vnnlib)
            if instance.expected == "unsat" and key not in done:
                found = measured(instance, args.timeout)
                with rows_file.open("a", encoding="utf-8", newline="") as file:
                    csv.DictWriter(file, FIELDS).writerow(found)
    print("| folder | expected unsat | told | proved and checked | s to find | leaves | bytes | s to check |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    rows = list(csv.DictReader(rows_file.open(encoding="utf-8")))
    for folder in args.folders:
        print(table_row(folder.name, [r for r in rows if r["folder"] == folder.name]))


if __name__ == "__main__":
    main()
