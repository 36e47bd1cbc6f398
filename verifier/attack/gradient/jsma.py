"""JSMA: pairs of features chosen by the saliency of the victim's Jacobian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attack.base import Attack
from verifier.attack.gradient.apgd import rivals
from verifier.attack.losses import pick
from verifier.attack.rows import Rows
from verifier.attack.task import Task


@dataclass(frozen=True)
class JSMA(Attack):
    """Moves, again and again, the pair of features that most raises the target's score while
    lowering the sum of the others, in whichever direction (up or down) is more salient.

    Args:
        step: how far a feature moves each time, as a share of its range; 1 goes to the face.
        share: features changed at most, as a share of all (a finite l0 budget lowers it).
        targets: untargeted runs aim at this many most likely rivals, one after the other.
        pool: features considered for pairs, by their own saliency; all when there are fewer.
            The search over pairs costs pool^2.
    Source: Papernot et al. 2016, arXiv:1511.07528; both directions: Wiyatno & Xu 2018,
        arXiv:1808.07945.
    """

    step: float = 1.0
    share: float = 0.3
    targets: int = 3
    pool: int = 128

    norms: ClassVar[tuple[float, ...]] = (0.0,)
    minimise: ClassVar[bool] = True

    def run(self, task: Task) -> None:
        if task.target is not None:
            self._walk(task.rows(), task.target)
            return
        order = rivals(task.rows())
        for rank in range(min(self.targets, order.shape[1])):
            self._walk(task.rows(), order[:, rank])

    def _walk(self, rows: Rows, aim: Tensor) -> None:
        work = rows.start.clone()
        features = work[0].numel()
        limit = rows.eps.clamp_max(max(2.0, self.share * features))
        moves = int(limit.max().item() / 2 / min(self.step, 1.0)) + 1
        for _ in range(moves):
            self_ok = rows.size(work) < limit[rows.index]
            best = rows.task.best_cost[rows.index]
            rows, work, aim = _narrow(rows, work, aim, self_ok & (rows.size(work) < best))
            if not len(rows):
                return
            work = self._move(rows, work, aim)
            hit = rows.fooled(rows.scores(work))
            rows.offer(work, hit)
            rows, work, aim = _narrow(rows, work, aim, ~hit)
            if not len(rows):
                return

    def _move(self, rows: Rows, work: Tensor, aim: Tensor) -> Tensor:
        """work after moving the most salient pair of each row."""
        _, _, toward = rows.gradient(work, _score_of_target, aim)
        _, _, away = rows.gradient(work, _score_of_others, aim)
        toward, away, flat = toward.flatten(1), away.flatten(1), work.flatten(1)
        low, high = rows.lower.flatten(1), rows.upper.flatten(1)
        up, down = flat < high, flat > low
        best_up, pair_up = self._pair(toward, away, up)
        best_down, pair_down = self._pair(-toward, -away, down)
        rising = best_up >= best_down
        pair = torch.where(rising[:, None], pair_up, pair_down)
        length = self.step * (high - low) * torch.where(rising, 1.0, -1.0).to(work)[:, None]
        moved = torch.minimum(torch.maximum(flat + length, low), high)
        chosen = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, pair, True)
        return torch.where(chosen, moved, flat).reshape(work.shape)

    def _pair(self, toward: Tensor, away: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """Saliency [R] and indices [R, 2] of the best pair among allowed features."""
        floor = torch.finfo(toward.dtype).min / 4
        single = torch.where(allowed, toward - away, torch.full_like(toward, floor))
        count = min(self.pool, toward.shape[1])
        pool = single.topk(count, dim=1).indices
        a, b = toward.gather(1, pool), away.gather(1, pool)
        alpha = a[:, :, None] + a[:, None, :]
        beta = b[:, :, None] + b[:, None, :]
        saliency = torch.where((alpha > 0) & (beta < 0), -alpha * beta, torch.full_like(alpha, -1.0))
        usable = allowed.gather(1, pool)
        saliency = saliency.masked_fill(~(usable[:, :, None] & usable[:, None, :]), -2.0)
        best, at = saliency.flatten(1).max(1)
        first, second = at // count, at % count
        # with no salient pair left, the two features that best separate the scores are moved
        none = best < 0
        first, second = torch.where(none, 0, first), torch.where(none, min(1, count - 1), second)
        pair = pool.gather(1, torch.stack([first, second], dim=1))
        return best, pair


def _narrow(rows: Rows, work: Tensor, aim: Tensor, keep: Tensor) -> tuple[Rows, Tensor, Tensor]:
    if bool(keep.all()):
        return rows, work, aim
    return rows.narrow(keep), work[keep], aim[keep]


def _score_of_target(scores: Tensor, label: Tensor, target: Tensor | None) -> Tensor:
    assert target is not None
    return pick(scores, target)


def _score_of_others(scores: Tensor, label: Tensor, target: Tensor | None) -> Tensor:
    assert target is not None
    return scores.sum(1) - pick(scores, target)
