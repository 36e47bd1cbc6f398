"""`verifier attack NET --data ...`: reads the data, runs the sweep, keeps what is known when interrupted."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from verifier.cli.answer import interruptible
from verifier.cli.sweep_options import check_start
from verifier.errors import SpecError

if TYPE_CHECKING:
    from rich.progress import Progress

    from verifier.attack.sanity import Flag
    from verifier.data.dataset import Dataset

#: samples the sanity checks look at
LOOKED_AT = 64
#: below this many parameters a second thread costs more than it brings
SMALL = 200_000


def run_sweep(args: argparse.Namespace, norm: float) -> int:
    """Attack every sample and print the table; 130 after Ctrl-C, with the results so far."""
    import torch
    from rich.console import Console

    from verifier.attack.model import Model
    from verifier.attack.onnx_victim import graph_module
    from verifier.attack.sanity import inspect
    from verifier.attack.sweep import Plan, chosen_attacks, sweep
    from verifier.data.open import open_dataset
    from verifier.report.attacks import attack_table, summarise

    attacks = chosen_attacks(args.attack.split(","), norm)
    module = graph_module(args.files[0])
    model, graph = Model.from_graph(module), module.network.graph
    if args.threads or graph.parameter_count < SMALL:
        torch.set_num_threads(args.threads or 1)
    data = open_dataset(args.data)
    check_start(args.start, len(data))
    if args.samples:
        data = data.subset(range(min(args.start + args.samples, len(data))))
    plan = Plan(attacks, norm, args.eps, data.valid, args.batch, args.seed, args.targeted)
    if int(data.y.max()) >= graph.output_size > 1:
        raise SpecError(f"--data: labels up to {int(data.y.max())}, but the network has {graph.output_size} outputs")
    looked_at = slice(args.start, args.start + LOOKED_AT)
    flags = inspect(model, torch.tensor(data.x[looked_at]), torch.tensor(data.y[looked_at]))
    for flag in flags:
        if flag.raised:
            print(f"verifier: warning: {flag.name.replace('_', ' ')}: {flag.message}", file=sys.stderr)
    header = _header(args, data, list(attacks))
    with _results_file(args, header) as (records, file), interruptible() as pressed, _bar() as bar:
        total = (len(data) - args.start) * len(attacks) * len(args.eps)
        task = bar.add_task("attacking", total=total, completed=len(records))
        done = frozenset((r["index"], r["attack"], r["eps"]) for r in records)
        for record in sweep(model, data.x, data.y, plan, start=args.start, done=done, cancel=pressed):
            records.append(record.to_json())
            if file is not None:
                file.write(json.dumps(records[-1], allow_nan=False) + "\n")
                file.flush()
            bar.update(task, advance=1, description=f"{record.attack} at {record.eps:g}")
        interrupted = pressed()
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(attack_table(summarise(records)))
    if args.report:
        _write_report(args, records, flags, data)
    if interrupted:
        print(f"verifier: interrupted; {len(records)} of {total} results are kept", file=sys.stderr)
        return 130
    return 0


def _header(args: argparse.Namespace, data: Dataset, names: list[str]) -> dict[str, Any]:
    """What must agree for results to be continued."""
    return {
        "network": args.files[0], "data": data.name, "fingerprint": data.fingerprint(), "norm": args.norm,
        "eps": list(args.eps), "attacks": names, "targeted": args.targeted, "seed": args.seed,
        "start": args.start,
    }  # fmt: skip


@contextmanager
def _results_file(args: argparse.Namespace, header: dict[str, Any]) -> Iterator[tuple[list[dict], TextIO | None]]:
    """Earlier records (with --resume) and the file to append to; a first line says what the results are of."""
    if args.out is None:
        yield [], None
        return
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.jsonl"
    records: list[dict] = []
    if path.exists() and not args.resume:
        raise SpecError(f"--out: '{path}' exists already; add --resume to go on with it, or name another folder")
    if path.exists():
        records = _earlier(path, header)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in [{"sweep": header}, *records]), encoding="utf-8")
    partial.replace(path)
    with path.open("a", encoding="utf-8") as file:
        yield records, file


def _earlier(path: Path, header: dict[str, Any]) -> list[dict]:
    """The records of an earlier run of the same sweep; a line cut off by a kill is left out.

    Raises:
        SpecError: the file holds another sweep, or something else.
    """
    found = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            found.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise SpecError(f"{path}:{number}: expected a line of JSON; name another folder") from None
    before = found[0].get("sweep") if found else header
    if before != header:
        differing = sorted(k for k in header if not isinstance(before, dict) or before.get(k) != header[k])
        raise SpecError(f"{path}: holds a sweep with other settings ({', '.join(differing)}); name another folder")
    return found[1:]


@contextmanager
def _bar() -> Iterator[Progress]:
    """A progress bar on stderr where that is a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress


def _write_report(args: argparse.Namespace, records: list[dict], flags: tuple[Flag, ...], data: Dataset) -> None:
    from verifier.report.attacks import render_attacks

    title = f"Attacks on {Path(args.files[0]).name}, {data.name}"
    originals = {i: data.x[i] for i in range(len(data))}
    shown = [(f.name, f.raised, f.message) for f in flags]
    page = render_attacks(title, records, shown, originals, classes=data.classes)
    Path(args.report).write_text(page, encoding="utf-8")
