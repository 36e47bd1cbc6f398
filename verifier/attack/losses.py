"""What attacks maximise: one function a loss, scores [R, K] -> values [R].

Every loss takes (scores, label [R], target [R] or None) and grows as the attack comes closer to
its goal: leaving `label`, or reaching `target`. Losses that rank more classes than the model has
fall back as their docstrings say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from verifier.errors import SpecError

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def cross_entropy(scores: Tensor, label: Tensor, target: Tensor | None) -> Tensor:
    """-log softmax at `label`; targeted: log softmax at `target`."""
    if target is None:
        return F.cross_entropy(scores, label, reduction="none")
    return -F.cross_entropy(scores, target, reduction="none")


def rival(scores: Tensor, label: Tensor) -> Tensor:
    """The highest score of a class other than `label`, [R]."""
    if not scores.requires_grad:
        return scores.scatter(1, label[:, None], -torch.inf).amax(dim=1)
    # looked up rather than reduced: the derivative of a gather costs a third of that of a maximum
    return pick(scores, rival_class(scores, label))


def rival_class(scores: Tensor, label: Tensor) -> Tensor:
    """The class other than `label` with the highest score, [R]."""
    return scores.detach().scatter(1, label[:, None], -torch.inf).argmax(dim=1)


def margin(scores: Tensor, label: Tensor, target: Tensor | None) -> Tensor:
    """Goal score minus the best other: positive exactly when the attack has succeeded.

    max_{k != y} z_k - z_y, or z_t - max_{k != t} z_k with a target.
    """
    if target is None:
        return rival(scores, label) - pick(scores, label)
    return pick(scores, target) - rival(scores, target)


def confident(value: Tensor, kappa: float) -> Tensor:
    """bool [R]: margins that are a success of confidence `kappa`."""
    return (value > 0) & (value >= kappa)


def capped_margin(kappa: float) -> Loss:
    """min(margin, kappa): nothing is gained beyond confidence `kappa` >= 0 (Carlini & Wagner 2017)."""
    if not kappa >= 0:
        raise SpecError(f"kappa: expected a number >= 0, got {kappa}")

    def loss(scores: Tensor, label: Tensor, target: Tensor | None) -> Tensor:
        return margin(scores, label, target).clamp_max(kappa)

    return loss


def difference(scores: Tensor, label: Tensor, target: Tensor | None) -> Tensor:
    """z_t - z_y for a target; without one, the margin."""
    if target is None:
        return margin(scores, label, None)
    return pick(scores, target) - pick(scores, label)


def dlr(scores: Tensor, label: Tensor, target: Tensor | None) -> Tensor:
    """Difference of logits ratio, invariant to shifts and scalings of the scores.

    -(z_y - max_{k != y} z_k) / (z_(1) - z_(3)), and with a target
    -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), z_(i) the i-th largest score. With 3 classes the
    targeted denominator is z_(1) - z_(3); with 2 the plain difference of scores is used.
    Source: Croce & Hein 2020, arXiv:2003.01690, eqs. 6-7.
    """
    gain = difference(scores, label, target)
    classes = scores.shape[1]
    if classes < 3:
        return gain
    top = scores.topk(min(classes, 4), dim=1).values
    low = (top[:, 2] + top[:, 3]) / 2 if target is not None and classes > 3 else top[:, 2]
    return gain / (top[:, 0] - low + 1e-12)


def specification_rows(clauses: Sequence[tuple[Tensor, Tensor]]) -> Loss:
    """Violation of a specification: positive when some clause holds in all its rows.

    Args:
        clauses: (coeffs [M, K], limits [M]) pairs; a clause is unsafe where coeffs @ y <= limits.
    Returns:
        A loss max over clauses of min over rows of (limits - coeffs @ y); label and target are
        not used.
    """
    if not clauses:
        raise SpecError("specification loss: expected at least one clause, got none")

    def loss(scores: Tensor, label: Tensor, target: Tensor | None) -> Tensor:
        slack = [(limits.to(scores) - scores @ coeffs.to(scores).T).amin(dim=1) for coeffs, limits in clauses]
        return torch.stack(slack).amax(dim=0)

    return loss


def pick(scores: Tensor, index: Tensor) -> Tensor:
    """scores[r, index[r]], [R]."""
    return scores.gather(1, index[:, None])[:, 0]


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "margin": margin,
    "difference": difference,
    "dlr": dlr,
}


#: Losses that compiled code knows as well, by its names for them.
COMPILED: dict[Loss, str] = {cross_entropy: "cross_entropy", margin: "margin"}


def named(loss: str | Loss) -> Loss:
    """A loss given by name or as a function."""
    if callable(loss):
        return loss
    if loss not in LOSSES:
        raise SpecError(f"loss: expected one of {', '.join(LOSSES)} or a function, got {loss!r}")
    return LOSSES[loss]
