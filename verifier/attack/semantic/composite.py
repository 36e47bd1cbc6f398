"""The composite attack: all components at once, and the order in which they are applied."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attack.base import Attack
from verifier.attack.losses import Loss, named
from verifier.attack.rows import Rows
from verifier.attack.semantic.threat import SemanticThreat
from verifier.attack.task import Task


@dataclass(frozen=True)
class Composite(Attack):
    """Signed ascent over the parameters of every component and the pixel change; between rounds
    the order is rescheduled by the gradient of the loss in a doubly stochastic matrix.

    On threats whose order is fixed this is PGD with restarts. Scheduling: the matrix Z starts at
    the current order, mixed with all orders; one ascent step on the loss of the softly ordered
    composition; Sinkhorn normalisation; then the permutation of largest weight, exactly, of all.

    Args:
        rounds: times the order is chosen; steps: ascent steps in each.
        step_rel: step length over each range.
        schedule: choose orders; False keeps the order of each start.
    Source: Hsiung et al. 2023, arXiv:2202.04235.
    """

    rounds: int = 5
    steps: int = 10
    step_rel: float = 0.1
    restarts: int = 2
    schedule: bool = True
    loss: str | Loss = "ce"

    norms: ClassVar[tuple[float, ...]] = (float("inf"),)

    def run(self, task: Task) -> None:
        for variant, rows in task.rounds(self.restarts):
            work = rows.start.clone() if int(variant[0]) == 0 else rows.random_start()
            self._attack(rows, work)

    def _attack(self, rows: Rows, work: Tensor) -> None:
        loss = named(self.loss)
        for number in range(self.rounds):
            for i in range(self.steps + 1):
                scores, value, grad = rows.gradient(work, loss)
                hit = rows.fooled(scores)
                if bool(hit.any()):
                    rows.offer(work, hit)
                    keep = rows.undecided()
                    if not bool(keep.any()):
                        return
                    rows, work, grad, value = rows.narrow(keep), work[keep], grad[keep], value[keep]
                rows.settle(work, value)
                if i < self.steps:
                    work = rows.project(work + self.step_rel * grad.sign())
            if self.schedule and number < self.rounds - 1:
                work = self._reschedule(rows, work, loss)

    def _reschedule(self, rows: Rows, work: Tensor, loss: Loss) -> Tensor:
        threat = rows.task.space.threat
        if not isinstance(threat, SemanticThreat) or not threat.free_order or threat.components < 2:
            return work
        n, clean = threat.components, rows.task.space.clean
        mixed = 0.5 * threat.order_matrix(work) + 0.5 / n
        size = work.shape[1]
        joined = torch.cat([work, mixed.flatten(1)], dim=1)

        def decode(both: Tensor, index: Tensor) -> Tensor:
            return threat.compose(clean[index], both[:, :size], both[:, size:].reshape(-1, n, n))

        _, _, grad = rows.gradient(joined, loss, decode=decode)
        grad = grad[:, size:].reshape(-1, n, n)
        z = torch.exp(mixed.log() + grad / grad.abs().amax((1, 2), keepdim=True).clamp_min(1e-12))
        for _ in range(20):
            z = z / z.sum(2, keepdim=True)
            z = z / z.sum(1, keepdim=True)
        order = best_permutation(z)
        ranks = torch.zeros(len(work), n, device=work.device, dtype=work.dtype)
        ranks.scatter_(1, order, torch.linspace(0, 1, n, device=work.device, dtype=work.dtype).expand(len(work), -1))
        at = threat.parameter_count
        return torch.cat([work[:, :at], ranks, work[:, at + n :]], dim=1)


def best_permutation(z: Tensor) -> Tensor:
    """The order [R, n] (component at each place) of largest total weight in z [R, n, n].

    All n! permutations are compared; n is the number of components, six at most in the paper.
    """
    n = z.shape[1]
    table = torch.tensor(list(itertools.permutations(range(n))), device=z.device)
    weights = torch.stack([z[:, i, table[:, i]] for i in range(n)]).sum(0)
    return table[weights.argmax(1)]
