"""Opt-attack and Sign-OPT: minimise the distance to the boundary over directions, labels only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from verifier.attack.base import Attack
from verifier.attack.blackbox.hard_label import adversarial_starts, unit
from verifier.attack.model import Access
from verifier.attack.projections import along, norm
from verifier.attack.rows import Rows
from verifier.attack.task import Task


@dataclass(frozen=True)
class SignOPT(Attack):
    """Gradient descent on g(theta), the distance at which direction theta leaves the class.

    Sign-OPT learns from one query per random direction only whether g rises there; Opt-attack
    (`exact=True`) measures the difference of g by bisection, many queries a direction.

    Args:
        steps: descent steps; directions: random directions per estimate.
        smoothing: length of the random directions, relative to the unit direction theta.
        rate: first step length on theta; doubled and halved by line search.
        search: bisection steps for each evaluation of g.
    Source: Cheng et al. 2020, arXiv:1909.10773 (Sign-OPT); Cheng et al. 2019, arXiv:1807.04457.
    """

    steps: int = 50
    directions: int = 100
    smoothing: float = 0.01
    rate: float = 0.2
    search: int = 10
    tries: int = 50
    exact: bool = False

    needs: ClassVar[Access] = Access.LABELS
    norms: ClassVar[tuple[float, ...]] = (2.0, float("inf"))
    minimise: ClassVar[bool] = True

    def run(self, task: Task) -> None:
        rows, work = adversarial_starts(task, self.tries, self.search)
        if not len(rows):
            return
        theta, distance = unit(work - rows.start, rows.p), rows.size(work)
        rate = torch.full((len(rows),), self.rate, device=work.device, dtype=work.dtype)
        for _ in range(self.steps):
            grad = self._estimate(rows, theta, distance)
            theta, distance, rate = self._line_search(rows, theta, distance, grad, rate)

    def _estimate(self, rows: Rows, theta: Tensor, distance: Tensor) -> Tensor:
        """Direction in which g rises, l2-normalised [R, *W]."""
        noise = rows.task.normal(len(rows), self.directions, *theta.shape[1:]) * rows.free[:, None]
        noise = unit(noise.flatten(0, 1), 2.0).reshape(noise.shape)
        scale = self.smoothing * along(norm(theta, 2), theta)
        near = unit((theta[:, None] + scale[:, None] * noise).flatten(0, 1), rows.p)
        if self.exact:
            many = rows.repeat(self.directions)
            far = self._distance(many, near, distance.repeat_interleave(self.directions))
            # bounded so that one direction that never succeeds does not drown the others
            far = far.reshape(len(rows), -1).minimum(2 * distance[:, None])
            weight = (far - distance[:, None]) / self.smoothing
        else:
            near = near.reshape(noise.shape)
            points = rows.inside(rows.start[:, None] + along(distance, theta)[:, None] * near)
            # still successful at the old distance: g is smaller there
            weight = 1.0 - 2.0 * rows.successes(points).to(theta)
        grad = (weight.reshape(*weight.shape, *([1] * (theta.ndim - 1))) * noise).mean(1)
        return unit(grad, 2.0)

    def _line_search(
        self, rows: Rows, theta: Tensor, distance: Tensor, grad: Tensor, rate: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Five step lengths around the last good one, all in one batch; the shortest g wins."""
        factors = torch.tensor([0.25, 0.5, 1.0, 2.0, 4.0], device=theta.device, dtype=theta.dtype)
        step = (rate[:, None] * factors).reshape(len(rows), -1, *([1] * (theta.ndim - 1)))
        if rows.p == float("inf"):
            # the steepest direction of the cube, cut to it: rescaling would shrink the other entries
            trial = unit((theta[:, None] - step * grad.sign()[:, None]).clamp(-1, 1).flatten(0, 1), rows.p)
        else:
            scale = along(norm(theta, 2), theta)[:, None]
            trial = unit((theta[:, None] - step * scale * grad[:, None]).flatten(0, 1), rows.p)
        many = rows.repeat(len(factors))
        found = self._distance(many, trial, distance.repeat_interleave(len(factors)))
        found = found.reshape(len(rows), -1)
        best, at = found.min(1)
        better = best < distance
        chosen = trial.reshape(len(rows), len(factors), *theta.shape[1:])[torch.arange(len(rows), device=at.device), at]
        theta = torch.where(along(better, theta), chosen, theta)
        rate = torch.where(better, rate * factors[at], rate / 4).clamp(1e-4, 2.0)
        return theta, torch.where(better, best, distance), rate

    def _distance(self, rows: Rows, theta: Tensor, known: Tensor) -> Tensor:
        """g(theta) for directions better than `known` [R], inf elsewhere: one query decides which."""
        first = rows.clip(rows.start + along(known, theta) * theta)
        hit = rows.achieved(rows.predictions(first))
        result = torch.full_like(known, torch.inf)
        if self.exact and not bool(hit.all()):
            hit, known = self._widen(rows, theta, hit, known)
        if not bool(hit.any()):
            return result
        part, theta, high = rows.narrow(hit), theta[hit], known[hit]
        low, best = torch.zeros_like(high), part.clip(part.start + along(high, theta) * theta)
        for _ in range(self.search):
            middle = (low + high) / 2
            point = part.clip(part.start + along(middle, theta) * theta)
            success = part.achieved(part.predictions(point))
            best = torch.where(along(success, point), point, best)
            low, high = torch.where(success, low, middle), torch.where(success, middle, high)
        part.offer(best, torch.ones(len(part), dtype=torch.bool, device=high.device))
        result[hit] = high
        return result

    def _widen(self, rows: Rows, theta: Tensor, hit: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Opt-attack also measures directions that got worse, up to twice the known distance."""
        wide = rows.clip(rows.start + along(2 * known, theta) * theta)
        late = rows.achieved(rows.predictions(wide)) & ~hit
        return hit | late, torch.where(late, 2 * known, known)


@dataclass(frozen=True)
class OptAttack(SignOPT):
    """Opt-attack: differences of the boundary distance measured by bisection."""

    exact: bool = True
    directions: int = 20
