"""The graph of a victim, and the misclassifications of a sample as clauses over its outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from verifier.attack.model import Model
from verifier.attack.onnx_victim import GraphModule
from verifier.errors import NetworkError
from verifier.graph.ir import Graph
from verifier.spec.groups import ClauseRows, Group
from verifier.spec.problem import Clause


def graph_of(model: Model, shape: tuple[int, ...]) -> Graph:
    """What the victim computes from inputs [1, *shape], preprocessing included.

    Raises:
        NetworkError, UnsupportedOperator: the victim cannot be traced, or has an operator without bounds.
    """
    if model.module is None:
        raise NetworkError(f"bounds need the victim's network; {model.source} is a bare function")
    if isinstance(model.module, GraphModule) and model.preprocess is None:
        return model.module.network.graph
    from verifier.graph.torch.importer import load_module

    return load_module(_Deployed(model), (1, *shape))


class _Deployed(nn.Module):
    """Preprocessing and victim as one module."""

    def __init__(self, model: Model):
        super().__init__()
        self.inner, self.preprocess = cast(nn.Module, model.module), model.preprocess

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x if self.preprocess is None else self.preprocess(x))
        return out[0] if isinstance(out, (tuple, list)) else out


@dataclass(frozen=True)
class Classes:
    """The scores of K classes, coeffs @ y + offset, as `Model.scores` orders them.

    Attributes:
        coeffs: [K, N_out]; offset: [K].
    """

    coeffs: np.ndarray
    offset: np.ndarray

    @staticmethod
    def of(model: Model, outputs: int) -> Classes:
        """One score an output; a single output z is two classes, (0, z), or (1 - z, z) for probabilities."""
        if outputs > 1:
            return Classes(np.eye(outputs), np.zeros(outputs))
        if model.output == "probabilities":
            return Classes(np.array([[-1.0], [1.0]]), np.array([1.0, 0.0]))
        return Classes(np.array([[0.0], [1.0]]), np.zeros(2))

    def goal(self, lower: np.ndarray, upper: np.ndarray, label: int, target: int | None) -> tuple[Group, np.ndarray]:
        """A box [N_in] as a group whose clauses hold where the attack succeeds, and the class of each clause [C].

        Untargeted, a clause for every rival, whose score reaches the label's; targeted, one clause with a
        row for every class that the target's score must reach.
        """
        every = np.arange(len(self.offset))
        if target is None:
            reached = every[every != label]
            clauses = tuple(self._clause(np.array([label]), k) for k in reached)
        else:
            reached = np.array([target])
            clauses = (self._clause(every[every != target], target),)
        limits = np.concatenate([c.limits for c in clauses])
        return Group(ClauseRows(clauses), lower[None], upper[None], limits[None], np.zeros(1, dtype=np.int64)), reached

    def _clause(self, others: np.ndarray, winner: int) -> Clause:
        """score(winner) >= score(o) for every o of others."""
        return Clause(
            self.coeffs[others] - self.coeffs[winner],
            self.offset[winner] - self.offset[others],
            np.zeros(len(others), dtype=bool),
        )


def flat(x: Tensor) -> np.ndarray:
    """One input [1, *S] as float64 [N_in]."""
    return x.detach().to(device="cpu", dtype=torch.float64).reshape(-1).numpy()
