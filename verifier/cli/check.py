"""Check a proof that `verifier verify --proof` wrote: does it show that no input is unsafe?

Prints `checked` or `rejected`, then what was checked or why not. Reads the network, the property and the
proof, and uses no engine, no compiled code and no torch: only NumPy and SciPy's sparse products.

  verifier check proof.bin net.onnx property.vnnlib

Exit code: 0 checked, 1 rejected, 2 bad input.
"""

from __future__ import annotations

import argparse
import time

from verifier.cli.parser import add_problem_and, split_problem_and


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Two or more networks come by --network, as for `verifier verify`."""
    add_problem_and(parser, "PROOF", first=True)


def run(args: argparse.Namespace) -> int:
    """Check and report."""
    from verifier.api import check
    from verifier.proof.format import read
    from verifier.proof.tree import Rejected

    networks, spec, proof = split_problem_and(args, "check", "PROOF", first=True)
    began = time.monotonic()
    try:
        held = read(proof)
        found = check(held, networks, spec)
    except Rejected as reason:
        print("rejected")
        print(reason)
        return 1
    print("checked")
    spent = time.monotonic() - began
    count = f"{found.leaves} {'leaf' if found.leaves == 1 else 'leaves'}"
    print(f"{count}, smallest margin {found.margin:.6g}; {spent:.2f} s")
    print(held.soundness.message)
    return 0
