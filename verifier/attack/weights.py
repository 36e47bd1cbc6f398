"""Worst-case perturbation of a network's own parameters within a ball; `certify/weights.py` has the proofs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from verifier.attack.base import as_batch
from verifier.attack.losses import Loss, named
from verifier.attack.model import Model, predicted
from verifier.attack.projections import norm, onto_ball
from verifier.attack.steps import steepest
from verifier.errors import SpecError


@dataclass(frozen=True)
class WeightAttackResult:
    """The worst parameters found.

    Attributes:
        parameters: name -> perturbed tensor; the module itself is untouched.
        clean_accuracy, accuracy: shares of the batch classified correctly before and after.
        clean_loss, loss: mean loss before and after.
        sizes: name -> norm of the change over the ball's radius for that parameter (<= 1).
        gradients: backward passes over the batch.
    """

    parameters: dict[str, Tensor]
    clean_accuracy: float
    accuracy: float
    clean_loss: float
    loss: float
    sizes: dict[str, float]
    gradients: int


@dataclass(frozen=True)
class WeightAttack:
    """max over ‖d_t‖_p <= radius_t for each parameter tensor t of the mean loss of the batch.

    Args:
        p: 1, 2 or inf.
        eps: radius; times the tensor's own p-norm per entry scale when `relative` (for inf, its
            largest magnitude; for 1 and 2, its norm), as quantisation and adversarial weight
            perturbation count it.
        only: parameter names to perturb; empty for all.
        steps, step_rel: projected gradient steps and their first length over the radius.
    Source: Weng et al. 2020, AAAI (weight perturbation); Wu et al. 2020, arXiv:2004.05884 (AWP).
    """

    p: float = float("inf")
    eps: float = 0.01
    relative: bool = True
    only: tuple[str, ...] = ()
    steps: int = 30
    step_rel: float = 0.2
    restarts: int = 1
    loss: str | Loss = "ce"

    def __call__(self, module: nn.Module, x: Any, y: Any, *, seed: int) -> WeightAttackResult:
        """Attack the parameters for the batch x [B, *S] with labels y [B].

        Raises:
            SpecError: unknown norm or parameter names.
        """
        if self.p not in (1.0, 2.0, float("inf")) or not self.eps >= 0:
            raise SpecError(f"weight attack: expected p in 1, 2, inf and eps >= 0, got p = {self.p}, eps = {self.eps}")
        model = Model.from_torch(module)
        inputs, label, _ = as_batch(model, x, y, None)
        start = {name: p.detach().clone() for name, p in module.named_parameters()}
        chosen = self.only or tuple(start)
        unknown = [n for n in chosen if n not in start]
        if unknown:
            raise SpecError(f"weight attack: no parameter {', '.join(unknown)}; the module has {', '.join(start)}")
        radius = {n: self._radius(start[n]) for n in chosen}
        generator = torch.Generator(device=inputs.device).manual_seed(seed)
        with torch.no_grad(), model.untouched():
            run = _Run(module, inputs, label, named(self.loss), start)
            clean_loss, clean_accuracy, _ = run.look({}, gradient=())
            best, best_loss, best_accuracy = {n: torch.zeros_like(start[n]) for n in chosen}, clean_loss, clean_accuracy
            for restart in range(self.restarts):
                delta = {n: self._start(start[n], radius[n], restart, generator) for n in chosen}
                for i in range(self.steps + 1):
                    loss, accuracy, grads = run.look(delta, gradient=chosen if i < self.steps else ())
                    if loss > best_loss:
                        best, best_loss, best_accuracy = delta, loss, accuracy
                    if i < self.steps:
                        length = self.step_rel * (1 - i / self.steps) + 0.01
                        delta = {n: self._step(delta[n], grads[n], radius[n], length) for n in chosen}
        moved = {n: start[n] + best[n] if n in best else start[n] for n in start}
        sizes = {n: float(norm(best[n].reshape(1, -1), self.p)[0]) / max(radius[n], 1e-30) for n in chosen}
        return WeightAttackResult(
            moved, clean_accuracy, best_accuracy, clean_loss, best_loss, sizes, self.restarts * self.steps
        )

    def _radius(self, value: Tensor) -> float:
        return self.eps * (float(norm(value.reshape(1, -1), self.p)[0]) if self.relative else 1.0)

    def _start(self, value: Tensor, radius: float, restart: int, generator: torch.Generator) -> Tensor:
        if restart == 0:
            return torch.zeros_like(value)
        noise = torch.randn(value.shape, generator=generator, device=value.device, dtype=value.dtype)
        return self._project(noise * radius / norm(noise.reshape(1, -1), self.p).clamp_min(1e-12), radius)

    def _step(self, delta: Tensor, grad: Tensor, radius: float, length: float) -> Tensor:
        flat = grad.reshape(1, -1)
        move = steepest(flat, self.p)
        return self._project(delta + length * radius * move.reshape(delta.shape), radius)

    def _project(self, delta: Tensor, radius: float) -> Tensor:
        flat = delta.reshape(1, -1)
        wide = torch.full_like(flat, torch.inf)
        return onto_ball(flat, self.p, flat.new_tensor([radius]), -wide, wide).reshape(delta.shape)


class _Run:
    """Loss, accuracy and parameter gradients of the module with shifted parameters."""

    def __init__(self, module: nn.Module, x: Tensor, y: Tensor, loss: Loss, start: dict[str, Tensor]):
        self.module, self.x, self.y, self.loss, self.start = module, x, y, loss, start

    def look(self, delta: dict[str, Tensor], gradient: tuple[str, ...]) -> tuple[float, float, dict[str, Tensor]]:
        """Mean loss and accuracy at start + delta, and gradients for the named parameters."""
        values = {n: v + delta[n] if n in delta else v for n, v in self.start.items()}
        with torch.enable_grad():
            free = [values[n].detach().requires_grad_(True) for n in gradient]
            values.update(zip(gradient, free, strict=True))
            scores = functional_call(self.module, values, (self.x,))
            loss = self.loss(scores, self.y, None).mean()
            grads = torch.autograd.grad(loss, free) if free else ()
        accuracy = float((predicted(scores) == self.y).double().mean())
        return float(loss.detach()), accuracy, dict(zip(gradient, grads, strict=True))
