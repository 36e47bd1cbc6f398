"""AutoAttack: the reference compositions of parameter-free attacks, survivors only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from verifier.attack.base import Attack
from verifier.attack.blackbox.square import Square
from verifier.attack.gradient.apgd import APGD, APGDT
from verifier.attack.gradient.fab import FAB, FABT
from verifier.attack.task import Task

STANDARD: tuple[Attack, ...] = (APGD(loss="ce"), APGDT(), FABT(), Square())
PLUS: tuple[Attack, ...] = (
    APGD(loss="ce", restarts=5),
    APGD(loss="dlr", restarts=5),
    FAB(restarts=5),
    Square(),
    APGDT(),
    FABT(),
)


@dataclass(frozen=True)
class AutoAttack(Attack):
    """Several attacks in turn, each on the samples that withstood the ones before.

    `standard`: APGD on cross-entropy, APGD-T and FAB-T against nine rivals (fewer where the victim
    has fewer classes), Square with 5000 queries. `plus` adds APGD on the DLR loss, untargeted FAB
    and five restarts.

    Source: Croce & Hein 2020, arXiv:2003.01690.
    """

    parts: tuple[Attack, ...] = STANDARD

    norms: ClassVar[tuple[float, ...]] = (1.0, 2.0, float("inf"))

    def run(self, task: Task) -> None:
        for number, part in enumerate(self.parts):
            index = task.open_index()
            if not len(index):
                return
            inner = task.subtask(index, part.minimise, number)
            part.run(inner)
            task.absorb(inner, index)


@dataclass(frozen=True)
class AutoAttackPlus(AutoAttack):
    """The `plus` composition."""

    parts: tuple[Attack, ...] = PLUS
