"""Certified radii by proof, counterexamples by attack."""

from __future__ import annotations

import numpy as np

from verifier.certify.methods.base import Cancel, Method
from verifier.certify.plan import Plan
from verifier.certify.radius import CertifiedRadius, RadiusSettings, certified_radius
from verifier.certify.rows import Row
from verifier.certify.victim import Classifier
from verifier.outcome import StopReason

_STATUS = {StopReason.MISCLASSIFIED: "wrong", StopReason.WHOLE_RANGE: "robust"}


class ByRadius(Method):
    """See verifier.certify.radius."""

    def __init__(self, plan: Plan, classifier: Classifier):
        super().__init__(plan, classifier)
        radius_settings(plan, 0)

    def row(self, index: int, x: np.ndarray, label: int, cancel: Cancel | None) -> Row:
        plan = self.plan
        found = certified_radius(
            self.classifier, x, label, nearness=plan.nearness, target=plan.target,
            settings=radius_settings(plan, index), cancel=cancel,
        )  # fmt: skip
        return radius_row(index, label, found)


def radius_settings(plan: Plan, index: int) -> RadiusSettings:
    """The plan's settings for one sample; SpecError where they are out of range."""
    return RadiusSettings(
        plan.gap_rel, plan.timeout_s, plan.effort, plan.attack_effort, plan.seed + index, plan.radii
    )  # fmt: skip


def radius_row(index: int, label: int, found: CertifiedRadius, *, keep_point: bool = True) -> Row:
    """The row of a certified radius; its counterexample is written down where `keep_point`."""
    best = found.counterexample
    return Row(
        index, label, found.predicted, found.lower, found.upper, _STATUS.get(found.reason, "bracketed"),
        rival=-1 if best is None else best.rival,
        reason=found.reason.name.lower(),
        proved_by=found.proved_by,
        subdomains=found.subdomains,
        attack_seconds=found.seconds["attack"],
        proof_seconds=found.seconds["proof"],
        counterexample=() if best is None or not keep_point else tuple(best.x.tolist()),
        detail={"balls": found.balls} if best is None else {"balls": found.balls, "attack": best.source},
    )  # fmt: skip
