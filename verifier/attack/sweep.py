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
    start: int = 0,
    done: frozenset[tuple[int, str, float]] = frozenset(),
    cancel: Callable[[], bool] = lambda: False,
) -> Iterator[Record]:
    """Records of every sample from row `start` on, attack and budget not in `done`, batch after batch.

    Budgets share work: a minimum-norm attack runs once and its distortion decides every budget; a
    bounded attack meets only samples that withstood the smaller budgets, whose results carry over.
    """
    targets = _targets(y, int(max(y.max(initial=0) + 1, _classes(model, x))), plan.seed) if plan.targeted else None
    for begin in range(start, len(x), plan.batch):
        index = np.arange(begin, min(begin + plan.batch, len(x)))
        for name, attack in plan.attacks.items():
            if cancel():
                return
            if all((int(i), name, eps) in done for i in index for eps in plan.budgets):
                continue
            batch = _Batch(model, plan, x[index], y[index], None if targets is None else targets[index], index)
            found = batch.minimal(name, attack) if attack.minimise else batch.bounded(name, attack)
            yield from (record for record in found if record.key not in done)


@dataclass(frozen=True)
class _Batch:
    """Samples that are attacked together.

    Attributes:
        x, y: [n, *S], [n]; targets: [n], or None where untargeted; index: rows of the data set, [n].
    """

    model: Model
    plan: Plan
    x: np.ndarray
    y: np.ndarray
    targets: np.ndarray | None
    index: np.ndarray

    def only(self, rows: np.ndarray) -> _Batch:
        """The samples `rows` alone."""
        targets = None if self.targets is None else self.targets[rows]
        return replace(self, x=self.x[rows], y=self.y[rows], targets=targets, index=self.index[rows])

    def minimal(self, name: str, attack: Attack) -> Iterator[Record]:
        """One run of a minimum-norm attack, whose distortion decides every budget."""
        result = self._attacked(attack, INF)
        size = result.distortion[NORM_NAMES[self.plan.norm]]
        for eps in self.plan.budgets:
            yield from self._records(result, result.success & (size <= eps), name, eps)

    def bounded(self, name: str, attack: Attack) -> Iterator[Record]:
        """A run a budget, each on the samples that withstood the smaller ones."""
        open_rows = np.arange(len(self.x))
        kept: dict[int, Record] = {}
        for eps in self.plan.budgets:
            if len(open_rows):
                left = self.only(open_rows)
                result = left._attacked(attack, eps)
                kept.update(zip(open_rows.tolist(), left._records(result, result.success, name, eps), strict=True))
                open_rows = open_rows[~result.success.cpu().numpy()]
            for row in range(len(self.x)):
                yield replace(kept[row], eps=eps)

    def _attacked(self, attack: Attack, eps: float) -> AttackResult:
        threat = LpThreat(norm=self.plan.norm, eps=eps, valid=self.plan.valid)
        return attack(self.model, self.x, self.y, threat, targets=self.targets, seed=self.plan.seed)

    def _records(self, result: AttackResult, success: Tensor, name: str, eps: float) -> list[Record]:
        return [
            Record(
                index=int(self.index[i]),
                label=int(self.y[i]),
                attack=name,
                norm=NORM_NAMES[self.plan.norm],
                eps=eps,
                clean_prediction=int(result.clean_prediction[i]),
                prediction=int(result.prediction[i]),
                success=bool(success[i]),
                distortion={k: float(v[i]) for k, v in result.distortion.items()},
                queries=int(result.queries[i]),
                gradients=int(result.gradients[i]),
                restarts=int(result.restarts[i]),
                seconds=float(result.seconds[i]),
                target=None if self.targets is None else int(self.targets[i]),
                adversarial_f32=encode(result.adversarial[i]) if bool(success[i]) else None,
            )
            for i in range(len(self.index))
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
