"""Five signs that attack results on a victim would mislead, looked for before any attack runs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.attack.losses import cross_entropy
from verifier.attack.model import Access, Model

#: gradients of cross-entropy whose largest entry stays below this carry no direction in float32
VANISHED = 1e-10


@dataclass(frozen=True)
class Flag:
    """One sign.

    Attributes:
        name: randomised, vanishing_gradients, softmax, constant_logits or nan.
        raised: whether the victim shows it; share: of the samples looked at, 0..1.
        message: what was seen, and what to do where it was raised.
    """

    name: str
    raised: bool
    share: float
    message: str


def inspect(model: Model, x: Tensor, y: Tensor) -> tuple[Flag, ...]:
    """The five flags for a victim on inputs x [B, *S] with labels y [B].

    A victim that gives labels only is asked about randomness alone.
    """
    with torch.no_grad(), model.untouched():
        if model.access < Access.SCORES:
            return (_randomised((model.labels(x) != model.labels(x)).double()),)
        first, second = model.scores(x), model.scores(x)
        same = ((first == second) | (first.isnan() & second.isnan())).all(1)
        flags = [_randomised((~same).double()), _softmax(model, first), _constant(first), _nan(first)]
        if model.access >= Access.GRADIENT:
            flags.insert(1, _vanishing(_gradient_sizes(model, x, y)))
    return tuple(flags)


def _gradient_sizes(model: Model, x: Tensor, y: Tensor) -> Tensor:
    with torch.enable_grad():
        free = x.detach().clone().requires_grad_(True)
        value = cross_entropy(model.scores(free), y, None).sum()
        (grad,) = torch.autograd.grad(value, free, allow_unused=True) if value.requires_grad else (None,)
    return torch.zeros(len(x)) if grad is None else grad.flatten(1).abs().amax(1)


def _randomised(differs: Tensor) -> Flag:
    share = float(differs.mean())
    return Flag(
        "randomised",
        share > 0,
        share,
        "two evaluations of the same input differ: attack the expectation (EOT) and distrust gradient-free results"
        if share
        else "the same input gives the same answer",
    )


def _vanishing(sizes: Tensor) -> Flag:
    share = float((~(sizes > VANISHED)).double().mean())
    return Flag(
        "vanishing_gradients",
        share > 0.1,
        share,
        f"cross-entropy has no gradient on {share:.0%} of the samples: trust margin losses and black-box attacks"
        if share > 0.1
        else f"gradients vanish on {share:.0%} of the samples",
    )


def _softmax(model: Model, scores: Tensor) -> Flag:
    stripped = bool(getattr(model.module, "ends_in_softmax", False))
    sums = bool(((scores >= 0) & (scores <= 1)).all()) and bool(((scores.sum(1) - 1).abs() < 1e-4).all())
    raised = stripped or model.output == "probabilities" or (sums and scores.shape[1] > 1)
    if stripped:
        message = "the network ends in a softmax: attacks looked through it, at the logits"
    elif model.output == "probabilities":
        message = "the victim gives probabilities: attacks used their logarithm"
    else:
        message = "outputs look like probabilities: declare output='probabilities', or gradients saturate"
    return Flag("softmax", raised, float(raised), message if raised else "outputs are logits")


def _constant(scores: Tensor) -> Flag:
    spread = torch.nan_to_num(scores.amax(0) - scores.amin(0)).amax()
    raised = len(scores) > 1 and float(spread) == 0.0
    message = "every input gives the same scores: check the preprocessing" if raised else "scores depend on the input"
    return Flag("constant_logits", raised, float(raised), message)


def _nan(scores: Tensor) -> Flag:
    share = float((~scores.isfinite()).any(1).double().mean())
    message = f"scores are NaN or infinite on {share:.0%} of the samples" if share else "all scores are finite"
    return Flag("nan", share > 0, share, message)
