"""Adversarial neuron pruning: neurons that a small push turns towards the backdoor are cut."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from verifier.data import Dataset
from verifier.errors import NetworkError
from verifier.training.predict import accuracy
from verifier.training.train import Progress

_Scales = dict[str, Tensor]


@dataclass(frozen=True)
class NeuronPruning:
    """Settings.

    Attributes:
        push: largest relative change of a neuron's weights and bias by the inner attack.
        alpha: weight of the unpushed loss; 1 - alpha of the pushed one.
        steps: of the mask's training; inner_steps: of each attack.
        learning_rate: of the mask.
        drop: masks below a threshold are cut, the largest threshold whose accuracy on trusted
            rows stays within `drop` of the unpruned.
        batch_size, seed: of the batches.
    """

    push: float = 0.4
    alpha: float = 0.2
    steps: int = 400
    inner_steps: int = 1
    learning_rate: float = 0.2
    drop: float = 0.02
    batch_size: int = 64
    seed: int = 0


def prune_neurons(
    model: nn.Module, clean: Dataset, settings: NeuronPruning | None = None, progress: Progress | None = None
) -> nn.Module:
    """Learn a mask in [0, 1] per hidden neuron that keeps the loss small under pushes, and cut what it closes.

    Hidden neurons are the outputs (channels) of every layer with weights but the last.

    Source: Wu & Wang 2021, arXiv:2110.14430.
    Raises:
        NetworkError: the model has no hidden layer.
    """
    s = settings or NeuronPruning()
    layers = _hidden_layers(model)
    mask = {name: torch.ones(len(module.weight), requires_grad=True) for name, module in layers.items()}
    generator = torch.Generator().manual_seed(s.seed)
    x, y = torch.tensor(clean.x), torch.tensor(clean.y)
    module = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.SGD(list(mask.values()), s.learning_rate, momentum=0.9)
    for step in range(s.steps):
        batch = torch.randperm(len(x), generator=generator)[: s.batch_size]
        pushes = _worst_pushes(module, layers, (x[batch], y[batch]), mask, s, generator)
        plain = functional.cross_entropy(_run(module, layers, x[batch], mask, None), y[batch])
        pushed = functional.cross_entropy(_run(module, layers, x[batch], mask, pushes), y[batch])
        optimizer.zero_grad()
        (s.alpha * plain + (1 - s.alpha) * pushed).backward()
        optimizer.step()
        with torch.no_grad():
            for value in mask.values():
                value.clamp_(0, 1)
        if progress is not None and step % 20 == 19:
            progress((step + 1) / s.steps, f"loss {float(pushed.detach()):.3f} under pushes")
    return _cut(model, {name: value.detach() for name, value in mask.items()}, clean, s.drop)


def _hidden_layers(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d | nn.Conv1d]:
    found = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d))}
    if len(found) < 2:
        raise NetworkError("adversarial neuron pruning: the model has no hidden layer to prune")
    found.popitem()
    return found


def _run(module: nn.Module, layers: dict, x: Tensor, mask: _Scales, pushes: tuple[_Scales, _Scales] | None) -> Tensor:
    """Logits with every hidden neuron's weights times mask + push, its bias times 1 + push."""
    changed = {}
    for name, layer in layers.items():
        factor = mask[name] if pushes is None else mask[name] + pushes[0][name]
        changed[f"{name}.weight"] = layer.weight.detach() * factor.reshape(-1, *[1] * (layer.weight.ndim - 1))
        if layer.bias is not None:
            bias = mask[name] if pushes is None else mask[name] * (1 + pushes[1][name])
            changed[f"{name}.bias"] = layer.bias.detach() * bias
    return functional_call(module, changed, (x,))


def _worst_pushes(
    module: nn.Module, layers: dict, rows: tuple[Tensor, Tensor], mask: _Scales, s: NeuronPruning,
    generator: torch.Generator,
) -> tuple[_Scales, _Scales]:  # fmt: skip
    fixed = {name: value.detach() for name, value in mask.items()}
    pushes = tuple(
        {n: s.push * (2 * torch.rand(v.shape, generator=generator) - 1) for n, v in fixed.items()} for _ in range(2)
    )
    for _ in range(s.inner_steps):
        parts = [part[name].requires_grad_(True) for part in pushes for name in fixed]
        loss = functional.cross_entropy(_run(module, layers, rows[0], fixed, (pushes[0], pushes[1])), rows[1])
        gradients = iter(torch.autograd.grad(loss, parts, allow_unused=True))
        for part in pushes:
            for name in fixed:
                gradient = next(gradients)
                sign = torch.zeros_like(part[name]) if gradient is None else gradient.sign()
                part[name] = (part[name].detach() + s.push * sign).clamp(-s.push, s.push)
    return pushes[0], pushes[1]


def _cut(model: nn.Module, mask: _Scales, clean: Dataset, drop: float) -> nn.Module:
    """The model without the neurons below the largest threshold that keeps the accuracy."""
    limit, best = accuracy(model, clean) - drop, copy.deepcopy(model).eval()
    for threshold in torch.linspace(0.0, 0.95, 20).tolist():
        candidate = copy.deepcopy(model).eval()
        modules = dict(candidate.named_modules())
        with torch.no_grad():
            for name, value in mask.items():
                layer = modules[name]
                assert isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d))
                layer.weight[value <= threshold] = 0.0
                if layer.bias is not None:
                    layer.bias[value <= threshold] = 0.0
        if accuracy(candidate, clean) >= limit:
            best = candidate
    return best
