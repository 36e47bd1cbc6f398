"""Mode connectivity: a curve between two models, trained on a little trusted data, whose middle forgets."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from verifier.data import Dataset
from verifier.errors import ShapeError
from verifier.training.predict import accuracy
from verifier.training.repair.tuning import FINE_TUNE
from verifier.training.train import Progress, train


@dataclass(frozen=True)
class Connection:
    """Settings of the curve.

    Attributes:
        kind: "bezier" (quadratic) or "chain" (two straight pieces through the bend).
        epochs, batch_size, learning_rate: of the training of the bend.
        seed: of the batches and positions.
    """

    kind: str = "bezier"
    epochs: int = 100
    batch_size: int = 32
    learning_rate: float = 5e-3
    seed: int = 0


class Curve:
    """All the models between two ends, by one position in [0, 1].

    Attributes:
        weights: (first end, bend, second end), each name -> tensor.
    """

    def __init__(self, module: nn.Module, weights: tuple[dict[str, Tensor], ...], kind: str):
        self._module, self.weights, self.kind = module, weights, kind

    def position(self, t: float) -> dict[str, Tensor]:
        """The weights at t; 0 and 1 are the ends exactly."""
        a, b, c = _shares(t, self.kind)
        first, bend, last = self.weights
        return {name: a * first[name] + b * bend[name] + c * last[name] for name in first}

    def model(self, t: float) -> nn.Module:
        """A copy of the network with the weights at t."""
        found = copy.deepcopy(self._module)
        found.load_state_dict({name: value.detach() for name, value in self.position(t).items()}, strict=False)
        return found.eval()


def _shares(t: float, kind: str) -> tuple[float, float, float]:
    if kind == "bezier":
        return (1 - t) ** 2, 2 * t * (1 - t), t**2
    return max(1 - 2 * t, 0.0), 1 - abs(2 * t - 1), max(2 * t - 1, 0.0)


def connect(
    first: nn.Module, second: nn.Module, clean: Dataset, settings: Connection | None = None,
    progress: Progress | None = None,
) -> Curve:  # fmt: skip
    """Train the bend of a curve so that the loss on trusted rows is small all along it.

    Raises:
        ShapeError: the two models differ in their parameters.
    Source: Garipov et al. 2018, arXiv:1802.10026; as a repair: Zhao et al. 2020, arXiv:2005.00060.
    """
    s = settings or Connection()
    ends = [{name: value.detach().clone() for name, value in m.named_parameters()} for m in (first, second)]
    if {n: v.shape for n, v in ends[0].items()} != {n: v.shape for n, v in ends[1].items()}:
        raise ShapeError("mode connectivity: the two models must have the same layers")
    bend = {name: ((value + ends[1][name]) / 2).requires_grad_(True) for name, value in ends[0].items()}
    module = copy.deepcopy(first).eval()
    curve = Curve(module, (ends[0], bend, ends[1]), s.kind)
    x, y = torch.tensor(clean.x), torch.tensor(clean.y)
    generator = torch.Generator().manual_seed(s.seed)
    optimizer = torch.optim.Adam(list(bend.values()), s.learning_rate)
    for epoch in range(s.epochs):
        for batch in torch.randperm(len(x), generator=generator).split(s.batch_size):
            t = float(torch.rand((), generator=generator))
            loss = functional.cross_entropy(functional_call(module, curve.position(t), (x[batch],)), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if progress is not None:
            progress((epoch + 1) / s.epochs, f"loss on the curve {float(loss.detach()):.4f}")
    return curve


def connect_and_choose(
    model: nn.Module, clean: Dataset, settings: Connection | None = None, progress: Progress | None = None
) -> nn.Module:
    """Repair one model: connect it with a fine-tuned copy, take the point of the middle most right on trusted rows.

    The second end is the model fine-tuned on the trusted rows. Among t = 0.3, 0.4, ... 0.7 the one
    with the highest accuracy there is taken, the middle winning ties.
    """
    s = settings or Connection()
    other = train(model, clean, replace(FINE_TUNE, seed=s.seed)).model
    curve = connect(model, other, clean, s, progress)
    places = sorted(np.linspace(0.3, 0.7, 5).tolist(), key=lambda t: abs(t - 0.5))
    models = [curve.model(t) for t in places]
    return models[int(np.argmax([accuracy(m, clean) for m in models]))]
