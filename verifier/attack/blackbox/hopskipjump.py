"""HopSkipJump: boundary walks along a gradient direction estimated from labels alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attack.base import Attack
from verifier.attack.blackbox.hard_label import adversarial_starts
from verifier.attack.boundary import bisect, cut_back
from verifier.attack.model import Access
from verifier.attack.projections import along, norm
from verifier.attack.rows import Rows
from verifier.attack.task import Task

#: Numbers in the points that are made, looked at and summed in one go, what a core's cache holds; and how many times
#: as many random ones are drawn, once: every part takes its own run of them (Salimans et al. 2017, arXiv:1703.03864).
PART, TABLE = 2**18, 8
#: Root mean square length of a random move over the distance to the clean input. The paper's 1 / N makes it so short on
#: large inputs that a boundary point must be found to one part in N**1.5 (l2) or N**2 (linf).
RADIUS = 1 / 64
#: Queries after which a start is taken: the jumps lead as close from a farther one.
FEW = 3


@dataclass(frozen=True)
class HopSkipJump(Attack):
    """At a boundary point: estimate the boundary's normal from the labels of random points around
    it, jump along it as far as stays successful, and come back to the boundary by bisection. All
    samples move together; each has its own radius and jump length.

    Args:
        steps: jumps.
        initial: random points of the first estimate; step t uses initial * sqrt(t).
        most: random points per estimate at most.
        tries: queries of each kind for a start at most.
    Source: Chen, Jordan & Wainwright 2020, arXiv:1904.02144.
    """

    steps: int = 30
    initial: int = 100
    most: int = 10000
    tries: int = 50

    needs: ClassVar[Access] = Access.LABELS
    norms: ClassVar[tuple[float, ...]] = (2.0, float("inf"))
    minimise: ClassVar[bool] = True

    def run(self, task: Task) -> None:
        features = task.space.start[0].numel()
        # random moves go along the normal by a share of their length that falls with the features: so must the error
        finest = RADIUS / (features**0.5 if task.space.p == 2 else features)
        coarse, search = (math.ceil(math.log2(1 / error)) for error in (RADIUS, finest))
        rows, work = adversarial_starts(task, self.tries, coarse, FEW)
        if not len(rows):
            return
        table = task.normal(TABLE * max(PART, features))
        for step in range(1, self.steps + 1):
            size = rows.size(work)
            count = min(self.most, int(self.initial * math.sqrt(step)))
            radius = RADIUS * size if step > 1 else 0.1 * rows.full_width.flatten(1).amax(1).clamp_max(1.0)
            direction = self._normal(rows, work, radius, count, table)
            work = self._jump(rows, work, direction, size / math.sqrt(step))
            work = self._pull(rows, work, search)

    def _normal(self, rows: Rows, work: Tensor, radius: Tensor, count: int, table: Tensor) -> Tensor:
        """Direction of rising success [R, *W], of unit size in the attack's norm."""
        direction = torch.empty_like(work)
        for chosen in torch.arange(len(rows), device=work.device).split(max(1, PART // (count * work[0].numel()))):
            direction[chosen] = _estimate(rows.narrow_to(chosen), work[chosen], radius[chosen], count, table)
        if rows.p == float("inf"):
            return direction.sign()
        return direction / along(norm(direction, 2).clamp_min(1e-12), direction)

    def _jump(self, rows: Rows, work: Tensor, direction: Tensor, length: Tensor) -> Tensor:
        """work + length * direction, halving each row's length until it succeeds (or stays)."""
        result, open_index = work.clone(), torch.arange(len(rows), device=work.device)
        for _ in range(20):
            part = rows.narrow_to(open_index)
            trial = part.clip(work[open_index] + along(length[open_index], work) * direction[open_index])
            hit = part.achieved(part.predictions(trial))
            result[open_index[hit]] = trial[hit]
            part.offer(trial, hit)
            open_index = open_index[~hit]
            if not len(open_index):
                break
            length = length / 2
        return result

    def _pull(self, rows: Rows, work: Tensor, search: int) -> Tensor:
        """Back to the boundary: along the segment to the clean input, in linf by cutting the cube."""
        if rows.p == 2:
            return bisect(rows, rows.start, work, search)
        return cut_back(rows, work, search)


def _estimate(rows: Rows, work: Tensor, radius: Tensor, count: int, table: Tensor) -> Tensor:
    """Signs of success times moves, the mean sign subtracted, summed over `count` random moves of each row [R, *W].

    Args:
        radius: root mean square length of a move that the box does not cut [R].
        table: standard normal numbers, of which the moves are runs.
    """
    flat, low, high = (e.flatten(1)[:, None] for e in (work, rows.lower, rows.upper))
    scale = (radius / rows.free.flatten(1).sum(1).clamp_min(1).sqrt())[:, None, None]
    sums = flat.new_zeros(len(rows), 2, flat.shape[2])
    signs = flat.new_zeros(len(rows))
    for part in torch.arange(count).split(max(1, PART // flat.numel())):
        size = len(part) * flat.numel()
        first = int(rows.task.integers(len(table) - size, 1))
        points = (table[first : first + size].reshape(len(rows), -1, flat.shape[2]) * scale).add_(flat)
        points.clamp_(low, high)
        sign = rows.successes(points.unflatten(2, work.shape[1:])).to(work) * 2 - 1
        sums.baddbmm_(torch.stack([sign, torch.ones_like(sign)], dim=1), points.sub_(flat))
        signs += sign.sum(1)
    mean = along(signs / count, work)
    signed, plain = (e.reshape(work.shape) for e in sums.unbind(1))
    # subtracting the mean sign lowers the variance; with all signs equal nothing would be left
    return torch.where(mean.abs() < 1, signed - mean * plain, signed)
