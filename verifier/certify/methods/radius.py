"""Certified radii by proof, counterexamples by attack."""

from __future__ import annotations

import numpy as np

from verifier.certify.methods.base import Cancel, Method
from verifier.certify.plan import Plan
from verifier.certify.radius import RadiusSettings, certified_radius
from verifier.certify.rows import Row
from verifier.certify.victim import Classifier
from verifier.outcome import StopReason

_STATUS = {StopReason.MISCLASSIFIED: "wrong", StopReason.WHOLE_RANGE: "robust"}


class ByRadius(Method):
    """See verifier.certify.radius."""

    def __init__(self, plan: Plan, classifier: Classifier):
        super().__init__(plan, classifier)
        self._settings(0)

    def _settings(self, index: int) -> RadiusSettings:
        plan = self.plan
        return RadiusSettings(
            plan.gap_rel, plan.timeout_s, plan.effort, plan.attack_effort, plan.seed + index, plan.radii
        )

    def row(self, index: int, x: np.ndarray, label: int, cancel: Cancel | None) -> Row:
        plan = self.plan
        found = certified_radius(
            self.classifier, x, label, nearness=plan.nearness, target=plan.target, settings=self._settings(index),
            cancel=cancel,
        )  # fmt: skip
        best = found.counterexample
        return Row(
            index, label, found.predicted, found.lower, found.upper, _STATUS.get(found.reason, "bracketed"),
            rival=-1 if best is None else best.rival,
            reason=found.reason.name.lower(),
            proved_by=found.proved_by,
            subdomains=found.subdomains,
            attack_seconds=found.seconds["attack"],
            proof_seconds=found.seconds["proof"],
            counterexample=() if best is None else tuple(best.x.tolist()),
            detail={"balls": found.balls} if best is None else {"balls": found.balls, "attack": best.source},
        )  # fmt: skip
