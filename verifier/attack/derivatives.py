"""Derivatives of a victim's scores: by torch's autograd, or by the victim's own record of an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from verifier.attack.losses import Loss
from verifier.attack.model import Model

if TYPE_CHECKING:
    from verifier.attack.compiled_victim import CompiledForward

#: Numbers in a Jacobian up to which one batched backward pass is faster than one a class (measured: 2.6 times
#: on small dense networks, 1.5 on small convolutional ones, slower than one a class beyond a million numbers).
TOGETHER = 300_000

Map = Callable[[Tensor], Tensor]


def of_loss(
    model: Model, work: Tensor, to_inputs: Map, loss: Loss, label: Tensor, target: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [R, K], loss values [R], and the derivative of each value in its row of work [R, *W].

    Args:
        to_inputs: differentiable, work -> inputs.
    """
    with torch.enable_grad():
        work = work.detach().requires_grad_(True)
        inputs = to_inputs(work)
        if model.compiled is None:
            scores = model.scores(inputs)
            value = loss(scores, label, target)
            return scores.detach(), value.detach(), _derivative(value, work)
        inputs = model.prepared(inputs)
        if inputs is work and model.compiled.knows(loss):
            return model.compiled.climb(work.detach(), loss, label, target)
        raw, scores, pull_back = _recorded(model, model.compiled, work, inputs)
        value = loss(scores, label, target)
        return scores.detach(), value.detach(), pull_back(_derivative(value, raw)[:, None])[:, 0]


def of_scores(model: Model, work: Tensor, to_inputs: Map, choose: Map) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [R, K], the classes chosen from them [R, C], and the derivatives of their scores [R, C, *W]."""
    with torch.enable_grad():
        work = work.detach().requires_grad_(True)
        if model.compiled is None:
            scores = model.scores(to_inputs(work))
            classes = choose(scores.detach())
            return scores.detach(), classes, _jacobian(scores.gather(1, classes), work, model.vectorised)
        raw, scores, pull_back = _recorded(model, model.compiled, work, model.prepared(to_inputs(work)))
        classes = choose(scores.detach())
        if scores is raw:
            weights = torch.eye(raw.shape[1], dtype=raw.dtype)[classes]
        else:
            weights = _jacobian(scores.gather(1, classes), raw, together=True)
        return scores.detach(), classes, pull_back(weights)


def _recorded(model: Model, compiled: CompiledForward, work: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor, Map]:
    """The victim's answer [R, C] as a leaf, its scores [R, K], and derivatives in the answer [R, S, C] -> in work
    [R, S, *W]."""
    raw, pull_back = compiled.record(inputs.detach())
    raw.requires_grad_(True)

    def to_work(weights: Tensor) -> Tensor:
        grad = _finite(pull_back(weights.flatten(0, 1))).reshape(*weights.shape[:2], *inputs.shape[1:])
        if inputs is work:
            return grad
        inner = [(inputs * g).flatten(1).sum(1) for g in grad.unbind(1)]
        return torch.stack([_derivative(value, work, retain=True) for value in inner], dim=1)

    return raw, model.as_scores(raw, len(work)), to_work


def _jacobian(scores: Tensor, w: Tensor, together: bool) -> Tensor:
    """Derivatives [R, C, *W] of scores [R, C] in w [R, *W], row by row; `together`: in one pass where that pays."""
    count = scores.shape[1]
    if together and scores.requires_grad and count * w.numel() <= TOGETHER:
        seeds = torch.eye(count, dtype=scores.dtype, device=scores.device)[:, None].expand(-1, len(w), -1)
        (grad,) = torch.autograd.grad(scores, w, seeds, is_grads_batched=True, allow_unused=True)
        return _finite(torch.zeros(count, *w.shape) if grad is None else grad).transpose(0, 1)
    return torch.stack([_derivative(scores[:, k], w, retain=k < count - 1) for k in range(count)], dim=1)


def _derivative(value: Tensor, w: Tensor, retain: bool = False) -> Tensor:
    """Derivatives [R, *W] of values [R], each of its own row of w."""
    if not value.requires_grad:
        return torch.zeros_like(w)
    # given seeds, torch first imports its symbolic shapes, for up to a second; a sum needs none
    (grad,) = torch.autograd.grad(value.sum(), w, retain_graph=retain, allow_unused=True)
    return torch.zeros_like(w) if grad is None else _finite(grad)


def _finite(grad: Tensor) -> Tensor:
    """Derivatives, zero where the victim overflowed."""
    return torch.nan_to_num(grad, nan=0.0, posinf=0.0, neginf=0.0)
