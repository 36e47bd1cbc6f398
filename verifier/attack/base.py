"""The calling convention every attack shares.

`Attack.__call__` is final: it validates, asks the victim about the clean inputs, lets `run` work
on the samples that are not lost already, makes what was found feasible in exact arithmetic, and
asks the victim again about exactly what is returned. An attack implements `run` alone.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from verifier.attack.model import Access, Model, predicted, wrap
from verifier.attack.projections import along
from verifier.attack.stand_in import stand_in
from verifier.attack.task import Task
from verifier.attack.threat import Space, Threat
from verifier.errors import ShapeError, SpecError


@dataclass(frozen=True)
class AttackResult:
    """What an attack found for each of B samples.

    Attributes:
        adversarial: inputs inside the threat, [B, *S]; where `success` is false, the attack's
            closest attempt or the clean input.
        success: bool [B], from re-prediction of exactly `adversarial`.
        prediction, clean_prediction: int64 [B]; -1 where the victim answered NaN.
        distortion: "l0", "l1", "l2", "linf" -> float64 [B], in units of the threat's scale.
        queries: victim evaluations per sample [B], the clean and the final check included.
        gradients: backward passes per sample [B].
        restarts: restarts used per sample [B].
        seconds: each sample's share of the wall time, by queries, float64 [B].
        parameters: what produced `adversarial` in a semantic threat, [B, *W]; None otherwise.
    """

    adversarial: Tensor
    success: Tensor
    prediction: Tensor
    clean_prediction: Tensor
    distortion: dict[str, Tensor]
    queries: Tensor
    gradients: Tensor
    restarts: Tensor
    seconds: Tensor
    parameters: Tensor | None = None


@dataclass(frozen=True)
class Attack(ABC):
    """An attack with its settings; subclasses are frozen dataclasses and implement `run`.

    Class attributes:
        needs: the access to the victim it takes.
        norms: norms it can bound or minimise; empty for any.
        minimise: it looks for the smallest perturbation (a finite eps then only decides success).
    """

    needs: ClassVar[Access] = Access.GRADIENT
    norms: ClassVar[tuple[float, ...]] = ()
    minimise: ClassVar[bool] = False

    @abstractmethod
    def run(self, task: Task) -> None:
        """Attack the task's samples, recording successes with `Rows.offer`."""

    @property
    def name(self) -> str:
        """The attack's name for reports."""
        return type(self).__name__.lower()

    def settings(self) -> dict[str, Any]:
        """Field name -> value, for reports and for comparing runs."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @final
    def __call__(
        self,
        model: Any,
        x: Any,
        y: Any,
        threat: Threat,
        *,
        targets: Any = None,
        seed: int,
    ) -> AttackResult:
        """Attack a batch.

        Args:
            model: a Model, or anything `model.wrap` accepts.
            x: inputs [B, *S], tensor or array (never written to), in the user's units.
            y: labels [B].
            threat: what may change.
            targets: classes to reach [B], or None to leave y.
            seed: the same call with the same seed gives the same result.
        Returns:
            AttackResult. Samples the victim already gets wrong (or already on target) come back
            unchanged, as successes of size zero.
        Raises:
            SpecError: unsupported norm or access, labels or inputs out of range.
            ShapeError: x, y or targets of different lengths.
        """
        began = time.perf_counter()
        model = wrap(model)
        self._admit(model, threat)
        inputs, label, target = as_batch(model, x, y, targets)
        with torch.no_grad(), model.untouched():
            model = stand_in(model, inputs)
            space = threat.space(inputs)
            clean = _ask(model, space.clean)
            _check_labels(label, target, clean.classes)
            goal = _goal(clean.prediction, label, target)
            result = _Parts(space, goal, model.evaluations_per_row)
            # a victim that answers NaN on the clean input is still attacked; it can only be
            # fooled by inputs on which it answers with numbers
            todo = (~goal).nonzero()[:, 0]
            if len(todo):
                part = None if target is None else target[todo]
                task = Task(model, space.subset(todo), label[todo], part, self.minimise, seed)
                task.classes = clean.classes
                self.run(task)
                result.absorb(task, todo)
                _recheck(model, threat, result, label, target)
            return result.finish(threat, clean.prediction, time.perf_counter() - began)

    def _admit(self, model: Model, threat: Threat) -> None:
        if model.access < self.needs:
            raise SpecError(
                f"{self.name}: needs {self.needs.name.lower()} of the victim, {model.source} gives "
                f"{model.access.name.lower()} only; choose a black-box attack"
            )
        if self.norms and threat.primary not in self.norms:
            raise SpecError(
                f"{self.name}: expected a threat in norm {' or '.join(f'{p:g}' for p in self.norms)}, "
                f"got {threat.primary:g}"
            )


#: How much further points lost to rounding go, try after try, relative to their perturbation, until they lead by so
#: many times what rounding took from them.
PUSHES, SAFE = (1e-5, 1e-4, 1e-3, 1e-2), 4.0


@dataclass
class _Answer:
    """Predictions [R], by how much each leads beyond the rounding of a sum [R] (inf: unknown), and K (0: unknown)."""

    prediction: Tensor
    lead: Tensor
    classes: int


class _Parts:
    """The result under construction, over all B samples."""

    def __init__(self, space: Space, goal: Tensor, cost: int):
        self.space, self.cost = space, cost
        self.work = space.start.clone()
        self.adversarial = space.clean.clone()
        self.success = goal.clone()
        self.candidate = torch.zeros_like(goal)
        self.changed, self.lead = torch.zeros_like(goal), torch.zeros_like(goal, dtype=torch.float64)
        self.queries = torch.full(goal.shape, cost, dtype=torch.int64, device=goal.device)
        self.gradients = torch.zeros_like(self.queries)
        self.restarts = torch.zeros_like(self.queries)
        self.prediction: Tensor | None = None

    def absorb(self, task: Task, todo: Tensor) -> None:
        """Take over what the task on samples `todo` int64 [M] found and what it cost."""
        found = task.best_cost.isfinite()
        self.work[todo] = torch.where(along(found, task.best), task.best, task.fallback)
        self.candidate[todo] = found
        self.queries[todo] += task.queries
        self.gradients[todo] += task.gradients
        self.restarts[todo] += task.restarts

    def finish(self, threat: Threat, clean_prediction: Tensor, wall: float) -> AttackResult:
        """What the caller gets, `wall` seconds after it asked."""
        prediction = clean_prediction.clone()
        if self.prediction is not None:
            prediction = torch.where(self.changed, self.prediction, prediction)
        return AttackResult(
            adversarial=self.adversarial,
            success=self.success,
            prediction=prediction,
            clean_prediction=clean_prediction,
            distortion=threat.distortion(self.space.clean, self.adversarial),
            queries=self.queries,
            gradients=self.gradients,
            restarts=self.restarts,
            seconds=wall * self.queries.double() / self.queries.sum().clamp_min(1),
            parameters=self.work if threat.is_semantic else None,
        )


def _recheck(model: Model, threat: Threat, parts: _Parts, label: Tensor, target: Tensor | None) -> None:
    """Finalise, predict exactly what is returned, and push points lost to rounding a little further."""
    space = parts.space
    parts.adversarial = threat.finalise(space, parts.work)
    parts.changed = (parts.adversarial != space.clean).flatten(1).any(1)
    parts.prediction = torch.full_like(label, -1)
    _predict_into(parts, model, parts.changed, label, target)
    lost = parts.candidate & ~parts.success & parts.changed
    taken = torch.where(parts.lead.isfinite(), parts.lead, 0.0).clamp_min(0)
    for push in PUSHES:
        if not bool(lost.any()):
            return
        further = space.start + (parts.work - space.start) * (1 + push)
        further = torch.minimum(torch.maximum(further, space.lower), space.upper)
        retry = _Parts(space, parts.success, parts.cost)
        retry.adversarial, retry.prediction = threat.finalise(space, further), parts.prediction.clone()
        retry.queries = parts.queries
        _predict_into(retry, model, lost, label, target)
        better = retry.success & lost
        mask = along(better, parts.work)
        parts.work = torch.where(mask, further, parts.work)
        parts.adversarial = torch.where(along(better, parts.adversarial), retry.adversarial, parts.adversarial)
        parts.prediction = torch.where(better, retry.prediction, parts.prediction)
        parts.success = parts.success | better
        # where rounding lost a point once, it could again in another batch
        lost = lost & ~(retry.success & (retry.lead > SAFE * taken))


def _predict_into(parts: _Parts, model: Model, rows: Tensor, label: Tensor, target: Tensor | None) -> None:
    chosen = rows.nonzero()[:, 0]
    if not len(chosen):
        return
    answer = _ask(model, parts.adversarial[chosen])
    parts.queries[chosen] += parts.cost
    assert parts.prediction is not None
    parts.prediction[chosen] = answer.prediction
    reached = _goal(answer.prediction, label[chosen], None if target is None else target[chosen])
    parts.success[chosen], parts.lead[chosen] = reached, answer.lead


def _ask(model: Model, x: Tensor) -> _Answer:
    predictions, lead, classes = [], [], 0
    for piece in x.split(max(1, model.rows_at_once)):
        if model.access >= Access.SCORES:
            scores = model.judged(piece)
            classes = scores.shape[1]
            predictions.append(predicted(scores))
            first, second = scores.topk(2, dim=1).values.unbind(1)
            lead.append((first - second - 8 * torch.finfo(scores.dtype).eps * scores.abs().amax(1)).double())
        else:
            predictions.append(model.labels(piece))
            lead.append(torch.full_like(predictions[-1], torch.inf, dtype=torch.float64))
    return _Answer(torch.cat(predictions), torch.cat(lead), classes)


def _goal(prediction: Tensor, label: Tensor, target: Tensor | None) -> Tensor:
    reached = prediction != label if target is None else prediction == target
    return reached & (prediction >= 0)


def as_batch(model: Model, x: Any, y: Any, targets: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Inputs [B, *S], labels [B] and targets [B] (or None) as tensors where the model lives.

    Raises:
        ShapeError: an empty batch, or lengths that differ.
        SpecError: NaN or infinite inputs.
    """
    inputs = _tensor(x).to(device=model.device, dtype=model.dtype)
    label = _tensor(y).to(device=model.device, dtype=torch.int64)
    target = None if targets is None else _tensor(targets).to(device=model.device, dtype=torch.int64)
    if inputs.ndim < 2 or inputs.shape[0] == 0 or inputs[0].numel() == 0:
        raise ShapeError(f"inputs: expected a non-empty batch [B, ...], got {list(inputs.shape)}")
    for name, value in (("labels", label), ("targets", target)):
        if value is not None and value.shape != inputs.shape[:1]:
            raise ShapeError(f"{name}: expected [{inputs.shape[0]}] (B), got {list(value.shape)}")
    if not bool(inputs.isfinite().all()):
        raise SpecError("inputs: expected finite numbers, got NaN or infinite values")
    return inputs, label, target


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    return torch.from_numpy(np.array(value))  # a copy: callers' read-only arrays stay theirs


def _check_labels(label: Tensor, target: Tensor | None, classes: int) -> None:
    for name, value in (("labels", label), ("targets", target)):
        if value is None:
            continue
        high = classes if classes else int(value.max()) + 1
        if int(value.min()) < 0 or int(value.max()) >= high:
            raise SpecError(f"{name}: expected classes 0..{high - 1}, got {int(value.min())}..{int(value.max())}")
    if target is not None and bool((target == label).any()):
        raise SpecError("targets: expected classes other than the labels; drop those samples or attack untargeted")


def configured(attack: Attack, **changes: Any) -> Attack:
    """The same attack with some settings changed.

    Raises:
        SpecError: a setting the attack does not have.
    """
    known = {f.name for f in fields(attack)}
    unknown = sorted(set(changes) - known)
    if unknown:
        raise SpecError(f"{attack.name}: no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    return replace(attack, **changes)
