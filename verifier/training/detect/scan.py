"""A buyer's question, is this model backdoored?, answered by three detectors with their evidence."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import nn

from verifier.data import Dataset
from verifier.errors import SpecError
from verifier.training.backdoor.trigger import Patch
from verifier.training.detect.neural_cleanse import Cleanse, neural_cleanse
from verifier.training.detect.trojannet import DataFree, LimitedData, data_free, limited_data
from verifier.training.train import Progress

CAVEATS = {
    "neural-cleanse": (
        "misses triggers spread over the whole input (blends, warps, input-aware) and several targets at once; "
        "flags clean models that have one easy class; data in another range than the training's makes it meaningless; "
        "with fewer than five classes it uses a ratio of mask sizes, which is weaker"
    ),
    "dl-tnd": (
        "assumes that the universal and the per-image attack meet in one shortcut; classes whose samples lie close "
        "together look alike without a backdoor; the threshold was set on small digit classifiers"
    ),
    "df-tnd": "needs no data but is the weakest of the three: networks with one dominant class are flagged too",
}


@dataclass(frozen=True)
class Finding:
    """One detector's answer.

    Attributes:
        detector: its name, a key of CAVEATS.
        flagged: suspected target classes, most suspicious first.
        evidence: one number a class, JSON-able lists by name.
        caveat: the known ways it can be wrong.
        triggers: reversed triggers of the flagged classes, where the detector makes one.
    """

    detector: str
    flagged: tuple[int, ...]
    evidence: dict[str, list[float]]
    caveat: str
    triggers: dict[int, Patch] = field(default_factory=dict)


@dataclass(frozen=True)
class ScanReport:
    """Verdict and findings.

    Attributes:
        verdict: "backdoored" when the detectors that ran agree by majority on one class,
            "suspicious" when any flags one, else "nothing found", which proves nothing.
        target: the class most detectors name, or None.
    """

    verdict: str
    target: int | None
    findings: tuple[Finding, ...]

    def record(self) -> dict:
        """A JSON-able dictionary without the triggers' pictures."""
        findings = [
            {"detector": f.detector, "flagged": list(f.flagged), "evidence": f.evidence, "caveat": f.caveat}
            for f in self.findings
        ]
        return {"verdict": self.verdict, "target": self.target, "findings": findings}


def scan(
    model: nn.Module,
    clean: Dataset,
    detectors: tuple[str, ...] = ("neural-cleanse", "dl-tnd", "df-tnd"),
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> ScanReport:
    """Run the detectors on a model; the model is never altered.

    Args:
        clean: trusted rows in the model's units; a few a class suffice.
        detectors: keys of CAVEATS.
    Raises:
        SpecError: an unknown detector.
    """
    unknown = [d for d in detectors if d not in CAVEATS]
    if unknown:
        raise SpecError(f"scan: unknown detectors {unknown}; there are {', '.join(CAVEATS)}")
    findings = []
    for number, detector in enumerate(detectors):
        findings.append(_FIND[detector](model, clean, seed))
        if progress is not None:
            progress((number + 1) / len(detectors), f"{detector}: flagged {list(findings[-1].flagged) or 'nothing'}")
    return _report(tuple(findings))


def _report(findings: tuple[Finding, ...]) -> ScanReport:
    votes: dict[int, int] = {}
    for finding in findings:
        for label in finding.flagged[:1]:
            votes[label] = votes.get(label, 0) + 1
    if not votes:
        return ScanReport("nothing found", None, findings)
    target = max(votes, key=lambda label: votes[label])
    agreed = votes[target] * 2 > len(findings)
    return ScanReport("backdoored" if agreed else "suspicious", target, findings)


def _cleanse(model: nn.Module, clean: Dataset, seed: int) -> Finding:
    found = neural_cleanse(model, clean, Cleanse(seed=seed))
    evidence = {
        "mask_size": found.norms.tolist(),
        "anomaly_index": found.indices.tolist(),
        "reached": found.reached.tolist(),
    }
    triggers = {label: found.trigger(label) for label in found.flagged}
    return Finding("neural-cleanse", found.flagged, evidence, CAVEATS["neural-cleanse"], triggers)


def _limited(model: nn.Module, clean: Dataset, seed: int) -> Finding:
    found = limited_data(model, clean, LimitedData(seed=seed))
    evidence = {"similarity": found.similarity.tolist(), "mask_size": found.sizes.tolist()}
    return Finding("dl-tnd", found.flagged, evidence, CAVEATS["dl-tnd"])


def _free(model: nn.Module, clean: Dataset, seed: int) -> Finding:
    found = data_free(model, clean.shape, clean.valid, DataFree(seed=seed))
    evidence = {"logit_rise": found.rises.tolist(), "ratio": [found.ratio]}
    return Finding("df-tnd", found.flagged, evidence, CAVEATS["df-tnd"])


_FIND = {"neural-cleanse": _cleanse, "dl-tnd": _limited, "df-tnd": _free}


def trigger_arrays(findings: tuple[Finding, ...]) -> dict[str, np.ndarray]:
    """Reversed triggers as arrays, "detector:class:mask" and "...:pattern", for pictures and files."""
    arrays = {}
    for finding in findings:
        for label, trigger in finding.triggers.items():
            arrays[f"{finding.detector}:{label}:mask"] = trigger.mask
            arrays[f"{finding.detector}:{label}:pattern"] = trigger.pattern
    return arrays
