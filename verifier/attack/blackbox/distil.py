"""Distillation of a surrogate from a black box: train a network on the victim's own answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verifier.attack.model import Access, Model
from verifier.attack.optimisers import Adam


@dataclass(frozen=True)
class Distilled:
    """A surrogate and what it cost.

    Attributes:
        model: the surrogate, with gradients.
        queries: inputs the victim was asked about.
        agreement: share of those inputs on which the surrogate predicts what the victim does.
    """

    model: Model
    queries: int
    agreement: float


def distil(
    victim: Model,
    student: nn.Module,
    x: Tensor,
    *,
    seed: int,
    rounds: int = 3,
    epochs: int = 40,
    rate: float = 0.01,
) -> Distilled:
    """Train `student` (in place) to answer as `victim` does on x and on points around it.

    Each round after the first adds x + noise towards where the student's answers change fastest
    (Jacobian augmentation), labelled by the victim: by its softmax where it gives scores, by its
    labels otherwise.

    Args:
        student: a module on the victim's inputs, with as many outputs as the victim has classes.
        x: unlabelled inputs [M, *S].
        rounds: times the data set is labelled and doubled; epochs: passes over it in each round.
    Source: Papernot et al. 2017, arXiv:1602.02697; Hinton et al. 2015, arXiv:1503.02531.
    """
    generator = torch.Generator(device=x.device).manual_seed(seed)
    data, queries = x, 0
    low, high = x.amin(), x.amax()
    answers: list[Tensor] = []
    for round_number in range(rounds):
        fresh = data[sum(len(a) for a in answers) :]
        answers.append(_ask(victim, fresh, student))
        queries += len(fresh)
        _fit(student, data, torch.cat(answers), epochs, rate, generator)
        if round_number < rounds - 1:
            pushed = data + 0.1 * (high - low) * _sensitivity(student, data).sign()
            data = torch.cat([data, pushed.clamp(low, high)])
    surrogate = Model.from_torch(student, preprocess=victim.preprocess)
    with torch.no_grad(), surrogate.untouched():
        agreement = (surrogate.labels(data) == torch.cat(answers).argmax(1)).double().mean()
    return Distilled(surrogate, queries, float(agreement))


def _ask(victim: Model, x: Tensor, student: nn.Module) -> Tensor:
    """The victim's answers as class probabilities [M, K]."""
    with torch.no_grad(), victim.untouched():
        if victim.access >= Access.SCORES:
            return victim.scores(x).softmax(1)
        classes = student(x[:1]).shape[1]
        return F.one_hot(victim.labels(x).clamp(0, classes - 1), classes).to(x)


def _fit(student: nn.Module, x: Tensor, answers: Tensor, epochs: int, rate: float, generator: torch.Generator) -> None:
    parameters = [p for p in student.parameters() if p.requires_grad]
    rules = [Adam(p.detach(), rate) for p in parameters]
    mode = student.training
    student.train()
    with torch.enable_grad():
        for _ in range(epochs):
            for batch in torch.randperm(len(x), generator=generator, device=x.device).split(128):
                loss = F.cross_entropy(student(x[batch]), answers[batch])
                grads = torch.autograd.grad(loss, parameters)
                with torch.no_grad():
                    for parameter, rule, grad in zip(parameters, rules, grads, strict=True):
                        parameter.sub_(rule.step(grad))
    student.train(mode)


def _sensitivity(student: nn.Module, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(student(x).amax(1).sum(), x)
    return grad
