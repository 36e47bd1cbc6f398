"""Victims evaluated and differentiated by the native engine: network files, and torch modules that can be followed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from verifier.attack.losses import COMPILED, Loss
from verifier.attack.onnx_victim import as_features
from verifier.bounds.native_engine import NativeEngine, supports
from verifier.errors import DeviceError
from verifier.graph.ir import Graph


class CompiledForward:
    """Scores of a graph by compiled code: the same up to round-off, for small networks many times faster."""

    def __init__(self, engine: NativeEngine):
        self.graph, self.network = engine.graph, engine.network

    def __call__(self, x: Tensor) -> Tensor:
        """Scores [R, K] for inputs [R, ...], differentiable once; ShapeError where the numbers of features differ."""
        flat = as_features(x, self.network.inputs, self.graph)
        if torch.is_grad_enabled() and x.requires_grad:
            return _Scores.apply(flat, self)
        return torch.from_numpy(self.network.evaluate(flat.numpy(), threads=torch.get_num_threads()))

    def knows(self, loss: Loss) -> bool:
        """Whether `climb` takes this loss."""
        return loss in COMPILED and self.network.outputs > 1

    def climb(self, x: Tensor, loss: Loss, label: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [R, K], loss values [R] and their gradients in x [R, ...], zero where they are not finite."""
        flat = as_features(x, self.network.inputs, self.graph)
        goal = None if target is None else target.numpy()
        found = self.network.climb(flat.numpy(), COMPILED[loss], label.numpy(), goal, threads=torch.get_num_threads())
        scores, value, gradient = map(torch.from_numpy, found)
        return scores, value, gradient.reshape(x.shape)

    def ascend(
        self,
        x: Tensor,
        loss: Loss,
        goal: tuple[Tensor, Tensor | None, Tensor | None],
        box: tuple[Tensor, Tensor],
        length: Tensor,
        shares: list[float],
    ) -> tuple[Tensor, Tensor]:
        """Projected sign ascent of a loss from inputs [R, ...], each until it reaches its goal.

        Args:
            goal: label [R], target [R] or None, and what the loss aims at instead of the target [R] or None.
            box: lower and upper ends like x; length: of each input's steps [R]; shares: of it for each step.
        Returns:
            Where they arrived [R, ...], and the steps it took int64 [R], -1 where the goal was not reached.
        """
        label, target, aim = (None if c is None else c.numpy() for c in goal)
        lower, upper = (e.flatten(1).numpy() for e in box)
        points, taken = self.network.ascend(
            *(as_features(x, self.network.inputs, self.graph).numpy(), COMPILED[loss], label, target, aim),
            *(lower, upper, length.numpy(), length.new_tensor(shares).numpy()),
            threads=torch.get_num_threads(),
        )
        return torch.from_numpy(points).reshape(x.shape), torch.from_numpy(taken)

    def record(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Scores [R, K], and the map from weights of them [R * S, K], S in turn for each row, to the derivatives of
        the weighted sums [R * S, N]."""
        flat = as_features(x, self.network.inputs, self.graph)
        threads = torch.get_num_threads()
        scores, trace = self.network.record(flat.numpy(), threads=threads)

        def pull_back(weights: Tensor) -> Tensor:
            return torch.from_numpy(self.network.pull_back(trace, weights.numpy(), threads=threads))

        return torch.from_numpy(scores), pull_back


def compiled(graph: Graph) -> CompiledForward | None:
    """A graph as compiled code, where there is some."""
    try:
        return CompiledForward(NativeEngine(graph)) if supports(graph) else None
    except DeviceError:
        return None


class _Scores(torch.autograd.Function):
    """`CompiledForward.record` for autograd: scores [R, K] of flat inputs [R, N]."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, victim: CompiledForward) -> Tensor:
        scores, ctx.pull_back = victim.record(flat)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor, None]:
        return ctx.pull_back(weights), None
