"""Training for proofs: cross-entropy of the worst margins that interval or linear bounds allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.errors import NetworkError, SpecError
from verifier.training.architecture import Normalise
from verifier.training.graphs import layers_of
from verifier.training.train import BatchLoss


@dataclass(frozen=True)
class Schedule:
    """How the certified loss is phased in.

    Attributes:
        radius: final half-width of the box around a row, data's units.
        steps: optimiser steps of the whole training (epochs times batches).
        warm_up: share of the steps with radius 0; ramp: share over which it then grows linearly.
        kappa: final weight of the clean loss; it falls from 1 with the ramp.
        beta: weight of the linear (CROWN) bound at the start of the ramp, falling to 0: CROWN-IBP.
            0 throughout is plain IBP.
        valid: range of the inputs, each end a number or [*shape].
    """

    radius: float
    steps: int
    warm_up: float = 0.1
    ramp: float = 0.5
    kappa: float = 0.5
    beta: float = 0.0
    valid: tuple[np.ndarray | float, np.ndarray | float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not (self.radius > 0 and self.steps >= 1 and self.warm_up >= 0 and self.ramp > 0):
            raise SpecError(f"certified training: radius, steps and ramp must be positive, got {self}")

    def progress(self, step: int) -> float:
        """Share of the ramp done at an optimiser step, in [0, 1]."""
        return float(np.clip((step / self.steps - self.warm_up) / self.ramp, 0.0, 1.0))


def certified(schedule: Schedule) -> BatchLoss:
    """kappa * clean cross-entropy + (1 - kappa) * cross-entropy of the worst margins in the box.

    With `beta` > 0 the margins are beta * CROWN + (1 - beta) * IBP. One loss object serves one training.

    Source: Gowal et al. 2018, arXiv:1810.12715; Zhang et al. 2020, arXiv:1906.06316 (CROWN-IBP).
    """
    taken = 0

    def loss(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        nonlocal taken
        share = schedule.progress(taken)
        taken += 1
        clean = functional.cross_entropy(model(x), y)
        if share == 0:
            return clean
        lower, upper = (torch.as_tensor(end, dtype=x.dtype, device=x.device) for end in schedule.valid)
        radius = share * schedule.radius
        box = torch.maximum(x - radius, lower), torch.minimum(x + radius, upper)
        beta = schedule.beta * (1 - share)
        margins = worst_margins(model, *box, y, linear=False)
        if beta > 0:
            margins = (1 - beta) * margins + beta * worst_margins(model, *box, y, linear=True)
        kappa = 1 - share * (1 - schedule.kappa)
        return kappa * clean + (1 - kappa) * functional.cross_entropy(-margins, y)

    return loss


def worst_margins(model: nn.Module, lower: Tensor, upper: Tensor, y: Tensor, *, linear: bool) -> Tensor:
    """Lower bounds [n, C] of z_y - z_k over the boxes [n, *shape]; 0 in column y. Differentiable.

    For training and quick estimates: real arithmetic, so a certificate comes from `verifier.api.verify`.

    Args:
        linear: one backward pass with lines over the interval pre-activations (CROWN-IBP), else intervals.
    Raises:
        NetworkError: a layer other than linear, convolution, relu, flatten or normalisation.
    """
    layers = [layer for _, layer in layers_of(model)]
    boxes = [(lower, upper)]
    for layer in layers:
        boxes.append(interval(layer, *boxes[-1]))
    classes = boxes[-1][0].shape[1]
    eye = torch.eye(classes, dtype=lower.dtype, device=lower.device)
    rows = eye[y][:, None] - eye[None]  # [n, C, C]
    stop = len(layers) if linear else 1  # the last layer is merged with the margins
    offset = torch.zeros(rows.shape[:2], dtype=lower.dtype, device=lower.device)
    for layer, (low, high) in zip(reversed(layers[-stop:]), reversed(boxes[len(layers) - stop : -1]), strict=True):
        rows, offset = backward(layer, rows, offset, (low, high))
    low, high = boxes[len(layers) - stop]
    flat = rows.flatten(2)
    center, reach = ((high + low) / 2).flatten(1), ((high - low) / 2).flatten(1)
    return (flat @ center[..., None])[..., 0] - (flat.abs() @ reach[..., None])[..., 0] + offset


def interval(layer: nn.Module, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's interval rule."""
    if isinstance(layer, (nn.Linear, nn.Conv2d)):
        center, reach = (lower + upper) / 2, (upper - lower) / 2
        middle, around = layer(center), _linear_map(layer, layer.weight.abs())(reach)
        return middle - around, middle + around
    if isinstance(layer, (nn.ReLU, nn.Flatten, Normalise)):  # monotone: scale > 0
        return layer(lower), layer(upper)
    raise NetworkError(f"certified training: no interval rule for {type(layer).__name__}")


def _linear_map(layer: nn.Linear | nn.Conv2d, weight: Tensor) -> Callable[[Tensor], Tensor]:
    if isinstance(layer, nn.Linear):
        return lambda x: functional.linear(x, weight)
    return lambda x: functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)


def backward(layer: nn.Module, rows: Tensor, offset: Tensor, box: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Carry lower-bounding rows [n, R, *out] and offsets [n, R] from a layer's output to its input box."""
    low, high = box
    if isinstance(layer, nn.Linear):
        return rows @ layer.weight, offset if layer.bias is None else offset + rows @ layer.bias
    if isinstance(layer, nn.Conv2d):
        vjp = torch.func.vjp(_linear_map(layer, layer.weight), torch.zeros_like(low[:1]))[1]
        flat = rows.flatten(0, 1)
        moved = torch.func.vmap(lambda row: vjp(row[None])[0][0])(flat)
        if layer.bias is not None:
            offset = offset + (rows.flatten(3).sum(dim=3) * layer.bias).sum(dim=2)
        return moved.reshape(*rows.shape[:2], *low.shape[1:]), offset
    if isinstance(layer, nn.ReLU):
        return _backward_relu(rows, offset, low, high)
    if isinstance(layer, nn.Flatten):
        return rows.reshape(*rows.shape[:2], *low.shape[1:]), offset
    if isinstance(layer, Normalise):
        scaled = rows / layer.scale
        return scaled, offset - (scaled * layer.center).flatten(2).sum(dim=2)
    raise NetworkError(f"certified training: no linear rule for {type(layer).__name__}")


def _backward_relu(rows: Tensor, offset: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """relu(x) >= slope x, slope 0 or 1 by the larger side; relu(x) <= high (x - low) / (high - low)."""
    crossing = (low < 0) & (high > 0)
    width = torch.where(crossing, high - low, torch.ones_like(high))
    chord = torch.where(crossing, high / width, (low >= 0).to(low))
    lean = torch.where(crossing, (high > -low).to(low), (low >= 0).to(low))
    above = torch.where(crossing, -chord * low, torch.zeros_like(low))
    negative = rows.clamp(max=0)
    offset = offset + (negative * above[:, None]).flatten(2).sum(dim=2)
    return rows.clamp(min=0) * lean[:, None] + negative * chord[:, None], offset
