"""What `poison` and `backdoor` share: options, order of work, data parts, measurement, folder, page."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from verifier.cli.training import (
    add_common_arguments,
    add_recipe_arguments,
    count_from_zero,
    out_folder,
    parts_of,
    plain,
    print_table,
    progress,
    recipe_of,
    start,
    write_results,
)

if TYPE_CHECKING:
    from verifier.data import Split
    from verifier.report.training_page import Section
    from verifier.training.measure import Measurement
    from verifier.training.poisoned import PoisonedDataset


#: What a command does itself: (arguments, parts of the data, progress) -> the attacked training part.
MakeAttack = Callable[[argparse.Namespace, "Split", Callable[[float, str], None]], "PoisonedDataset"]


def run_attack(args: argparse.Namespace, attack: MakeAttack) -> int:
    """Divide the data, attack the training part, save, measure."""
    start(args)
    parts = parts_of(args.data, args.seed)
    with progress(args, args.attack) as tell:
        attacked = attack(args, parts, tell)
    return _finish(args, parts, attacked)


def add_attacked_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the attacked data goes, how it is measured and how models are trained."""
    parser.add_argument(
        "--out",
        required=True,
        metavar="DIR",
        help="receives data.npz, poison.json, model.pt (trained on it) and the like",
    )
    parser.add_argument(
        "--trials", type=count_from_zero, default=1, metavar="N",
        help="train N clean and N attacked models to measure the attack (default: 1; 0: do not train)",
    )  # fmt: skip
    add_recipe_arguments(parser)
    add_common_arguments(parser)


def _finish(args: argparse.Namespace, parts: Split, attacked: PoisonedDataset) -> int:
    """Save, measure, print, and write the page."""
    from verifier.report.training_page import Section
    from verifier.training.architecture import save_model
    from verifier.training.measure import measure
    from verifier.training.train import train

    folder = out_folder(args.out)
    attacked.save(folder)
    parts.test.save(folder / "test.npz")
    parts.trusted.save(folder / "trusted.npz")
    budget = attacked.budget
    print(f"{attacked.attack}: {budget.rows} of {len(parts.train)} rows ({budget.fraction:.2%}), "
          f"{budget.relabelled} relabelled, largest change {budget.largest_change:.4g}")  # fmt: skip
    record: dict = {"attack": attacked.attack, "budget": asdict(budget), "settings": dict(attacked.settings)}
    sections = [_spent(attacked), _examples(parts, attacked)]
    if args.trials:
        with progress(args, "measuring") as tell:
            found = measure(
                parts, attacked, recipe_of(args, parts.train), seeds=range(args.seed, args.seed + args.trials),
                rows_file=folder / "trials.jsonl", progress=tell,
            )  # fmt: skip
        columns, rows = outcome_table(found, attacked)
        print_table(columns, rows)
        record["measurement"] = asdict(found)
        sections.insert(0, Section("What it does", (f"Over {args.trials} trainings.",), columns, rows))
        save_model(train(None, attacked.data, recipe_of(args, parts.train)).model, folder / "model.pt")
    print(f"written to {folder}")
    write_results(
        args, record, f"{attacked.attack} on {parts.train.name}",
        f"{budget.rows} of {len(parts.train)} training rows were touched.", sections,
    )  # fmt: skip
    return 0


def outcome_table(found: Measurement, attacked: PoisonedDataset) -> tuple[tuple[str, ...], list[tuple[str, str, str]]]:
    """Attacked against clean, mean and spread."""
    goal = "attack success" if attacked.trigger is not None or attacked.victims is not None else "test error"
    rows = [
        (name, f"{accuracy.mean:.1%} ± {accuracy.std:.1%}", f"{success.mean:.1%} ± {success.std:.1%}")
        for name, accuracy, success in (
            ("trained on clean data", found.baseline_accuracy, found.baseline_success),
            ("trained on attacked data", found.clean_accuracy, found.attack_success),
        )
    ]
    return ("model", "clean accuracy", goal), rows


def _spent(attacked: PoisonedDataset) -> Section:
    from verifier.report.training_page import Section

    rows = [*asdict(attacked.budget).items(), *plain(dict(attacked.settings)).items()]
    return Section("Budget and settings", (), ("what", "value"), [(key.replace("_", " "), _cell(v)) for key, v in rows])


def _examples(parts: Split, attacked: PoisonedDataset, count: int = 6) -> Section:
    """Touched rows before and after, and the trigger on a test row."""
    from verifier.report.training_page import Section, change_picture, picture_of

    clean, valid, classes = parts.train, parts.train.valid, parts.train.classes
    found = []
    for row in attacked.touched[:count]:
        label = classes[attacked.data.y[row]]
        if row < len(clean) and not len(attacked.removed):
            before, after = clean.x[row], attacked.data.x[row]
            found.append(picture_of(before, f"row {row} before, class {classes[clean.y[row]]}", valid))
            found.append(picture_of(after, f"row {row} after, class {label}", valid))
            if np.any(before != after):
                found.append(change_picture(after - before, f"row {row}, the change (blue up, orange down)"))
        else:
            found.append(picture_of(attacked.data.x[row], f"added row {row}, class {label}", valid))
    if attacked.trigger is not None:
        shown = np.clip(attacked.trigger(parts.test.x[:2]), *valid)
        for row, x in enumerate(shown):
            found.append(picture_of(x, f"test row {row} (class {classes[parts.test.y[row]]}) with the trigger", valid))
    if attacked.victims is not None:
        for x, wanted in zip(*attacked.victims, strict=True):
            found.append(picture_of(x, f"the victim, wanted class {classes[wanted]}", valid))
    return Section("Touched rows", (), pictures=[p for p in found if p is not None])


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "all" if value is None else str(value)
