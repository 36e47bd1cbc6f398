"""Certified radii of the network's weights, sample by sample."""

from __future__ import annotations

import numpy as np

from verifier.certify.methods.base import Cancel, Method
from verifier.certify.methods.radius import radius_row
from verifier.certify.plan import Plan
from verifier.certify.rows import Row
from verifier.certify.victim import Classifier
from verifier.certify.weights import WeightBall, WeightedNetwork, certified_weight_radius
from verifier.errors import SpecError


class ByWeights(Method):
    """See verifier.certify.weights; a row's counterexample, a set of weights, is not written down."""

    def __init__(self, plan: Plan, classifier: Classifier):
        super().__init__(plan, classifier)
        if plan.weights is None:
            raise SpecError("weights: none are named")
        self._ball = WeightBall(plan.weights.only, plan.weights.relative, plan.nearness.norm)
        self._network = WeightedNetwork(plan.network)
        self._network.chosen(self._ball)

    def row(self, index: int, x: np.ndarray, label: int, cancel: Cancel | None) -> Row:
        found = certified_weight_radius(
            self._network, x, label, ball=self._ball, settings=self.plan.settings_of(index),
            device=self.plan.device, soundness=self.classifier.soundness, cancel=cancel,
        ).radius  # fmt: skip
        return radius_row(index, label, found, keep_point=False)
