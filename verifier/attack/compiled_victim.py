"""An ONNX victim evaluated and differentiated by the native engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from verifier.attack.losses import COMPILED, Loss
from verifier.attack.onnx_victim import GraphModule
from verifier.bounds.native_engine import NativeEngine, supports
from verifier.errors import DeviceError


class CompiledForward:
    """Scores of a GraphModule by compiled code: the same up to round-off, for small networks many times faster.

    Args:
        module: what is evaluated; it checks the shapes.
        engine: a native engine of the same graph.
    """

    def __init__(self, module: GraphModule, engine: NativeEngine):
        self.module, self.engine = module, engine

    def __call__(self, x: Tensor) -> Tensor:
        """Scores [R, K] for inputs [R, ...], differentiable once; ShapeError where the numbers of features differ."""
        flat = self.module.flat(x)
        if torch.is_grad_enabled() and x.requires_grad:
            return _Scores.apply(flat, self)
        self.engine.threads = torch.get_num_threads()
        return torch.from_numpy(self.engine.evaluate(flat.numpy())).to(flat.dtype)

    def knows(self, loss: Loss) -> bool:
        """Whether `climb` takes this loss."""
        return loss in COMPILED and self.engine.network.outputs > 1

    def climb(self, x: Tensor, loss: Loss, label: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Scores [R, K], loss values [R] and their gradients in x [R, ...], zero where they are not finite."""
        flat = self.module.flat(x)
        goal = None if target is None else target.numpy()
        found = self.engine.network.climb(
            flat.numpy(), COMPILED[loss], label.numpy(), goal, threads=torch.get_num_threads()
        )
        scores, value, gradient = map(torch.from_numpy, found)
        return scores, value, gradient.reshape(x.shape)

    def record(self, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Scores [R, K], and the map from weights of them [R * S, K], S in turn for each row, to the derivatives of
        the weighted sums [R * S, N]."""
        flat = self.module.flat(x)
        self.engine.threads = torch.get_num_threads()
        scores, trace = self.engine.record(flat.numpy())

        def pull_back(weights: Tensor) -> Tensor:
            return torch.from_numpy(self.engine.pull_back(trace, weights.numpy())).to(flat.dtype)

        return torch.from_numpy(scores).to(flat.dtype), pull_back


def compiled(module: GraphModule) -> CompiledForward | None:
    """The module's network as compiled code, where there is some."""
    graph = module.network.source
    try:
        engine = NativeEngine(graph) if supports(graph) else None
    except DeviceError:
        return None
    return None if engine is None else CompiledForward(module, engine)


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
