"""What a trained network says: logits, labels, accuracy, and the features before its last layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from verifier.data import Dataset
from verifier.errors import NetworkError

_ROWS_AT_ONCE = 4096


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are; the CPU if it has none."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode with parameters that gather no gradients; restored on leaving."""
    training, flags = model.training, [p.requires_grad for p in model.parameters()]
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    try:
        yield model
    finally:
        model.train(training)
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)


def logits(model: nn.Module, x: np.ndarray) -> np.ndarray:
    """Logits [n, C], float32, of rows x [n, *shape], in batches."""
    device = device_of(model)
    with frozen(model), torch.no_grad():
        parts = [model(part.to(device)).cpu() for part in torch.tensor(np.asarray(x)).split(_ROWS_AT_ONCE)]
    return torch.cat(parts).numpy()


def labels(model: nn.Module, x: np.ndarray) -> np.ndarray:
    """Predicted classes, int64 [n]; none for no rows."""
    return logits(model, x).argmax(axis=1) if len(x) else np.zeros(0, dtype=np.int64)


def accuracy(model: nn.Module, data: Dataset) -> float:
    """Fraction of rows predicted as labelled; NaN for no rows."""
    return float(np.mean(labels(model, data.x) == data.y)) if len(data) else float("nan")


def cross_entropies(model: nn.Module, data: Dataset) -> np.ndarray:
    """Cross-entropy of every row, float64 [n]."""
    z = logits(model, data.x).astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    return np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(data)), data.y]


def feature_layer(model: nn.Module, where: str = "last") -> tuple[str, nn.Linear]:
    """Name and module of the linear layer whose input is called the features.

    Args:
        where: "last": the last linear layer (the penultimate representation). "early": the first
            one that is not the network's first layer with weights, so after the convolutions or after
            the first hidden layer; networks with one linear layer have just the last.
    Raises:
        NetworkError: the model has no linear layer.
    """
    weighted = [(n, m) for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    found = [(name, module) for name, module in weighted if isinstance(module, nn.Linear)]
    if not found:
        raise NetworkError("features: the model has no nn.Linear layer to read them before")
    later = [pair for pair in found if pair[1] is not weighted[0][1]]
    return later[0] if where == "early" and later else found[-1]


def features_of(model: nn.Module, x: Tensor, where: str = "last") -> Tensor:
    """Input of the feature layer, [n, D]; differentiable in x and in the parameters."""
    caught: list[Tensor] = []
    handle = feature_layer(model, where)[1].register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    try:
        model(x)
    finally:
        handle.remove()
    return caught[-1].flatten(1)


def features(model: nn.Module, x: np.ndarray, where: str = "last") -> np.ndarray:
    """`features_of` for arrays, float32 [n, D], in batches, without gradients."""
    device = device_of(model)
    with frozen(model), torch.no_grad():
        parts = torch.tensor(np.asarray(x)).split(_ROWS_AT_ONCE)
        return torch.cat([features_of(model, part.to(device), where).cpu() for part in parts]).numpy()
