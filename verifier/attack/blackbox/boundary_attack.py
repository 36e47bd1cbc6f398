"""The boundary attack: a random walk along the decision boundary towards the clean input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attack.base import Attack
from verifier.attack.blackbox.hard_label import adversarial_starts
from verifier.attack.model import Access
from verifier.attack.projections import along, norm
from verifier.attack.rows import Rows
from verifier.attack.task import Task


@dataclass(frozen=True)
class Boundary(Attack):
    """Each step moves at random on the sphere around the clean input, then a little inwards; both
    step lengths follow their own success rates, per sample.

    Args:
        steps: proposals (two queries each: on the sphere, and inwards where that succeeded).
        orthogonal, inward: first step lengths, relative to the distance.
        window: proposals between adaptations of the lengths.
    Source: Brendel et al. 2018, arXiv:1712.04248.
    """

    steps: int = 1000
    orthogonal: float = 0.1
    inward: float = 0.05
    window: int = 20
    tries: int = 50

    needs: ClassVar[Access] = Access.LABELS
    norms: ClassVar[tuple[float, ...]] = (2.0,)
    minimise: ClassVar[bool] = True

    def run(self, task: Task) -> None:
        rows, work = adversarial_starts(task, self.tries, 10)
        if len(rows):
            self._walk(rows, work)

    def _walk(self, rows: Rows, work: Tensor) -> None:
        side = torch.full((len(rows),), self.orthogonal, device=work.device, dtype=work.dtype)
        inward = torch.full_like(side, self.inward)
        side_wins, inward_wins, inward_tries = torch.zeros_like(side), torch.zeros_like(side), torch.zeros_like(side)
        for i in range(self.steps):
            sphere = self._on_sphere(rows, work, side)
            hit = rows.achieved(rows.predictions(sphere))
            side_wins += hit
            if bool(hit.any()):
                part, spot = rows.narrow(hit), sphere[hit]
                closer = part.clip(spot + along(inward[hit], spot) * (part.start - spot))
                won = part.achieved(part.predictions(closer))
                part.offer(closer, won)
                work[hit] = torch.where(along(won, spot), closer, spot)
                inward_wins[hit] += won.to(inward_wins)
                inward_tries[hit] += 1
            if i % self.window == self.window - 1:
                rate = side_wins / self.window
                side = torch.where(rate > 0.5, side * 1.3, torch.where(rate < 0.2, side / 1.3, side)).clamp_max(1.0)
                share = inward_wins / inward_tries.clamp_min(1)
                longer = torch.where(share < 0.25, inward / 1.5, inward)
                inward = torch.where((share > 0.5) & (inward_tries > 0), inward * 1.5, longer).clamp_max(0.5)
                side_wins, inward_wins, inward_tries = (
                    torch.zeros_like(t) for t in (side_wins, inward_wins, inward_tries)
                )

    def _on_sphere(self, rows: Rows, work: Tensor, side: Tensor) -> Tensor:
        """A random point at the same distance from the clean input, cut to the box."""
        back = rows.start - work
        distance = norm(back, 2)
        unit = back / along(distance.clamp_min(1e-12), back)
        noise = rows.task.normal(*work.shape) * rows.free
        noise = noise - along((noise * unit).flatten(1).sum(1), noise) * unit
        noise = noise / along(norm(noise, 2).clamp_min(1e-12), noise)
        moved = work + along(side * distance, work) * noise
        out = moved - rows.start
        return rows.clip(rows.start + out * along(distance / norm(out, 2).clamp_min(1e-12), out))
