"""Certificates of the smoothed classifier, by sampling."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from verifier.bounds.torch_engine import TorchEngine
from verifier.certify.methods.base import Cancel, Method
from verifier.certify.plan import Plan
from verifier.certify.rows import Row
from verifier.certify.smoothing import Ablation, Gaussian, Laplace, Sampling, SmoothedClassifier, Uniform
from verifier.certify.victim import Classifier, GraphScores
from verifier.errors import SpecError


class BySmoothing(Method):
    """See verifier.certify.smoothing."""

    def __init__(self, plan: Plan, classifier: Classifier):
        super().__init__(plan, classifier)
        self._smoothed = _smoothed(classifier, plan)

    def row(self, index: int, x: np.ndarray, label: int, cancel: Cancel | None) -> Row:
        assert self.plan.smoothing is not None
        began = time.monotonic()
        certify = self._smoothed.certify_first_order if self.plan.smoothing.order else self._smoothed.certify
        found = certify(self.classifier.flat(x).astype(self.classifier.graph.dtype))
        right = found.label == label
        status = "abstained" if found.abstained else "smoothed" if right else "wrong"
        return Row(
            index, label, -1 if found.label is None else found.label, found.radius if right else 0.0, math.inf, status,
            reason="abstained" if found.abstained else "sampled",
            proved_by="smoothing",
            proof_seconds=time.monotonic() - began,
            detail={"p_lower": found.p_lower, "votes": found.top_count, "samples": found.samples, "radii": found.radii},
        )  # fmt: skip


def _smoothed(classifier: Classifier, plan: Plan) -> Any:
    s = plan.smoothing
    assert s is not None
    makers: dict[str, Callable[[], Any]] = {
        "gaussian": lambda: Gaussian(s.sigma),
        "laplace": lambda: Laplace(s.sigma),
        "uniform": lambda: Uniform(s.sigma),
        "ablation": lambda: Ablation(int(s.sigma)),
    }
    if s.noise not in makers:
        raise SpecError(f"noise: expected one of {', '.join(makers)}, got '{s.noise}'")
    noise = makers[s.noise]()
    if noise.norm != plan.nearness.norm:
        raise SpecError(
            f"norm: {s.noise} noise certifies l{noise.norm:g} radii; give --norm l{noise.norm:g} or another --noise"
        )
    dtype = torch.float32 if classifier.graph.dtype == "float32" else torch.float64
    module = GraphScores(TorchEngine(classifier.graph, device=plan.device, dtype=dtype)).eval()
    sampling = Sampling(s.select, s.samples, s.alpha, plan.settings.seed)
    return SmoothedClassifier(_Threshold(module).eval() if classifier.single else module, noise, sampling)


class _Threshold(torch.nn.Module):
    """One output z as the two scores (0, z)."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.inner(x)
        return torch.cat([torch.zeros_like(z), z], dim=1)
