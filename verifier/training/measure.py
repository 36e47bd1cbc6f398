"""The one measurement: clean accuracy and attack success, attacked against clean, over seeds with spread."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from verifier.data import Dataset, Split
from verifier.errors import SpecError
from verifier.training import predict
from verifier.training.poisoned import PoisonedDataset
from verifier.training.train import Progress, Recipe, train

Attacked = PoisonedDataset | Callable[[Dataset, int], PoisonedDataset]


@dataclass(frozen=True)
class Defence:
    """Steps around training; either may be missing.

    Attributes:
        name: for tables.
        filter_rows: (attacked data, model trained on it) -> indices to drop before training again.
        repair: (trained model, trusted clean data, seed) -> repaired model.
    """

    name: str
    filter_rows: Callable[[Dataset, nn.Module], np.ndarray] | None = None
    repair: Callable[[nn.Module, Dataset, int], nn.Module] | None = None


@dataclass(frozen=True)
class Spread:
    """A quantity over seeds: its values, mean, sample standard deviation and extremes."""

    values: tuple[float, ...]
    mean: float
    std: float
    lowest: float
    highest: float


def spread(values: Sequence[float]) -> Spread:
    """Statistics of at least one value; the deviation of a single one is 0."""
    array = np.asarray(values, dtype=np.float64)
    deviation = float(array.std(ddof=1)) if len(array) > 1 else 0.0
    return Spread(tuple(array.tolist()), float(array.mean()), deviation, float(array.min()), float(array.max()))


@dataclass(frozen=True)
class Measurement:
    """What an attack achieved, fractions in [0, 1].

    Attributes:
        clean_accuracy: of the attacked (and defended) model on unattacked test rows.
        attack_success: backdoor: triggered test rows of other classes predicted as the target;
            targeted: victims predicted as wanted; otherwise: test error.
        baseline_accuracy, baseline_success: the same for a model trained on the clean data.
        seeds, rows: what they were measured over: training seeds, and rows behind one success rate.
        seconds: wall-clock time of everything, attack included.
    """

    attack: str
    defence: str
    clean_accuracy: Spread
    attack_success: Spread
    baseline_accuracy: Spread
    baseline_success: Spread
    seeds: tuple[int, ...]
    rows: int
    seconds: float

    def to_json(self) -> str:
        """One JSON object, keys as the attributes."""
        return json.dumps(asdict(self))


def attack_success(model: nn.Module, attacked: PoisonedDataset, test: Dataset) -> tuple[float, int]:
    """Success rate of an attack on a model, and the number of rows it was measured on.

    Raises:
        SpecError: no test row outside the target class.
    """
    if attacked.trigger is not None:
        others = test.subset(test.y != attacked.target)
        if len(others) == 0:
            raise SpecError("attack success: every test row already has the target class; bring others")
        triggered = np.clip(attacked.trigger(others.x), *test.valid)
        return float(np.mean(predict.labels(model, triggered) == attacked.target)), len(others)
    if attacked.victims is not None:
        return float(np.mean(predict.labels(model, attacked.victims[0]) == attacked.victims[1])), len(
            attacked.victims[1]
        )
    return 1.0 - predict.accuracy(model, test), len(test)


def measure(
    clean: Split,
    attacked: Attacked,
    recipe: Recipe,
    defence: Defence | None = None,
    *,
    seeds: Sequence[int] = range(5),
    rows_file: Path | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Train on clean and on attacked data once a seed, apply the defence, and compare.

    Args:
        clean: the parts to train on, to measure on, and for the defender to trust.
        attacked: an attack on clean.train, or a function of (clean training data, seed) making one.
        recipe: followed by both trainings, with each seed in turn.
        seeds: at least one.
        rows_file: a .jsonl file that receives one line a finished seed; seeds already in it for the
            same data, recipe, attack and defence are read instead of repeated.
        progress: called with the fraction done and a line of text.
    Raises:
        SpecError: no seeds.
    """
    if len(seeds) == 0:
        raise SpecError("measure: expected at least one seed")
    started = time.perf_counter()
    rows = []
    for count, seed in enumerate(seeds):
        rows.append(_row(clean, attacked, replace(recipe, seed=seed), defence, rows_file))
        if progress is not None:
            progress((count + 1) / len(seeds), f"seed {seed}: success {rows[-1]['success']:.1%}")
    columns = {name: spread([row[key] for row in rows]) for name, key in _COLUMNS.items()}
    return Measurement(
        attack=rows[0]["attack"],
        defence=defence.name if defence else "none",
        seeds=tuple(seeds),
        rows=rows[0]["rows"],
        seconds=time.perf_counter() - started,
        **columns,
    )


_COLUMNS = {
    "clean_accuracy": "accuracy",
    "attack_success": "success",
    "baseline_accuracy": "baseline_accuracy",
    "baseline_success": "baseline_success",
}


def _row(clean: Split, attacked: Attacked, recipe: Recipe, defence: Defence | None, rows_file: Path | None) -> dict:
    made = attacked(clean.train, recipe.seed) if callable(attacked) else attacked
    key = {
        "data": made.data.fingerprint(),
        "test": clean.test.fingerprint(),
        "attack": made.attack,
        "defence": defence.name if defence else "none",
        "recipe": asdict(recipe),
    }
    for line in rows_file.read_text().splitlines() if rows_file is not None and rows_file.exists() else ():
        found = json.loads(line)
        if all(found.get(name) == value for name, value in key.items()):
            return found
    baseline = _baseline(clean.train, recipe)
    model = defended(train(None, made.data, recipe).model, made.data, clean.trusted, recipe, defence)
    success, rows = attack_success(model, made, clean.test)
    row = {
        **key,
        "rows": rows,
        "accuracy": predict.accuracy(model, clean.test),
        "success": success,
        "baseline_accuracy": predict.accuracy(baseline, clean.test),
        "baseline_success": attack_success(baseline, made, clean.test)[0],
    }
    if rows_file is not None:
        rows_file.parent.mkdir(parents=True, exist_ok=True)
        with rows_file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
    return row


_BASELINES: dict[tuple[str, Recipe], nn.Module] = {}


def _baseline(data: Dataset, recipe: Recipe) -> nn.Module:
    """The clean-trained model; kept, since every attack on the same data is compared with it."""
    key = (data.fingerprint(), recipe)
    if key not in _BASELINES:
        while len(_BASELINES) >= 16:
            _BASELINES.pop(next(iter(_BASELINES)))
        _BASELINES[key] = train(None, data, recipe).model
    return _BASELINES[key]


def defended(model: nn.Module, data: Dataset, trusted: Dataset, recipe: Recipe, defence: Defence | None) -> nn.Module:
    """The model after the defence: trained again without the filtered rows, then repaired."""
    if defence is not None and defence.filter_rows is not None:
        kept = data.without(defence.filter_rows(data, model))
        model = train(None, kept, recipe).model
    if defence is not None and defence.repair is not None:
        model = defence.repair(model, trusted, recipe.seed)
    return model
