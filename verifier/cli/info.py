"""Describe a network: nodes, shapes, parameter and neuron counts; or, with --build, this installation.

  verifier info net.onnx
  verifier info --build

Exit code: 0 described, 2 the network cannot be read or holds an unsupported operator (named).
"""

from __future__ import annotations

import argparse
import json
import platform

from verifier import __version__
from verifier.errors import SpecError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A network, or --build."""
    parser.add_argument("network", nargs="?", metavar="NET")
    parser.add_argument("--build", action="store_true", help="print version, compiled parts and devices")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Print the description."""
    if args.network is None and not args.build:
        raise SpecError("info: expected NET, --build, or both")
    if args.build:
        build = _build()
        print(json.dumps(build, indent=1) if args.json else "\n".join(f"{k:<14} {v}" for k, v in build.items()))
    if args.network is not None:
        _describe(args.network, as_json=args.json)
    return 0


def _build() -> dict[str, str]:
    from verifier.kernels import build_info

    return {
        "verifier": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **{key: str(value) for key, value in build_info().items()},
    }


def _describe(path: str, *, as_json: bool) -> None:
    from verifier.graph.describe import describe
    from verifier.graph.load import load_network

    description = describe(load_network(path))
    print(json.dumps(description.to_json(), indent=1) if as_json else description)
