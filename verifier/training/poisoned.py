"""What every data attack returns: the data set, the rows it touched, and what it spent."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from verifier.data import Dataset
from verifier.errors import SpecError
from verifier.training.backdoor.trigger import Trigger, load_trigger, save_trigger


@dataclass(frozen=True)
class Budget:
    """What an attack spent.

    Attributes:
        rows: rows added, changed, relabelled or removed.
        fraction: rows over the size of the clean data set, dimensionless.
        relabelled: how many of the rows changed label.
        largest_change: largest absolute change of one value of one row, data's units.
        largest_norm: largest Euclidean change of one row, data's units.
    """

    rows: int
    fraction: float
    relabelled: int = 0
    largest_change: float = 0.0
    largest_norm: float = 0.0


@dataclass(frozen=True)
class PoisonedDataset:
    """An attacked data set, ready to train on.

    Attributes:
        data: the attacked rows; original rows keep their index, added ones follow.
        touched: int64, indices in `data` of rows added or changed.
        removed: int64, indices in the clean data of deleted rows.
        budget: what it cost.
        attack: name of the method.
        settings: its settings, JSON-able.
        trigger: for backdoors, what turns an input into one of the target class.
        target: for backdoors, the class the trigger asks for.
        victims: for targeted attacks, inputs [V, *shape] and the classes [V] they should get.
    """

    data: Dataset
    touched: np.ndarray
    budget: Budget
    attack: str
    removed: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    settings: Mapping[str, Any] = field(default_factory=dict)
    trigger: Trigger | None = None
    target: int | None = None
    victims: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def is_backdoor(self) -> bool:
        """True when a trigger decides the success."""
        return self.trigger is not None

    def save(self, folder: str | Path) -> Path:
        """Write data.npz, poison.json and, for backdoors, trigger.npz into a folder."""
        folder = Path(folder)
        self.data.save(folder / "data.npz")
        record = {
            "attack": self.attack,
            "target": self.target,
            "budget": asdict(self.budget),
            "settings": dict(self.settings),
            "touched": self.touched.tolist(),
            "removed": self.removed.tolist(),
        }
        if self.trigger is not None:
            save_trigger(self.trigger, folder / "trigger.npz")
        if self.victims is not None:
            np.savez_compressed(folder / "victims.npz", x=self.victims[0], wanted=self.victims[1])
        (folder / "poison.json").write_text(json.dumps(record, indent=1) + "\n")
        return folder


def load_poisoned(folder: str | Path) -> PoisonedDataset:
    """Read what `PoisonedDataset.save` wrote.

    Raises:
        SpecError: files missing or damaged.
    """
    from verifier.data.arrays import load_npz

    folder = Path(folder)
    try:
        record = json.loads((folder / "poison.json").read_text())
        trigger = load_trigger(folder / "trigger.npz") if (folder / "trigger.npz").exists() else None
        victims = None
        if (folder / "victims.npz").exists():
            with np.load(folder / "victims.npz", allow_pickle=False) as arrays:
                victims = arrays["x"], arrays["wanted"]
        touched, removed = (np.array(record[key], dtype=np.int64) for key in ("touched", "removed"))
        return PoisonedDataset(
            load_npz(folder / "data.npz"),
            touched,
            Budget(**record["budget"]),
            record["attack"],
            removed,
            record["settings"],
            trigger,
            record["target"],
            victims,
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise SpecError(f"{folder}: not a folder written by an attack: {error}") from error


def changed_rows(
    clean: Dataset,
    rows: np.ndarray,
    x: np.ndarray,
    y: np.ndarray | Callable[[np.ndarray], np.ndarray],
    attack: str,
    **fields: Any,
) -> PoisonedDataset:
    """The attack that replaces `rows` of `clean` by x and y, its budget counted.

    Args:
        rows: distinct indices [k]; x: [k, *shape], clipped to the valid range; y: [k].
        fields: further fields of the PoisonedDataset.
    """
    new_x, new_y = clean.x.copy(), clean.y.copy()
    new_x[rows] = np.clip(x, *clean.valid)
    new_y[rows] = y(clean.y[rows]) if callable(y) else y
    change = (new_x[rows] - clean.x[rows]).reshape(len(rows), -1).astype(np.float64)
    budget = Budget(
        rows=len(rows),
        fraction=len(rows) / max(len(clean), 1),
        relabelled=int(np.sum(new_y[rows] != clean.y[rows])),
        largest_change=float(np.abs(change).max(initial=0.0)),
        largest_norm=float(np.linalg.norm(change, axis=1).max(initial=0.0)),
    )
    return PoisonedDataset(clean.with_rows(new_x, new_y), np.sort(rows), budget, attack, **fields)


def count_rows(fraction: float, available: int, total: int, what: str) -> int:
    """Rows a budget buys: `fraction` of `total`, at least one, at most `available`.

    Raises:
        SpecError: a fraction outside (0, 1], or more rows than there are candidates.
    """
    if not 0 < fraction <= 1:
        raise SpecError(f"budget: expected a fraction of the rows in (0, 1], got {fraction}")
    rows = max(1, round(fraction * total))
    if rows > available:
        raise SpecError(f"budget {fraction} asks for {rows} rows, but only {available} {what} exist; lower it")
    return rows
