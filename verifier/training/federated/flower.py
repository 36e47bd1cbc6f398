"""The same clients under Flower: a NumPyClient that trains, and attacks, as the simulation's do.

Flower (package `flwr`) is optional: nothing else in the project imports this module.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from verifier.data import Dataset
from verifier.errors import VerifierError
from verifier.training import predict
from verifier.training.federated.attack import FederatedAttack
from verifier.training.federated.simulate import Federation, add_flat, local_update


class MissingFlower(VerifierError):
    """Flower was asked for and is not installed."""


def arrays_of(model: nn.Module) -> list[np.ndarray]:
    """The parameters in Flower's form, one array each, in the order of `parameters()`."""
    return [p.detach().cpu().numpy().copy() for p in model.parameters()]


def with_arrays(model: nn.Module, arrays: list[np.ndarray]) -> nn.Module:
    """A copy of the model with these parameters."""
    found = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, array in zip(found.parameters(), arrays, strict=True):
            parameter.copy_(torch.tensor(np.asarray(array)))
    return found.eval()


class ClientWork:
    """What one client does in a round, independent of the framework that asks for it.

    Args:
        model: the network's shape; its weights are replaced by the server's.
        shard: the client's rows; number: who it is in `attack.clients`.
    """

    def __init__(
        self,
        model: nn.Module,
        shard: Dataset,
        federation: Federation,
        number: int,
        attack: FederatedAttack | None = None,
    ):
        self.model, self.shard, self.federation, self.number, self.attack = model, shard, federation, number, attack

    def fit(self, arrays: list[np.ndarray], round_: int) -> tuple[list[np.ndarray], int]:
        """The client's new parameters after its local training, and its number of rows."""
        start = with_arrays(self.model, arrays)
        delta = local_update(start, self.shard, self.federation, (self.number, round_), self.attack)
        add_flat(start, delta)
        return arrays_of(start), len(self.shard)

    def evaluate(self, arrays: list[np.ndarray]) -> tuple[float, int, float]:
        """Mean cross-entropy, rows, and accuracy on the client's own rows."""
        model = with_arrays(self.model, arrays)
        return (
            float(predict.cross_entropies(model, self.shard).mean()),
            len(self.shard),
            predict.accuracy(model, self.shard),
        )


def numpy_client(work: ClientWork) -> Any:
    """A `flwr.client.NumPyClient` around the work; the server's config names the round as "round".

    Raises:
        MissingFlower: the package is not installed.
    """
    try:
        from flwr.client import NumPyClient
    except ImportError:
        raise MissingFlower("Flower is not installed; `pip install flwr`, or use the built-in simulation") from None

    class Client(NumPyClient):
        def get_parameters(self, config: dict) -> list[np.ndarray]:
            return arrays_of(work.model)

        def fit(self, parameters: list[np.ndarray], config: dict) -> tuple[list[np.ndarray], int, dict]:
            arrays, rows = work.fit(parameters, int(config.get("round", 0)))
            return arrays, rows, {}

        def evaluate(self, parameters: list[np.ndarray], config: dict) -> tuple[float, int, dict]:
            loss, rows, accuracy = work.evaluate(parameters)
            return loss, rows, {"accuracy": accuracy}

    return Client()
