"""Attacks over a data set: every sample, attack and budget gives one record, written as soon as it is known."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verifier.attack.base import Attack, AttackResult
from verifier.attack.model import Model
from verifier.attack.registry import ATTACKS, build
from verifier.attack.threat import INF, LpThreat
from verifier.errors import SpecError

NORM_NAMES = {0.0: "l0", 1.0: "l1", 2.0: "l2", INF: "linf"}


@dataclass(frozen=True)
class Record:
    """One sample under one attack and budget; plain values, as JSON keeps them.

    Attributes:
        index: row of the data set; label, prediction (of the returned sample), clean_prediction: classes.
        success: the returned sample is inside the budget and misclassified (or on target).
        distortion: "l0", "l1", "l2", "linf" of the returned sample.
        target: class aimed at, None where untargeted.
        adversarial_f32: the returned sample where success, base64 of its float32 values in C order.
    """

    index: int
    label: int
    attack: str
    norm: str
    eps: float
    clean_prediction: int
    prediction: int
    success: bool
    distortion: dict[str, float]
    queries: int
    gradients: int
    restarts: int
    seconds: float
    target: int | None = None
    adversarial_f32: str | None = None

    @property
    def key(self) -> tuple[int, str, float]:
        """What a resumed run looks for."""
        return self.index, self.attack, self.eps

    def to_json(self) -> dict[str, Any]:
        """A dict that `Record(**...)` reads back."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        attacks: name -> attack; norm: p; budgets: eps in rising order; valid: range of the inputs.
        batch: samples attacked together; seed: of every call; targeted: aim at a random other class.
    """

    attacks: Mapping[str, Attack]
    norm: float
    budgets: tuple[float, ...]
    valid: tuple[Any, Any] = (0.0, 1.0)
    batch: int = 32
    seed: int = 0
    targeted: bool = False


def chosen_attacks(names: Sequence[str], norm: float) -> dict[str, Attack]:
    """The attacks called `names`; "auto" is AutoAttack where the norm allows it, else all minimum-norm ones.

    Raises:
        SpecError: an unknown name, or an attack that does not work in this norm or on a bare network.
    """
    found: dict[str, Attack] = {}
    for name in names:
        expanded = ("standard",) if norm != 0 else ("pgd", "cw_l0", "jsma", "sparsefool")
        for each in expanded if name == "auto" else (name,):
            found[each] = build(each)
    for name, attack in found.items():
        if name in ("transfer", "grid", "composite"):
            raise SpecError(
                f"attack {name}: needs more than a network (a surrogate, or a semantic threat); use the library"
            )
        if attack.norms and norm not in attack.norms:
            fits = ", ".join(n for n, kind in ATTACKS.items() if not kind.norms or norm in kind.norms)
            raise SpecError(f"attack {name}: does not work in norm {NORM_NAMES[norm]}; these do: {fits}")
    return found


def sweep(
    model: Model,
    x: np.ndarray,
    y: np.ndarray,
    plan: Plan,
    *,
    done: frozenset[tuple[int, str, float]] = frozenset(),
    cancel: Callable[[], bool] = lambda: False,
) -> Iterator[Record]:
    """Records of every sample, attack and budget not in `done`, batch after batch.

    Budgets share work: a minimum-norm attack runs once and its distortion decides every budget; a
    bounded attack meets only samples that withstood the smaller budgets, whose results carry over.
    """
    targets = _targets(y, int(max(y.max(initial=0) + 1, _classes(model, x))), plan.seed) if plan.targeted else None
    for begin in range(0, len(x), plan.batch):
        index = np.arange(begin, min(begin + plan.batch, len(x)))
        for name, attack in plan.attacks.items():
            if cancel():
                return
            if all((int(i), name, eps) in done for i in index for eps in plan.budgets):
                continue
            run = _minimal if attack.minimise else _bounded
            aims = None if targets is None else targets[index]
            for record in run(model, x[index], y[index], aims, plan, name, attack, index):
                if record.key not in done:
                    yield record


def _minimal(
    model: Model,
    x: np.ndarray,
    y: np.ndarray,
    aims: np.ndarray | None,
    plan: Plan,
    name: str,
    attack: Attack,
    index: np.ndarray,
) -> Iterator[Record]:
    threat = LpThreat(norm=plan.norm, valid=plan.valid)
    result = attack(model, x, y, threat, targets=aims, seed=plan.seed)
    size = result.distortion[NORM_NAMES[plan.norm]]
    for eps in plan.budgets:
        yield from _records(result, result.success & (size <= eps), y, aims, plan, name, eps, index)


def _bounded(
    model: Model,
    x: np.ndarray,
    y: np.ndarray,
    aims: np.ndarray | None,
    plan: Plan,
    name: str,
    attack: Attack,
    index: np.ndarray,
) -> Iterator[Record]:
    open_rows = np.arange(len(x))
    kept: dict[int, Record] = {}
    for eps in plan.budgets:
        if len(open_rows):
            threat = LpThreat(norm=plan.norm, eps=eps, valid=plan.valid)
            part = None if aims is None else aims[open_rows]
            result = attack(model, x[open_rows], y[open_rows], threat, targets=part, seed=plan.seed)
            fresh = _records(result, result.success, y[open_rows], part, plan, name, eps, index[open_rows])
            for position, record in zip(open_rows.tolist(), fresh, strict=True):
                kept[position] = record
            open_rows = open_rows[~result.success.cpu().numpy()]
        for row in range(len(x)):
            yield replace(kept[row], eps=eps)


def _records(
    result: AttackResult,
    success: Tensor,
    y: np.ndarray,
    aims: np.ndarray | None,
    plan: Plan,
    name: str,
    eps: float,
    index: np.ndarray,
) -> list[Record]:
    return [
        Record(
            index=int(index[i]),
            label=int(y[i]),
            attack=name,
            norm=NORM_NAMES[plan.norm],
            eps=eps,
            clean_prediction=int(result.clean_prediction[i]),
            prediction=int(result.prediction[i]),
            success=bool(success[i]),
            distortion={k: float(v[i]) for k, v in result.distortion.items()},
            queries=int(result.queries[i]),
            gradients=int(result.gradients[i]),
            restarts=int(result.restarts[i]),
            seconds=float(result.seconds[i]),
            target=None if aims is None else int(aims[i]),
            adversarial_f32=encode(result.adversarial[i]) if bool(success[i]) else None,
        )
        for i in range(len(index))
    ]


def encode(x: Tensor) -> str:
    """float32 values as base64."""
    return base64.b64encode(x.detach().cpu().numpy().astype("<f4").tobytes()).decode("ascii")


def _classes(model: Model, x: np.ndarray) -> int:
    with torch.no_grad(), model.untouched():
        return int(model.scores(torch.as_tensor(np.array(x[:1]))).shape[1])


def _targets(y: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """A random class other than the label for each sample."""
    step = np.random.default_rng(seed).integers(1, classes, len(y))
    return (y + step) % classes
