"""Malicious clients: what they train on, how they scale their update, and when they act."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from verifier.data import Dataset
from verifier.errors import SpecError
from verifier.training.backdoor.stamp import Backdoor, stamp
from verifier.training.backdoor.trigger import Patch


@dataclass(frozen=True)
class MaliciousClient:
    """One client that backdoors its own shard and scales its update.

    Attributes:
        trigger: what it stamps; its part of the trigger in a distributed backdoor.
        target: the class asked for.
        rows: fraction of its shard's rows that are stamped copies (of rows outside the target).
        scale: gamma in gamma (X_bad - G) + G; 1 sends the honest-looking update.
        epochs: local epochs, usually more than the honest clients'.
        rounds: rounds in which it acts; it takes the place of a sampled client. Empty: every round.
    """

    trigger: Patch
    target: int
    rows: float = 0.5
    scale: float = 1.0
    epochs: int = 10
    rounds: tuple[int, ...] = ()

    def acts(self, round_: int) -> bool:
        """Whether it takes part maliciously in this round."""
        return not self.rounds or round_ in self.rounds

    def poisoned(self, shard: Dataset, seed: int) -> Dataset:
        """Its shard with stamped copies appended; unchanged if every row has the target class."""
        others = shard.subset(shard.y != self.target)
        if len(others) == 0:
            return shard
        copies = max(1, round(self.rows * len(shard)))
        drawn = others.subset(
            np.random.default_rng([seed, 3]).choice(len(others), copies, replace=copies > len(others))
        )
        return shard.joined(stamp(drawn, Backdoor(self.trigger, self.target, 1.0)).data)


@dataclass(frozen=True)
class FederatedAttack:
    """Who is malicious, and the whole trigger the global model is tested with.

    Attributes:
        name: for tables.
        clients: client index -> its behaviour.
        trigger, target: of the test.
    """

    name: str
    clients: Mapping[int, MaliciousClient]
    trigger: Patch
    target: int


def model_replacement(trigger: Patch, target: int, clients: tuple[int, ...] = (0,), **behaviour) -> FederatedAttack:
    """Each named client holds the whole trigger and scales its update to replace the global model.

    Args:
        behaviour: further fields of MaliciousClient; scale ~ (clients a round) / (server rate).
    Source: Bagdasaryan et al. 2020, arXiv:1807.00459.
    """
    bad = MaliciousClient(trigger, target, **behaviour)
    return FederatedAttack("model-replacement", {c: bad for c in clients}, trigger, target)


def distributed_backdoor(
    trigger: Patch, target: int, clients: tuple[int, ...] = (0, 1, 2, 3), **behaviour
) -> FederatedAttack:
    """DBA: each client holds one part of the trigger; only the test shows the whole.

    Args:
        behaviour: further fields of MaliciousClient. With `rounds`, client i of the list acts in
            rounds[i :: len(clients)], so that the parts arrive one after another.
    Raises:
        SpecError: fewer trigger pixels than clients.
    Source: Xie et al. 2020 (ICLR, DBA: distributed backdoor attacks against federated learning).
    """
    rounds = tuple(behaviour.pop("rounds", ()))
    whole = MaliciousClient(trigger, target, **behaviour)
    parts = split_trigger(trigger, len(clients))
    members = {
        client: replace(whole, trigger=part, rounds=rounds[i :: len(clients)])
        for i, (client, part) in enumerate(zip(clients, parts, strict=True))
    }
    return FederatedAttack("distributed", members, trigger, target)


def split_trigger(trigger: Patch, parts: int) -> list[Patch]:
    """Patches with disjoint masks, as equal in size as possible, whose union is the trigger's.

    Raises:
        SpecError: fewer masked values than parts.
    """
    places = np.flatnonzero(trigger.mask)
    if len(places) < parts:
        raise SpecError(f"distributed backdoor: a trigger of {len(places)} values cannot be split over {parts} clients")
    patches = []
    for share in np.array_split(places, parts):
        mask = np.zeros_like(trigger.mask)
        mask.flat[share] = trigger.mask.flat[share]
        patches.append(Patch(mask, trigger.pattern))
    return patches
