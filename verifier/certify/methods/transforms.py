"""Certificates over the parameters of image transformations; the radius is a share of the parameter box."""

from __future__ import annotations

import numpy as np

from verifier.certify.methods.base import Cancel, Method
from verifier.certify.plan import Plan
from verifier.certify.rows import Row
from verifier.certify.semantic.box import parse_threat, pieces
from verifier.certify.semantic.certificate import SemanticSettings, certify_transformations
from verifier.certify.semantic.compose import transformed_network
from verifier.certify.victim import Classifier
from verifier.errors import SpecError
from verifier.outcome import StopReason


class ByTransforms(Method):
    """See verifier.certify.semantic."""

    def __init__(self, plan: Plan, classifier: Classifier):
        super().__init__(plan, classifier)
        if plan.transforms is None:
            raise SpecError("transformations: none are given")
        asked = plan.transforms
        self._threat = parse_threat(asked.steps, asked.valid, free_order=asked.any_order)
        self._settings(0)
        # A threat that does not fit the images or the network fails here: one graph is built.
        placing = asked.placing
        first = pieces(self._threat, placing.shape)[0]
        transformed_network(classifier.graph, np.zeros(placing.shape), self._threat, placing, first)

    def _settings(self, index: int) -> SemanticSettings:
        one = self.plan.settings_of(index)
        return SemanticSettings(one.radii, one.timeout_s, one.seed, self.plan.device, self.plan.threads)

    def row(self, index: int, x: np.ndarray, label: int, cancel: Cancel | None) -> Row:
        plan, transforms = self.plan, self.plan.transforms
        assert transforms is not None
        found = certify_transformations(
            self.classifier, transforms.placing.image(x), label, threat=self._threat,
            channels_last=transforms.placing.channels_last, target=plan.target, settings=self._settings(index),
            cancel=cancel,
        )  # fmt: skip
        best = found.counterexample
        proof = {StopReason.PROVED_BY_BOUNDS: "bounds", StopReason.PROVED_BY_SEARCH: "search"}
        return Row(
            index, label, found.predicted, found.lower, found.upper,
            "wrong" if found.reason is StopReason.MISCLASSIFIED else "bracketed",
            rival=-1 if best is None else best.rival,
            reason=found.reason.name.lower(),
            proved_by=proof.get(found.reason, "search") if found.lower > 0 else "",
            subdomains=found.subdomains,
            attack_seconds=found.seconds["attack"],
            proof_seconds=found.seconds["proof"],
            counterexample=() if best is None else tuple(best.x.tolist()),
            detail={"pieces": found.pieces} if best is None
            else {"pieces": found.pieces, "attack": best.source, "parameters": best.parameters},
        )  # fmt: skip
