"""Federation: aggregators against their definitions, model replacement's algebra, shards, resuming."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from verifier.errors import SpecError
from verifier.training.architecture import architecture_for, build
from verifier.training.backdoor.trigger import corner_patch
from verifier.training.federated.aggregate import (
    AGGREGATORS,
    Updates,
    aggregator,
    clipped,
    fedavg,
    foolsgold,
    geometric_median,
    krum,
    median,
    trimmed_mean,
)
from verifier.training.federated.attack import MaliciousClient, distributed_backdoor, model_replacement, split_trigger
from verifier.training.federated.flower import ClientWork, MissingFlower, arrays_of, numpy_client, with_arrays
from verifier.training.federated.shards import dirichlet_shards
from verifier.training.federated.simulate import LOCAL, Federation, add_flat, flat, local_update, sample, simulate
from verifier.training.train import train

SMALL = Federation(clients=6, sampled=3, rounds=4, local=replace(LOCAL, architecture="linear", width=1, epochs=1))


def updates(count=7, size=5, seed=0):
    rng = np.random.default_rng(seed)
    deltas = torch.tensor(rng.normal(size=(count, size)), dtype=torch.float32)
    sizes = torch.tensor(rng.integers(1, 50, count))
    return Updates(deltas, sizes, tuple(range(count)), torch.zeros(count, size))


def test_fedavg_is_the_weighted_mean():
    u = updates()
    expected = sum(float(n) * d for n, d in zip(u.sizes, u.deltas.double(), strict=True)) / float(u.sizes.sum())
    assert torch.allclose(fedavg(u).double(), expected, atol=1e-6)


@pytest.mark.parametrize("byzantine", [1, 2, 3])
def test_krum_by_definition(byzantine):
    """The update whose K - f - 2 nearest others are nearest, by trying every subset of that size."""
    u = updates()
    d = u.deltas.double().numpy()
    nearest = len(d) - byzantine - 2
    scores = [
        min(
            sum(np.sum((d[i] - d[j]) ** 2) for j in others)
            for others in combinations(set(range(len(d))) - {i}, nearest)
        )
        for i in range(len(d))
    ]
    assert torch.equal(krum(byzantine)(u), u.deltas[int(np.argmin(scores))])
    best = np.argsort(scores)[:3]
    assert torch.allclose(krum(byzantine, keep=3)(u), u.deltas[best].mean(dim=0), atol=1e-6)
    with pytest.raises(SpecError, match="neighbours"):
        krum(5)(u)


@pytest.mark.parametrize("count", [6, 7])
def test_median_and_trimmed_mean_by_definition(count):
    u = updates(count)
    assert np.allclose(median(u), np.median(u.deltas.numpy(), axis=0))
    cut = int(0.2 * count)
    expected = np.sort(u.deltas.numpy(), axis=0)[cut : count - cut].mean(axis=0)
    assert np.allclose(trimmed_mean(0.2)(u), expected)
    with pytest.raises(SpecError, match="share"):
        trimmed_mean(0.5)


def test_clipping_bounds_every_client():
    u = updates()
    by_hand = np.mean([d * min(1.0, 0.5 / np.linalg.norm(d)) for d in u.deltas.numpy()], axis=0)
    assert np.allclose(clipped(0.5, noise=0.0)(u), by_hand, atol=1e-6)
    noisy = clipped(0.5, noise=0.1)
    assert torch.equal(noisy(u), noisy(u)) and not torch.equal(noisy(u), noisy(replace(u, seed=1)))


def test_the_geometric_median_minimises_the_weighted_distances():
    u = updates(count=9, size=2)
    w = (u.sizes / u.sizes.sum()).numpy()

    def total(center):
        return np.sum(w * np.linalg.norm(u.deltas.numpy() - center, axis=1))

    found = minimize(total, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10})
    assert np.allclose(geometric_median(iterations=300)(u), found.x, atol=1e-3)


def test_foolsgold_silences_identical_updates():
    """Two sybils that send the same direction get no weight; two honest orthogonal clients keep all."""
    deltas = torch.tensor([[1.0, 0, 0, 0], [2.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0]])
    u = Updates(deltas, torch.ones(4), (0, 1, 2, 3), torch.zeros(4, 4))
    assert foolsgold(u)[0].abs() < 1e-6 and foolsgold(replace(u, memory=torch.zeros(4, 4)))[1:3].min() > 0.4
    assert torch.equal(u.memory[2], 2 * deltas[2] - deltas[2])


@pytest.mark.parametrize("name", AGGREGATORS)
def test_equal_updates_stay_as_they_are(name):
    """Every rule maps K copies of d to d (FoolsGold sees sybils and may send nothing; noise aside)."""
    d = torch.tensor([0.1, -0.2, 0.05])
    u = Updates(d.repeat(8, 1), torch.ones(8), tuple(range(8)), torch.zeros(8, 3))
    out = aggregator(name)(u)
    if name == "foolsgold":
        assert out.norm() <= d.norm() * (1 + 1e-6)
    else:
        assert torch.allclose(out, d, atol=0.01 if name == "clipping" else 1e-6)


def test_unknown_aggregators_are_refused():
    with pytest.raises(SpecError, match="fedavg"):
        aggregator("mean")


def test_scaling_by_clients_over_rate_replaces_the_global_model(digits):
    """With n equal clients, gamma = n / eta and honest updates of zero: G + eta/n gamma (X - G) = X."""
    honest, rate = 4, 0.5
    patch = corner_patch(digits.train)
    data = digits.train.subset(np.arange(60))
    federation = replace(SMALL, server_rate=rate)
    attack = model_replacement(patch, 3, (0,), scale=(honest + 1) / rate, epochs=2)
    start = train(None, data, federation.local).model
    bad = local_update(start, data, federation, (0, 0), attack)
    own = replace(attack, clients={0: replace(attack.clients[0], scale=1.0)})
    wanted = flat(start) + local_update(start, data, federation, (0, 0), own)
    deltas = torch.cat([bad[None], torch.zeros(honest, len(bad))])
    combined = fedavg(Updates(deltas, torch.ones(honest + 1), tuple(range(5)), torch.zeros(5, len(bad))))
    add_flat(start, rate * combined)
    assert torch.allclose(flat(start), wanted, atol=1e-4)


def test_shards_hold_every_row_once(digits):
    shards = dirichlet_shards(digits.train, 100, 0.5, seed=2)
    assert np.array_equal(np.sort(np.concatenate(shards)), np.arange(len(digits.train)))
    assert min(map(len, shards)) >= 1
    entropy = []
    for concentration in (0.1, 100.0):
        parts = dirichlet_shards(digits.train, 10, concentration, seed=2)
        shares = np.array([np.bincount(digits.train.y[p], minlength=10) / len(p) for p in parts])
        entropy.append(-np.sum(shares * np.log(np.maximum(shares, 1e-12)), axis=1).mean())
    assert entropy[0] < entropy[1]
    for clients, concentration in ((0, 1.0), (10**6, 1.0), (5, 0.0), (5, float("nan"))):
        with pytest.raises(SpecError):
            dirichlet_shards(digits.train, clients, concentration)


def test_the_parts_of_a_distributed_trigger_make_the_whole(digits):
    patch = corner_patch(digits.train, 4)
    parts = split_trigger(patch, 4)
    assert np.array_equal(np.sum([p.mask for p in parts], axis=0), patch.mask)
    assert [int(p.mask.sum()) for p in parts] == [4, 4, 4, 4]
    x = digits.test.x[:3]
    shown = x
    for part in parts:
        shown = part(shown)
    assert np.array_equal(shown, patch(x))
    with pytest.raises(SpecError, match="split"):
        split_trigger(corner_patch(digits.train, 1), 4)


def test_malicious_clients_act_in_their_rounds(digits):
    attack = distributed_backdoor(corner_patch(digits.train, 2), 3, (1, 4), rounds=(2, 3, 5))
    assert [attack.clients[c].rounds for c in (1, 4)] == [(2, 5), (3,)]
    assert 1 in sample(SMALL, attack, 2) and 4 in sample(SMALL, attack, 3)
    assert all(c not in sample(SMALL, attack, 0) for c in (1, 4))
    assert len(sample(SMALL, attack, 0)) == 3


def test_a_client_stamps_only_rows_outside_the_target(digits):
    shard = digits.train.subset(np.arange(40))
    client = MaliciousClient(corner_patch(digits.train), 3, rows=0.5)
    poisoned = client.poisoned(shard, 0)
    assert len(poisoned) == 60 and np.all(poisoned.y[40:] == 3)
    assert client.poisoned(shard.subset(shard.y == 3), 0).y.tolist() == [3] * int(np.sum(shard.y == 3))


def test_an_interrupted_run_ends_like_an_uninterrupted_one(digits, tmp_path):
    attack = model_replacement(corner_patch(digits.train), 3, (0,), epochs=1)
    whole = simulate(digits.train, digits.test, SMALL, attack)
    simulate(digits.train, digits.test, replace(SMALL, rounds=2), attack, folder=tmp_path)
    resumed = simulate(digits.train, digits.test, SMALL, attack, folder=tmp_path)
    assert torch.equal(flat(whole.model), flat(resumed.model)) and whole.rounds == resumed.rounds
    with pytest.raises(SpecError, match="different federation"):
        simulate(digits.train, digits.test, replace(SMALL, seed=1), attack, folder=tmp_path)


def test_federations_that_cannot_be_are_refused(digits):
    with pytest.raises(SpecError, match="sampled"):
        simulate(digits.train, digits.test, replace(SMALL, sampled=7))
    with pytest.raises(SpecError, match="outside"):
        simulate(digits.train, digits.test, SMALL, model_replacement(corner_patch(digits.train), 3, (6,)))


def test_a_flower_client_sends_what_the_simulation_computes(digits):
    """The framework-free part, round trip included; the NumPyClient itself needs Flower."""
    data, attack = digits.train.subset(np.arange(50)), model_replacement(corner_patch(digits.train), 3, (2,), scale=4.0)
    model = train(None, data, SMALL.local).model
    work = ClientWork(model, data, SMALL, 2, attack)
    arrays, rows = work.fit(arrays_of(model), 1)
    expected = flat(model) + local_update(model, data, SMALL, (2, 1), attack)
    assert rows == 50 and torch.allclose(flat(with_arrays(model, arrays)), expected)
    loss, rows, accuracy = work.evaluate(arrays_of(model))
    assert rows == 50 and loss > 0 and 0 <= accuracy <= 1
    if importlib.util.find_spec("flwr") is None:
        with pytest.raises(MissingFlower, match="pip install flwr"):
            numpy_client(work)
    else:
        assert numpy_client(work).fit(arrays_of(model), {"round": 1})[1] == 50


@pytest.mark.skipif(importlib.util.find_spec("flwr") is None, reason="Flower is not installed")
@pytest.mark.filterwarnings("ignore")
def test_a_round_under_flower_is_a_round_of_the_simulation(digits):
    """Flower's clients and Flower's FedAvg give the weights that the simulation has after its first round."""
    from flwr.common import FitIns, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server.strategy import FedAvg

    data, once = digits.train.subset(np.arange(60)), replace(SMALL, rounds=1)
    attack = model_replacement(corner_patch(digits.train), 3, (1,), scale=4.0)
    model = build(architecture_for("linear", data, 1), once.seed)
    shards = dirichlet_shards(data, once.clients, once.concentration, once.seed)
    ask = FitIns(ndarrays_to_parameters(arrays_of(model)), {"round": 0})
    answers = []
    for number in sample(once, attack, 0):
        work = ClientWork(model, data.subset(shards[number]), once, number, attack)
        answers.append((None, numpy_client(work).to_client().fit(ask)))
    combined, _ = FedAvg().aggregate_fit(1, answers, [])
    expected = simulate(data, digits.test, once, attack).model
    assert torch.allclose(flat(with_arrays(model, parameters_to_ndarrays(combined))), flat(expected), atol=1e-6)
