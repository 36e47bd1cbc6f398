"""Certified radii by proof, counterexamples by attack."""

from __future__ import annotations

import numpy as np

from verifier.certify.methods.base import Cancel, Method
from verifier.certify.radius import CertifiedRadius, certified_radius
from verifier.certify.rows import Row
from verifier.outcome import StopReason

_STATUS = {StopReason.MISCLASSIFIED: "wrong", StopReason.WHOLE_RANGE: "robust"}


class ByRadius(Method):
    """See verifier.certify.radius."""

    def row(self, index: int, x: np.ndarray, label: int, cancel: Cancel | None) -> Row:
        plan = self.plan
        found = certified_radius(
            self.classifier, x, label, nearness=plan.nearness, target=plan.target,
            settings=plan.settings_of(index), cancel=cancel,
        )  # fmt: skip
        return radius_row(index, label, found)


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
