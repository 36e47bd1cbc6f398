"""What the commands of the training phase share: data, recipes, progress, tables, JSON and pages."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verifier.cli.answer import check_writable
from verifier.cli.parser import count
from verifier.errors import SpecError

if TYPE_CHECKING:
    from verifier.data import Dataset, Split
    from verifier.report.training_page import Section
    from verifier.training.train import Recipe

Progress = Callable[[float, str], None]


def fraction(text: str) -> float:
    """A number in (0, 1]."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a fraction in (0, 1], got '{text}'")
    return value


def positive(text: str) -> float:
    """A finite number > 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number > 0, got '{text}'")
    return value


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    """DATA."""
    parser.add_argument(
        "data", metavar="DATA",
        help="digits, breast_cancer, wine, iris, moons, photographs, sentences; or a .npz (x, y), .csv, IDX, CIFAR "
        "file, or a folder of images by class",
    )  # fmt: skip


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """How models are trained."""
    parser.add_argument("--architecture", choices=("linear", "mlp", "cnn", "tokens"), help="default: by the data")
    parser.add_argument("--width", type=count, metavar="N", help="neurons or channels of the hidden layers")
    parser.add_argument("--epochs", type=count, metavar="N", help="passes over the data")


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Seed, threads and where results go."""
    parser.add_argument("--seed", type=count_from_zero, default=0, metavar="N", help="of every random choice")
    parser.add_argument("--threads", type=count, default=1, metavar="N", help="CPU threads (default: 1, reproducible)")
    parser.add_argument("--json", metavar="FILE", help="write the results to FILE as JSON")
    parser.add_argument("--html", metavar="FILE", help="write a page with tables and pictures to FILE")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def count_from_zero(text: str) -> int:
    """A whole number >= 0."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"expected a whole number >= 0, got '{text}'")
    return int(text)


def start(args: argparse.Namespace) -> None:
    """Check the output files and set the threads, before any work."""
    check_writable(args.json)
    check_writable(args.html)
    import torch

    torch.set_num_threads(args.threads)


def opened(source: str) -> Dataset:
    """The data set."""
    from verifier.data.open import open_dataset

    return open_dataset(source)


def parts_of(source: str, seed: int) -> Split:
    """Train (65 %), test (25 %) and trusted (10 %) parts of the data set."""
    from verifier.data.dataset import split

    parts = split(opened(source), seed=seed)
    if min(len(parts.train), len(parts.test), len(parts.trusted)) == 0:
        raise SpecError(f"'{source}' has too few rows to divide into train, test and trusted parts")
    return parts


def recipe_of(args: argparse.Namespace, data: Dataset) -> Recipe:
    """The default recipe for the data with the user's changes."""
    from verifier.training.train import recipe_for

    given = {key: getattr(args, key) for key in ("architecture", "width", "epochs")}
    return replace(recipe_for(data), seed=args.seed, **{k: v for k, v in given.items() if v is not None})


@contextmanager
def progress(args: argparse.Namespace, what: str) -> Iterator[Progress]:
    """A bar on a terminal, a line at every tenth elsewhere, nothing under --quiet; all on stderr."""
    if args.quiet:
        yield lambda done, text: None
        return
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[say]}"))
        with Bar(*columns, TimeRemainingColumn(), console=Console(file=sys.stderr), transient=True) as bar:
            task = bar.add_task(what, total=1.0, say="")
            yield lambda done, text: bar.update(task, completed=done, say=text)
        return
    shown = [0]

    def line(done: float, text: str) -> None:
        if int(10 * done + 1e-9) > shown[0]:
            shown[0] = int(10 * done + 1e-9)
            print(f"{what}: {done:4.0%}  {text}", file=sys.stderr, flush=True)

    yield line


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns aligned on stdout."""
    table = [[str(c) for c in columns], *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(line[k]) for line in table) for k in range(len(columns))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def write_results(
    args: argparse.Namespace, record: dict[str, Any], title: str, summary: str, sections: Sequence[Section]
) -> None:
    """The JSON and the page that were asked for."""
    if args.json is not None:
        Path(args.json).write_text(json.dumps(plain(record), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if args.html is not None:
        from verifier.report.training_page import render_page

        Path(args.html).write_text(render_page(title, summary, sections), encoding="utf-8")


def plain(value: Any) -> Any:
    """JSON-able: arrays become lists, non-finite numbers null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def out_folder(path: str) -> Path:
    """The folder, made if missing.

    Raises:
        SpecError: it is a file.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise SpecError(f"--out {path}: is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
