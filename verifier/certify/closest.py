"""The upper end of a radius: the closest counterexample found so far, always replayed.

Minimum-norm attacks propose points; every proposal is walked towards the input as far as the class
stays wrong, and only what the deployed program confirms is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from verifier.attack.base import Attack
from verifier.attack.gradient.apgd import APGD
from verifier.attack.gradient.fab import FAB
from verifier.attack.gradient.fmn import FMN
from verifier.attack.model import Model
from verifier.attack.threat import LpThreat
from verifier.certify.threat import Nearness
from verifier.certify.victim import Classifier, GraphScores, Rows

#: Points tried on the line from the input to a proposal, in each of so many rounds.
LINE_POINTS, LINE_ROUNDS = 16, 3
#: Proposals walked at a time, the nearest first.
WALKS = 4
#: Random points tried inside a radius.
SCATTERED = 512
#: Overshoots tried when rounding to the program's numbers lost a counterexample.
OVERSHOOTS = 1 + np.array([0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3])


@dataclass(frozen=True)
class Counterexample:
    """A replayed input of another class.

    Attributes:
        x: flat, float64 [N_in], numbers of the program's type.
        outputs: the program's outputs there, float64 [N_out]; rival: the class reached.
        distance: from the input, in the norm asked for, rounded up.
        source: the attack that proposed it.
    """

    x: np.ndarray
    outputs: np.ndarray
    rival: int
    distance: float
    source: str


class Closest:
    """Collects proposals around one input; `best` is the closest confirmed one.

    Args:
        center: float64 [N_in], in the program's numbers.
    """

    def __init__(self, classifier: Classifier, nearness: Nearness, rows: Rows, center: np.ndarray):
        self.classifier, self.nearness, self.rows, self.center = classifier, nearness, rows, center
        self.best: Counterexample | None = None

    @property
    def distance(self) -> float:
        """Of the best counterexample, inf without one."""
        return np.inf if self.best is None else self.best.distance

    def propose(self, points: np.ndarray, source: str) -> bool:
        """Keep what is closer than the best among points [P, N_in] and the lines to them; True if any was."""
        if len(points) == 0:
            return False
        points = self._snap(self.nearness.drawn_in(self.center, np.nan_to_num(points)))
        before = self.distance
        near = self.nearness.distance(self.center, points)
        # A proposal can only help where the line to it is wrong closer than the best known one.
        wrong = self._wrong(points) | (near > before)
        order = np.argsort(near)
        for i in order[wrong[order]][:WALKS]:
            self._walk(points[i], source)
        return self.distance < before

    def _walk(self, point: np.ndarray, source: str) -> None:
        """Bisect the line from the center to a point for its first wrong part."""
        low, high = 0.0, 1.0
        if self.nearness.norm == 0:
            self._drop_features(point, source)
            return
        for _ in range(LINE_ROUNDS):
            t = np.linspace(low, high, LINE_POINTS + 1)[1:]
            wrong = self._wrong(self._snap(self.center + t[:, None] * (point - self.center)))
            if not wrong.any():
                break
            first = int(wrong.argmax())
            low, high = (t[first - 1] if first else low), t[first]
        for factor in OVERSHOOTS:
            candidate = self._snap((self.center + high * factor * (point - self.center))[None])[0]
            if self._confirm(candidate, source):
                return
        self._confirm(point, source)

    def _drop_features(self, point: np.ndarray, source: str) -> None:
        """Undo changes one at a time, those that matter least first, while the class stays wrong."""
        self._confirm(point, source)
        order = np.argsort(np.abs(point - self.center))
        for i in order[(point != self.center)[order]]:
            trial = point.copy()
            trial[i] = self.center[i]
            if self._wrong(trial[None])[0]:
                point = trial
        self._confirm(point, source)

    def _confirm(self, point: np.ndarray, source: str) -> bool:
        """Replay one point; True where it is a counterexample, kept if it is the closest."""
        if not self.nearness.holds(self.center, point):
            return False
        distance = float(self.nearness.distance(self.center, point[None])[0])
        if distance >= self.distance:
            return False
        outputs = self.classifier.outputs(point)
        rival = self.classifier.unsafe(self.rows, outputs)
        if rival is None:
            return False
        self.best = Counterexample(point, outputs, rival, distance, source)
        return True

    def _wrong(self, points: np.ndarray) -> np.ndarray:
        """bool [P]: some margin is not positive in the engine's arithmetic."""
        margins = self.classifier.evaluate(points) @ self.rows.coeffs.T
        return ~np.nan_to_num(margins, nan=np.inf).min(axis=1).__gt__(0)

    def _snap(self, points: np.ndarray) -> np.ndarray:
        restricted = self.nearness.restrict(self.center, np.nan_to_num(points))
        return self.nearness.restrict(self.center, self.classifier.deployed(restricted))


def attack(closest: Closest, effort: int, seed: int, stopped: Callable[[], bool]) -> float:
    """Run minimum-norm attacks, then fixed-budget ones just inside the best found, while they help.

    Args:
        effort: 0 the quickest attack alone; 1 all rivals and restarts; 2 twice the steps.
    Returns:
        Seconds spent.
    """
    began = time.monotonic()
    victim = Victim(closest)
    threat = _threat(closest.nearness)
    steps = 60 if effort < 2 else 150
    _run(closest, victim, FMN(steps=steps), threat, seed)
    if effort == 0:
        return time.monotonic() - began
    p = closest.nearness.norm
    if p != 0 and not stopped():
        targets = 3 if len(closest.rows.rivals) > 1 else 0
        _run(closest, victim, FAB(steps=steps, targets=targets, refine=2), threat, seed)
    for round_index in range(4):
        if stopped() or p == 0 or not np.isfinite(closest.distance):
            break
        budget = closest.distance * (0.97 if round_index % 2 == 0 else 0.99)
        method = APGD(steps=steps, loss="margin", restarts=2)
        found = _run(closest, victim, method, threat.at(budget), seed + 1 + round_index)
        if not found and round_index % 2:
            break
    return time.monotonic() - began


def attack_within(closest: Closest, radius: float, seed: int) -> None:
    """Look for a counterexample inside one radius: random points, corners, then a fixed-budget attack."""
    rng = np.random.default_rng(seed)
    inputs = closest.nearness.input_set(closest.center, radius)
    t = rng.random((SCATTERED, closest.center.size))
    t[::2] = np.round(t[::2])
    closest.propose(inputs.lower + t * (inputs.upper - inputs.lower), "random")
    if closest.nearness.norm != 0 and closest.distance > radius:
        method = APGD(steps=40, loss="margin", restarts=2)
        _run(closest, Victim(closest), method, _threat(closest.nearness).at(radius), seed)


class Victim:
    """What the attacks see: all classes, or the label and the one rival that counts.

    A target counts as reached where it beats the label, whatever a third class does.
    """

    def __init__(self, closest: Closest):
        classifier, rivals = closest.classifier, closest.rows.rivals
        label = int(closest.rows.coeffs[0, 0] > 0) if classifier.single else int(closest.rows.coeffs[0].argmax())
        self.label, self.targets = label, rivals
        columns = None
        if not classifier.single and len(rivals) == 1 and classifier.classes > 2:
            columns, self.label, self.targets = (label, int(rivals[0])), 0, np.array([1])
        self.model = Model.from_torch(GraphScores(classifier.engine, columns))


def _threat(nearness: Nearness) -> LpThreat:
    return LpThreat(
        norm=nearness.norm, valid=nearness.valid, mask=nearness.mask, scale=nearness.scale, also=nearness.also
    )


def _run(closest: Closest, victim: Victim, method: Attack, threat: LpThreat, seed: int) -> bool:
    """One attack towards each rival; True if it helped."""
    targets = torch.as_tensor(victim.targets)
    x = torch.as_tensor(closest.center).to(victim.model.dtype).expand(len(targets), -1)
    labels = torch.full((len(targets),), victim.label)
    result = method(victim.model, x, labels, threat, targets=targets, seed=seed)
    found = result.adversarial.double().cpu().numpy()[result.success.cpu().numpy()]
    return closest.propose(found, method.name)
