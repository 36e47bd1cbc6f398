"""The training phase measured: `python benchmarks/training.py [--only SECTION ...]`.

Every section's rows are kept in benchmarks/results/training.json; sections that are not named keep
theirs, and the page benchmarks/results/training.md is written anew. One thread, packaged data only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import training_attacks as attacks
import training_defences as defences

from verifier.data.dataset import split
from verifier.data.packaged import packaged

RESULTS = Path(__file__).parent / "results"
DATE = "2026-11-25"


def sections() -> dict:
    """Name -> (heading, function that yields lines)."""
    digits = split(packaged("digits"))
    return {
        "backdoors": ("Backdoors at 5 % of the rows (warping 10 %)", lambda: attacks.backdoors(digits)),
        "other-data": (
            "Backdoors on tables and text",
            lambda: attacks.other_backdoors(split(packaged("breast_cancer")), split(packaged("sentences"))),
        ),
        "targeted": ("Targeted poisons, retrained from scratch", lambda: attacks.targeted(digits)),
        "flips": ("Test accuracy under label flips", lambda: attacks.flip_curve(digits)),
        "federated": (
            "Federated: success of the whole trigger (test accuracy), 100 clients, 10 a round, 40 rounds, 2 seeds",
            lambda: defences.federated(digits),
        ),
        "rows": ("Poisoned rows found", lambda: defences.row_detectors(digits)),
        "repairs": ("Repair of a BadNets model", lambda: defences.repairs(digits)),
        "certificates": (
            "Certified accuracy (brute-force agreement: tests/training/test_certify.py)",
            lambda: defences.certificates(digits, split(packaged("breast_cancer"))),
        ),
        "models": ("Ten backdoored and ten clean models", lambda: defences.model_detectors(digits)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    known = sections()
    parser.add_argument("--only", nargs="*", choices=list(known), default=list(known))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.only:
        began, lines = time.monotonic(), []
        for line in known[name][1]():
            lines.append(line)
            print(name, json.dumps(line, ensure_ascii=False), flush=True)
        kept = _kept()
        kept[name] = {"lines": lines, "seconds": round(time.monotonic() - began), "commit": _commit()}
        (RESULTS / "training.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    write_page({name: heading for name, (heading, _) in known.items()}, _kept())
    return 0


def _kept() -> dict:
    path = RESULTS / "training.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _commit() -> str:
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"


def write_page(headings: dict[str, str], kept: dict) -> None:
    """results/training.md from the kept lines."""
    page = [
        "# The training phase, measured",
        "",
        f"Packaged digits (1,168 training rows) unless named otherwise, 5 seeds unless named otherwise; {DATE}, "
        "2 cores, AMD EPYC, CPU only, one thread. Made by `python benchmarks/training.py`. The machine was",
        "shared with other work, so the seconds are upper limits.",
        "",
    ]
    for name, heading in headings.items():
        if name not in kept or not kept[name]["lines"]:
            continue
        columns = list(dict.fromkeys(key for line in kept[name]["lines"] for key in line))
        page += [f"## {heading}", "", "| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        for line in kept[name]["lines"]:
            page.append("| " + " | ".join(_cell(line.get(key, "")) for key in columns) + " |")
        page += ["", f"{kept[name]['seconds']} s, commit {kept[name]['commit']}.", ""]
    (RESULTS / "training.md").write_text("\n".join(page))


def _cell(value: object) -> str:
    return {True: "yes", False: "**no**"}[value] if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    sys.exit(main())
