"""Argument parsing shared by the commands: one-line errors, common options, checked numbers."""

from __future__ import annotations

import argparse
import math
from typing import NoReturn

from verifier.cli.settings_file import SettingsFile
from verifier.errors import SpecError
from verifier.settings import EFFORTS


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line and whose help keeps the text's own lines."""

    def __init__(self, **options: object) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,  # type: ignore[arg-type]
        )

    def error(self, message: str) -> NoReturn:
        """Print one line to stderr and exit with 2."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())}; see '{self.prog} --help'\n")


def seconds(text: str) -> float:
    """A time limit: a finite number of seconds > 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected seconds > 0, got '{text}'")
    return value


def count(text: str) -> int:
    """A whole number >= 1."""
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got '{text}'")
    return int(text)


def add_problem_arguments(parser: argparse.ArgumentParser) -> None:
    """The files of one problem: `NET SPEC`, or `SPEC --network NAME=FILE ...`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="NET SPEC, or only SPEC with --network")
    parser.add_argument(
        "--network", action="append", default=[], metavar="NAME=FILE",
        help="the network a VNN-LIB 2.0 file declares as NAME (repeatable)",
    )  # fmt: skip


def add_problem_and(parser: argparse.ArgumentParser, word: str, *, first: bool) -> None:
    """The files of one problem with another file `word` before or after them; see `split_problem_and`."""
    one, several = (f"{word} {p}" if first else f"{p} {word}" for p in ("NET SPEC", "SPEC"))
    parser.add_argument("files", nargs="+", metavar="FILE", help=f"{one}, or {several} with --network")
    parser.add_argument("--network", action="append", default=[], metavar="NAME=FILE")


def split_problem_and(
    args: argparse.Namespace, command: str, word: str, *, first: bool
) -> tuple[str | dict[str, str], str, str]:
    """The network, the specification's path and the other file's.

    Raises:
        SpecError: the wrong number of files; as `split_problem`.
    """
    if len(args.files) != (2 if args.network else 3):
        one, several = (f"{word} {p}" if first else f"{p} {word}" for p in ("NET SPEC", "SPEC"))
        raise SpecError(f"{command}: expected {one}, or {several} --network NAME=FILE")
    other = args.files.pop(0 if first else -1)
    return *split_problem(args), other


def add_analysis_arguments(parser: argparse.ArgumentParser, *, proves: bool = True) -> None:
    """The options every analysis takes; `proves`: those of a proof, too."""
    parser.add_argument("--timeout", type=seconds, metavar="S", help="seconds, start-up included; none by default")
    parser.add_argument("--threads", type=count, metavar="N", help="CPU threads (default: all cores)")
    add_settings_arguments(parser, proves=proves)


def add_settings_arguments(parser: argparse.ArgumentParser, *, proves: bool = True) -> None:
    """The options of one analysis that a list of them shares."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default: cpu)")
    parser.add_argument(
        "--soundness", choices=("float32", "real"), default="float32",
        help="float32 (default): proofs hold for the deployed program, its rounding included, and for "
        "real arithmetic; real: for real arithmetic only",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of every random choice (default: 0)")
    if proves:
        parser.add_argument(
            "--effort", choices=EFFORTS, default="search",
            help="how far to go: default bounds of the whole input set, optimised ones, or splitting it (default)",
        )  # fmt: skip
    parser.add_argument(
        "--engine", choices=("auto", "native", "torch"), default="auto",
        help="C++ or torch; auto (default): C++ where it covers the network",
    )  # fmt: skip
    parser.add_argument("--settings", action=SettingsFile, metavar="FILE", help="take options from a TOML file")


def split_problem(args: argparse.Namespace) -> tuple[str | dict[str, str], str]:
    """The network argument of the library (a path, or name -> path) and the specification's path.

    Raises:
        SpecError: the wrong number of files, or a --network that is not NAME=FILE or comes twice.
    """
    expected = 1 if args.network else 2
    if len(args.files) != expected:
        form = "SPEC --network NAME=FILE" if args.network else "NET SPEC"
        raise SpecError(f"expected {form}, got {len(args.files)} files: {' '.join(args.files)}")
    if not args.network:
        return args.files[0], args.files[1]
    networks: dict[str, str] = {}
    for pair in args.network:
        name, separator, path = pair.partition("=")
        if not (name and separator and path):
            raise SpecError(f"--network: expected NAME=FILE, got '{pair}'")
        if name in networks:
            raise SpecError(f"--network: '{name}' is given twice")
        networks[name] = path
    return networks, args.files[0]
