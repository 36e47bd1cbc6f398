"""Federated averaging round by round: sample clients, train locally, aggregate, test."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from verifier.data import Dataset
from verifier.errors import SpecError
from verifier.training import predict
from verifier.training.architecture import architecture_for, build
from verifier.training.federated.aggregate import Updates, aggregator
from verifier.training.federated.attack import FederatedAttack
from verifier.training.federated.shards import dirichlet_shards
from verifier.training.train import Progress, Recipe, train

#: Five local epochs: with two, a hundred clients of a dozen digits each are at 50 % after 40 rounds, with five at 86 %.
LOCAL = Recipe("mlp", 64, epochs=5, batch_size=16, learning_rate=0.1, weight_decay=0.0, optimizer="sgd")


@dataclass(frozen=True)
class Federation:
    """One federation.

    Attributes:
        clients: how many hold data; sampled: how many take part in a round.
        rounds: of the simulation.
        concentration: of the Dirichlet shards.
        local: the clients' recipe; epochs are local epochs a round.
        server_rate: factor on the aggregated update.
        aggregator: a key of `aggregate.AGGREGATORS`.
        seed: of shards, samples and initial weights.
    """

    clients: int = 100
    sampled: int = 10
    rounds: int = 80
    concentration: float = 0.5
    local: Recipe = LOCAL
    server_rate: float = 1.0
    aggregator: str = "fedavg"
    seed: int = 0


@dataclass(frozen=True)
class FederatedResult:
    """The global model and one record a round: round, accuracy, success (of the whole trigger), clients."""

    model: nn.Module
    rounds: tuple[dict, ...]


def simulate(
    data: Dataset,
    test: Dataset,
    federation: Federation,
    attack: FederatedAttack | None = None,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> FederatedResult:
    """Run a federation from fresh weights.

    Args:
        data: spread over the clients; test: measured after each round.
        attack: malicious clients; a client whose turn it is takes a sampled one's place.
        folder: receives rounds.jsonl and a checkpoint after each round; the same call continues
            an interrupted run from there, with the same result as an uninterrupted one.
    Raises:
        SpecError: more sampled than clients, a malicious client that does not exist, or a folder
            of a different federation.
    """
    _check(federation, attack)
    shards = dirichlet_shards(data, federation.clients, federation.concentration, federation.seed)
    model = build(architecture_for(federation.local.architecture, data, federation.local.width), federation.seed).eval()
    memory = torch.zeros(federation.clients, len(flat(model)))
    key = _key(data, federation, attack)
    records = _resume(folder, key, model, memory)
    for number in range(len(records), federation.rounds):
        chosen = sample(federation, attack, number)
        deltas = torch.stack(
            [local_update(model, data.subset(shards[c]), federation, (c, number), attack) for c in chosen]
        )
        sizes = torch.tensor([len(shards[c]) for c in chosen])
        combined = aggregator(federation.aggregator)(Updates(deltas, sizes, tuple(chosen), memory, number))
        add_flat(model, federation.server_rate * combined)
        records.append({"round": number, "clients": [int(c) for c in chosen], **_tested(model, test, attack)})
        _checkpoint(folder, key, model, memory, records)
        if progress is not None:
            progress((number + 1) / federation.rounds, f"round {number}: accuracy {records[-1]['accuracy']:.1%}")
    return FederatedResult(model, tuple(records))


def _check(federation: Federation, attack: FederatedAttack | None) -> None:
    if not 0 < federation.sampled <= federation.clients:
        raise SpecError(f"sampled: expected 1..{federation.clients} (the clients), got {federation.sampled}")
    outside = [c for c in (attack.clients if attack else ()) if not 0 <= c < federation.clients]
    if outside:
        raise SpecError(f"malicious clients {outside} are outside 0..{federation.clients - 1}")


def sample(federation: Federation, attack: FederatedAttack | None, number: int) -> list[int]:
    """Clients of a round: those whose malicious turn it is, then honest ones at random."""
    rng = np.random.default_rng([federation.seed, number, 11])
    bad = [c for c, client in (attack.clients.items() if attack else ()) if client.acts(number)]
    scheduled = set(attack.clients) if attack else set()
    honest = [int(c) for c in rng.permutation(federation.clients) if c not in scheduled]
    return (bad + honest)[: federation.sampled]


def local_update(
    model: nn.Module, shard: Dataset, federation: Federation, who: tuple[int, int], attack: FederatedAttack | None
) -> Tensor:
    """Change of the flat weights [P] that client who[0] sends in round who[1]."""
    client, number = who
    recipe = replace(federation.local, seed=hash_seed(federation.seed, client, number))
    bad = attack.clients.get(client) if attack else None
    scale = 1.0
    if bad is not None and bad.acts(number):
        shard, scale = bad.poisoned(shard, recipe.seed), bad.scale
        recipe = replace(recipe, epochs=bad.epochs)
    return scale * (flat(train(model, shard, recipe).model) - flat(model))


def hash_seed(*numbers: int) -> int:
    """A seed that depends on all the numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def flat(model: nn.Module) -> Tensor:
    """All parameters in one vector [P]."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def add_flat(model: nn.Module, change: Tensor) -> None:
    """Add a vector [P] to the parameters in place."""
    with torch.no_grad():
        start = 0
        for parameter in model.parameters():
            parameter.add_(change[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()


def _tested(model: nn.Module, test: Dataset, attack: FederatedAttack | None) -> dict:
    record = {"accuracy": predict.accuracy(model, test)}
    if attack is not None:
        others = test.subset(test.y != attack.target)
        shown = np.clip(attack.trigger(others.x), *test.valid)
        record["success"] = float(np.mean(predict.labels(model, shown) == attack.target))
    return record


def _key(data: Dataset, federation: Federation, attack: FederatedAttack | None) -> str:
    federation = replace(federation, rounds=0)  # a longer run continues a shorter one
    members = (
        {}
        if attack is None
        else {
            str(c): [
                b.target,
                b.rows,
                b.scale,
                b.epochs,
                list(b.rounds),
                b.trigger.mask.tolist(),
                b.trigger.pattern.tolist(),
            ]
            for c, b in attack.clients.items()
        }
    )
    return json.dumps([data.fingerprint(), asdict(federation), members], sort_keys=True)


def _resume(folder: Path | None, key: str, model: nn.Module, memory: Tensor) -> list[dict]:
    if folder is None or not (folder / "checkpoint.pt").exists():
        return []
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    if saved["key"] != key:
        raise SpecError(f"{folder}: holds the rounds of a different federation; choose another folder")
    model.load_state_dict(saved["weights"])
    memory.copy_(saved["memory"])
    lines = (folder / "rounds.jsonl").read_text().splitlines()[: saved["rounds"]]
    return [json.loads(line) for line in lines]


def _checkpoint(folder: Path | None, key: str, model: nn.Module, memory: Tensor, records: list[dict]) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rounds.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    state = {"key": key, "weights": model.state_dict(), "memory": memory, "rounds": len(records)}
    torch.save(state, folder / "checkpoint.tmp")
    (folder / "checkpoint.tmp").replace(folder / "checkpoint.pt")
