"""Analyses one sample after the other by the method a plan names."""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from verifier.certify.methods.base import Cancel, Method
from verifier.certify.methods.radius import ByRadius
from verifier.certify.methods.smoothed import BySmoothing
from verifier.certify.methods.transforms import ByTransforms
from verifier.certify.methods.weights import ByWeights
from verifier.certify.plan import Plan
from verifier.certify.rows import Row
from verifier.certify.victim import Classifier
from verifier.errors import VerifierError
from verifier.outcome import Soundness


class Analyst:
    """Made once a process; bad networks and settings fail here."""

    def __init__(self, plan: Plan):
        torch.set_num_threads(plan.threads)
        level = Soundness.IEEE_FLOAT if plan.soundness == "float32" else Soundness.REAL_ARITHMETIC
        classifier = Classifier(plan.network, device=plan.device, soundness=level)
        self._method = _kind(plan)(plan, classifier)

    def row(self, index: int, x: np.ndarray, label: int, cancel: Cancel | None = None) -> Row:
        """The result for one sample; bad input becomes an "error" row.

        Args:
            x: flat [N_in].
        """
        began = time.monotonic()
        try:
            return self._method.row(index, x, label, cancel)
        except VerifierError as error:
            return Row(
                index, label, -1, math.nan, math.nan, "error", error=" ".join(str(error).split()),
                proof_seconds=time.monotonic() - began,
            )  # fmt: skip


def _kind(plan: Plan) -> type[Method]:
    if plan.smoothing is not None:
        return BySmoothing
    if plan.weights is not None:
        return ByWeights
    return ByRadius if plan.transforms is None else ByTransforms
