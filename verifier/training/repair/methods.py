"""The repairs by name, with a table of before and after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from verifier.data import Dataset
from verifier.errors import SpecError
from verifier.training.backdoor.trigger import Trigger
from verifier.training.detect.neural_cleanse import Cleanse, neural_cleanse
from verifier.training.repair.curve import Connection, connect_and_choose
from verifier.training.repair.erasing import ERASING, tune_under_boxes
from verifier.training.repair.neurons import NeuronPruning, prune_neurons
from verifier.training.repair.tuning import (
    FINE_TUNE,
    AdversarialUnlearning,
    Pruning,
    adversarial_unlearn,
    fine_prune,
    fine_tune,
    unlearn,
)
from verifier.training.train import Progress


@dataclass(frozen=True)
class Job:
    """One repair.

    Attributes:
        model: never altered; clean: trusted rows; seed: of everything random.
        triggers: reversed triggers for `unlearn`; empty: it scans first.
    """

    model: nn.Module
    clean: Dataset
    seed: int = 0
    triggers: tuple[Trigger, ...] = ()
    progress: Progress | None = None


def _unlearn(job: Job) -> nn.Module:
    triggers = list(job.triggers)
    if not triggers:
        found = neural_cleanse(job.model, job.clean, Cleanse(seed=job.seed))
        # Without an outlier the smallest mask is the best guess; unlearning it costs little.
        labels = found.flagged or (int(found.norms.argmin()),)
        triggers = [found.trigger(label) for label in labels]
    return unlearn(job.model, job.clean, triggers, replace(FINE_TUNE, seed=job.seed), job.progress)


METHODS: dict[str, Callable[[Job], nn.Module]] = {
    "fine-tune": lambda job: fine_tune(job.model, job.clean, replace(FINE_TUNE, seed=job.seed), job.progress),
    "fine-prune": lambda job: fine_prune(
        job.model, job.clean, Pruning(recipe=replace(FINE_TUNE, seed=job.seed)), job.progress
    ),
    "random-boxes": lambda job: tune_under_boxes(job.model, job.clean, replace(ERASING, seed=job.seed), job.progress),
    "unlearn": _unlearn,
    "adversarial-unlearn": lambda job: adversarial_unlearn(
        job.model, job.clean, AdversarialUnlearning(seed=job.seed), job.progress
    ),
    "connect": lambda job: connect_and_choose(job.model, job.clean, Connection(seed=job.seed), job.progress),
    "prune-neurons": lambda job: prune_neurons(job.model, job.clean, NeuronPruning(seed=job.seed), job.progress),
}


def repair(method: str, job: Job) -> nn.Module:
    """A repaired copy of the job's model.

    Raises:
        SpecError: unknown method, or no trusted rows.
    """
    if method not in METHODS:
        raise SpecError(f"repair: no method '{method}'; there are {', '.join(METHODS)}")
    if len(job.clean) == 0:
        raise SpecError("repair: needs trusted rows")
    return METHODS[method](job)
