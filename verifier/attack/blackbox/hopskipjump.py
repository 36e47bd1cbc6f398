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


@dataclass(frozen=True)
class HopSkipJump(Attack):
    """At a boundary point: estimate the boundary's normal from the labels of random points around
    it, jump along it as far as stays successful, and come back to the boundary by bisection. All
    samples move together; each has its own radius and jump length.

    Args:
        steps: jumps.
        initial: random points of the first estimate; step t uses initial * sqrt(t).
        most: random points per estimate at most.
        tries: queries of each kind for a start.
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
        # the paper's bisection threshold; the radius of the random points follows from it
        threshold = 1.0 / features**1.5 if task.space.p == 2 else 1.0 / features**2
        search = max(4, min(24, math.ceil(math.log2(1 / threshold))))
        rows, work = adversarial_starts(task, self.tries, search)
        if not len(rows):
            return
        work = self._pull(rows, work, search)
        for step in range(1, self.steps + 1):
            size = rows.size(work)
            count = min(self.most, int(self.initial * math.sqrt(step)))
            radius = (
                0.1 * rows.full_width.flatten(1).amax(1).clamp_max(1.0)
                if step == 1
                else size * (math.sqrt(features) * threshold if rows.p == 2 else features * threshold)
            )
            direction = self._normal(rows, work, radius, count)
            work = self._jump(rows, work, direction, size / math.sqrt(step))
            work = self._pull(rows, work, search)

    def _normal(self, rows: Rows, work: Tensor, radius: Tensor, count: int) -> Tensor:
        """Direction of rising success [R, *W], of unit size in the attack's norm."""
        total = torch.zeros_like(work)
        signs = torch.zeros(len(rows), device=work.device, dtype=work.dtype)
        noise_sum = torch.zeros_like(work)
        block = max(1, min(count, rows.task.model.rows_at_once // max(1, len(rows)) or 1))
        done = 0
        while done < count:
            part = min(block, count - done)
            shape = (len(rows), part, *work.shape[1:])
            noise = rows.task.normal(*shape) if rows.p == 2 else 2 * rows.task.uniform(*shape) - 1
            noise = noise * rows.free[:, None]
            noise = noise / noise.flatten(2).norm(dim=2).clamp_min(1e-12).reshape(
                len(rows), part, *([1] * (work.ndim - 1))
            )
            reach = along(radius, work)[:, None]
            points = rows.inside(work[:, None] + reach * noise)
            noise = (points - work[:, None]) / reach.clamp_min(1e-12)
            sign = rows.successes(points).to(work) * 2 - 1
            total += (sign.reshape(*sign.shape, *([1] * (work.ndim - 1))) * noise).sum(1)
            noise_sum += noise.sum(1)
            signs += sign.sum(1)
            done += part
        mean = signs / count
        # subtracting the mean sign lowers the variance; with all signs equal nothing would be left
        gradient = torch.where(
            along(mean.abs() < 1, total), total - along(mean, total) * noise_sum, along(mean, total) * noise_sum
        )
        if rows.p == float("inf"):
            return gradient.sign()
        return gradient / along(norm(gradient, 2).clamp_min(1e-12), gradient)

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
