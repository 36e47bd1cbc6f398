"""List capabilities in the form that VNN-LIB 2.0 defines for solvers.

Each option prints one capability, one entry a line; without options all are printed with headings.
"""

from __future__ import annotations

import argparse

#: Oldest ONNX operator set the importer is tested with; the newest is the installed onnx package's.
OLDEST_OPSET = 7

#: option -> lines it prints; operator sets and operators are added by `run`.
CAPABILITIES: dict[str, tuple[str, ...]] = {
    "onnx-element-types": ("float32", "float64", "real"),
    "vnnlib-versions": ("1.0", "2.0"),
    "hidden-node-theories": ("NH", "H"),
    "multiple-input-output-theories": ("SIO", "MIO"),
    "multiple-network-theories": ("SNET", "MENET", "MINET", "MNET"),
    "multiple-node-comparison-theories": ("SNC", "MNC"),
    "arithmetic-complexity-theories": ("BND", "COUT", "LIN", "POLY"),
    "optimised-disjunctive-reasoning": ("true",),
    "serialise-assignments": ("false",),
    "unsat-proofs": ("false",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag a capability."""
    for name in ("onnx-opset-versions", "onnx-operators", *CAPABILITIES):
        parser.add_argument(f"--{name}", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Print the capabilities asked for, or all of them."""
    from onnx.defs import onnx_opset_version

    from verifier.graph.onnx.table import LOWERINGS

    table = {
        "onnx-opset-versions": (str(OLDEST_OPSET), str(onnx_opset_version())),
        "onnx-operators": tuple(sorted(LOWERINGS)),
        **CAPABILITIES,
    }
    asked = [name for name in table if getattr(args, name.replace("-", "_"))]
    for name in asked or table:
        if not asked:
            print(f"--{name}")
        for line in table[name]:
            print(line if asked else f"  {line}")
    return 0
