"""The answer of one analysis: verdict, how strong it is, why it stopped, what it cost.

A Report holds plain data only. Rooms below the command line fill one in; text, JSON and HTML
read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from verifier import __version__
from verifier.outcome import Soundness, StopReason, Verdict


@dataclass(frozen=True)
class Witness:
    """A counterexample that was replayed in ONNX Runtime.

    Attributes:
        x: flat input, the network's dtype, [N_in] (several inputs: row-major concatenation).
        y: flat output of the replay at x, [N_out].
        text: the witness in the specification's own format, ending in a newline.
    """

    x: np.ndarray
    y: np.ndarray
    text: str


class Event(NamedTuple):
    """One line of the time line: seconds since the start, the stage, what happened."""

    seconds: float
    stage: str
    text: str


@dataclass(frozen=True)
class Report:
    """What was asked, what was answered, and what the answer rests on.

    Attributes:
        verdict, soundness, reason: see verifier.outcome; reason_detail adds the case at hand.
        witness: present exactly when the verdict is SAT.
        device, engine: what computed the deciding bounds ("cpu"/"cuda"; the engine's name).
        bound_before, bound_after: worst margin of the worst row over the whole input set, before
            and after the search (positive = proved), None where no bound was computed.
        domains_visited, domains_open: subdomains bounded, and left open at the end.
        seconds: stage -> wall-clock seconds, in the order the stages ran.
        total_seconds: wall clock from call to answer.
        peak_memory_bytes: peak resident size of the process, 0 where unknown.
        timeline: what happened when, for `--explain`.
        network: a few facts for people (file, nodes, parameters, inputs, outputs).
        spec: path of the property file, "" for a problem made in Python.
    """

    verdict: Verdict
    soundness: Soundness
    reason: StopReason
    reason_detail: str = ""
    witness: Witness | None = None
    device: str = "cpu"
    engine: str = ""
    bound_before: float | None = None
    bound_after: float | None = None
    domains_visited: int = 0
    domains_open: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    total_seconds: float = 0.0
    peak_memory_bytes: int = 0
    timeline: tuple[Event, ...] = ()
    network: Mapping[str, Any] = field(default_factory=dict)
    spec: str = ""
    version: str = __version__
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.verdict is Verdict.SAT) != (self.witness is not None):
            raise ValueError(f"a report carries a witness exactly when it says sat, got {self.verdict.value}")
        object.__setattr__(self, "seconds", MappingProxyType(dict(self.seconds)))
        object.__setattr__(self, "network", MappingProxyType(dict(self.network)))
        object.__setattr__(self, "timeline", tuple(Event(*event) for event in self.timeline))

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values (numbers, strings, lists, objects); infinities become strings."""
        witness = None
        if self.witness is not None:
            witness = {
                "x": [float(v) for v in np.asarray(self.witness.x).reshape(-1)],
                "y": [float(v) for v in np.asarray(self.witness.y).reshape(-1)],
                "text": self.witness.text,
            }
        return {
            "version": self.version,
            "verdict": self.verdict.value,
            "soundness": {"level": self.soundness.name.lower(), "meaning": self.soundness.message},
            "reason": {"code": self.reason.name.lower(), "text": self.reason.value, "detail": self.reason_detail},
            "network": dict(self.network),
            "spec": self.spec,
            "device": self.device,
            "engine": self.engine,
            "bound": {"before": _finite(self.bound_before), "after": _finite(self.bound_after)},
            "domains": {"visited": self.domains_visited, "open": self.domains_open},
            "seconds": {**self.seconds},
            "total_seconds": self.total_seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "timeline": [{"seconds": e.seconds, "stage": e.stage, "text": e.text} for e in self.timeline],
            "notes": list(self.notes),
            "witness": witness,
        }


def _finite(value: float | None) -> float | str | None:
    """JSON has no infinity: write it as a string rather than as invalid JSON."""
    return value if value is None or np.isfinite(value) else str(value)
