"""Check a counterexample: run the network in ONNX Runtime and say whether the property is violated.

WITNESS is a file as `verifier verify --witness` writes it; a first line `sat` is allowed. Prints `valid`
or `invalid`, then by how much. All comparisons are exact.

  verifier replay net.onnx property.vnnlib witness.txt

Exit code: 0 valid, 1 invalid, 2 bad input.
"""

from __future__ import annotations

import argparse

from verifier.cli.parser import add_problem_and, split_problem_and


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Two or more networks come by --network, as for `verifier verify`."""
    add_problem_and(parser, "WITNESS", first=False)


def run(args: argparse.Namespace) -> int:
    """Replay and report."""
    import numpy as np

    from verifier.api import load
    from verifier.spec.load import read_text
    from verifier.spec.replay import Replay
    from verifier.spec.witness import read_witness

    networks, spec, witness = split_problem_and(args, "replay", "WITNESS", first=False)
    query, models = load(networks, spec)
    x, claimed = read_witness(read_text(witness), query)
    result = Replay(models, query).check(query, x)
    print("valid" if result.valid else "invalid")
    print(result.message)
    if np.isfinite(result.margin):
        print(f"margin {result.margin:.9g} (a counterexample has at most 0)")
    if claimed.size:
        difference = float(np.max(np.abs(claimed - result.y), initial=0.0))
        print(f"outputs in the file differ from the replayed ones by at most {difference:.3g}")
    return 0 if result.valid else 1
