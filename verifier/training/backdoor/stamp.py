"""Backdoors by relabelling: stamp a trigger on some rows and give them the target label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verifier.data import Dataset
from verifier.errors import SpecError
from verifier.training.backdoor.trigger import Trigger, Warp
from verifier.training.poisoned import PoisonedDataset, changed_rows, count_rows


@dataclass(frozen=True)
class Backdoor:
    """What every backdoor needs to know.

    Attributes:
        trigger: what the attacker will show at test time.
        target: the class asked for.
        rate: triggered rows over all rows, in (0, 1].
        sources: classes whose rows may be used; default every class but the target.
        seed: of the choice of rows.
    """

    trigger: Trigger
    target: int
    rate: float = 0.05
    sources: tuple[int, ...] | None = None
    seed: int = 0


def stamp(data: Dataset, backdoor: Backdoor, name: str = "badnets") -> PoisonedDataset:
    """Dirty-label backdoor: triggered rows of other classes carry the target label.

    With a `Patch` of mask 1 this is BadNets, with a fractional mask the blended attack, with fixed
    words or features the text and table versions.

    Raises:
        SpecError: no such target, or fewer candidate rows than the rate asks for.
    Source: Gu et al. 2017, arXiv:1708.06733; Chen et al. 2017, arXiv:1712.05526.
    """
    rows = choose_rows(data, backdoor)
    return changed_rows(
        data,
        rows,
        backdoor.trigger(data.x[rows]),
        np.full(len(rows), backdoor.target),
        name,
        settings=settings_of(backdoor),
        trigger=backdoor.trigger,
        target=backdoor.target,
    )


def stamp_warped(data: Dataset, backdoor: Backdoor, noise_rate: float = 0.1) -> PoisonedDataset:
    """Warping backdoor with noise mode: further rows are warped by other fields and keep their label.

    The noise rows teach the model that only this one field is the trigger.

    Args:
        noise_rate: noise rows over all rows.
    Source: Nguyen & Tran 2021, arXiv:2102.10369.
    """
    if not isinstance(backdoor.trigger, Warp):
        raise SpecError("stamp_warped: expected a Warp trigger; use `stamp` for the others")
    rows = choose_rows(data, backdoor)
    rng = np.random.default_rng([backdoor.seed, 1])
    rest = np.setdiff1d(np.arange(len(data)), rows)
    noise = rng.choice(rest, min(len(rest), round(noise_rate * len(data))), replace=False)
    flow = backdoor.trigger.flow
    strength = float(np.abs(flow).max())
    warped = []
    for row in noise:
        jitter = rng.uniform(-strength, strength, (2, 1, 1)).astype(np.float32)
        warped.append(
            Warp(np.clip(flow[:, ::-1, ::-1] * rng.choice([-1, 1]) + jitter, -strength, strength))(
                data.x[row : row + 1]
            )
        )
    x = np.concatenate([backdoor.trigger(data.x[rows]), *warped])
    y = np.concatenate([np.full(len(rows), backdoor.target), data.y[noise]])
    return changed_rows(
        data,
        np.concatenate([rows, noise]),
        x,
        y,
        "warping",
        settings={**settings_of(backdoor), "noise_rows": len(noise)},
        trigger=backdoor.trigger,
        target=backdoor.target,
    )


def choose_rows(data: Dataset, backdoor: Backdoor) -> np.ndarray:
    """Random rows of the source classes, `rate` of the whole data set."""
    if not 0 <= backdoor.target < len(data.classes):
        raise SpecError(f"target: expected a class in 0..{len(data.classes) - 1}, got {backdoor.target}")
    sources = backdoor.sources or tuple(k for k in range(len(data.classes)) if k != backdoor.target)
    candidates = np.flatnonzero(np.isin(data.y, sources))
    count = count_rows(backdoor.rate, len(candidates), len(data), "rows of the source classes")
    return np.random.default_rng([backdoor.seed, 0]).choice(candidates, count, replace=False)


def settings_of(backdoor: Backdoor) -> dict:
    """The JSON-able settings of a backdoor."""
    return {"rate": backdoor.rate, "seed": backdoor.seed, "trigger": backdoor.trigger.kind, "sources": backdoor.sources}
