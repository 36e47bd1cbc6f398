"""Certified radius of an input: proofs from below, replayed counterexamples from above.

Requires: a classifier that some bound engine covers; any lp norm, scales, masks, valid ranges.
Returns: an interval that holds the smallest distance at which the class changes.
Method: minimum-norm attacks give the upper end R; the ball just inside R is the one to prove. Where the
compiled engine covers the network and the ball, one query decides it after the quickest attacks; its
counterexample lowers R, as does one found while it lasts between the ball and R. Elsewhere, one
enclosure of the ball yields linear forms whose own radius is a closed expression (the lower end's first
value, improved along a few smaller balls); then slopes are optimised and neurons split on that ball until
it is proved. Where time is short the ball shrinks and the open subdomains alone are bounded again.
Property: sound, and complete up to the gap for piecewise-linear networks, given time.
Source: bisection on CROWN forms, Zhang et al. 2018, arXiv:1811.00866; splits, Wang et al. 2021,
arXiv:2103.06624; minimum-norm attacks, Pintor et al. 2021, arXiv:2102.12827.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from verifier.certify.bracket import Bracket, Limits
from verifier.certify.closest import Counterexample
from verifier.certify.threat import Nearness
from verifier.certify.victim import Classifier
from verifier.errors import SpecError
from verifier.graph.ir import Graph
from verifier.outcome import Soundness, StopReason
from verifier.run import Run
from verifier.settings import EFFORTS
from verifier.spec.representable import float_ceiling, float_floor


@dataclass(frozen=True)
class RadiusSettings:
    """How hard to try.

    Attributes:
        gap_rel: stop when (upper - lower) / upper is at most this.
        timeout_s: wall-clock seconds an input, None for no limit.
        effort: "bounds" stops after plain linear bounds, "slopes" after optimised ones, "search" splits.
        attack_effort: 0 the quickest attack, 1 several, 2 longer ones.
        radii: decide these radii alone, each proved, refuted by a counterexample or left open; empty:
            narrow the radius itself down to the gap.
        seed: of the attacks.
    Raises:
        SpecError: values out of range.
    """

    gap_rel: float = 0.05
    timeout_s: float | None = None
    effort: str = "search"
    attack_effort: int = 1
    seed: int = 0
    radii: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not all(0 <= r < math.inf for r in self.radii):
            raise SpecError(f"radii: expected finite numbers >= 0, got {self.radii}")
        if not 0 < self.gap_rel < 1:
            raise SpecError(f"gap: expected a number between 0 and 1, got {self.gap_rel}")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise SpecError(f"timeout: expected seconds > 0, got {self.timeout_s}")
        if self.effort not in EFFORTS:
            raise SpecError(f"effort: expected one of {', '.join(EFFORTS)}, got '{self.effort}'")
        if self.attack_effort not in (0, 1, 2):
            raise SpecError(f"attack effort: expected 0, 1 or 2, got {self.attack_effort}")


@dataclass(frozen=True)
class CertifiedRadius:
    """The class provably stays `label` up to `lower`; `counterexample` changes it at `upper`.

    Attributes:
        lower: every valid input within this distance keeps the class (ties count as changes); 0 where the
            input itself is misclassified; inf where every valid input keeps it.
        upper: distance of the counterexample, rounded up; inf without one.
        label, predicted: the class asked about, and the one the program gives.
        target: the only class that counted as a mistake, or None.
        reason: why the search ended.
        soundness: what `lower` rests on.
        proved_by: "bounds", "slopes" or "search": what proved `lower`.
        subdomains: bounded in all; balls: radii that were bounded.
        seconds: stage -> wall-clock seconds, "attack" and "proof".
    """

    lower: float
    upper: float
    norm: float
    label: int
    predicted: int
    target: int | None
    counterexample: Counterexample | None
    reason: StopReason
    soundness: Soundness
    proved_by: str = ""
    subdomains: int = 0
    balls: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def gap_rel(self) -> float:
        """(upper - lower) / upper; 0 where both ends meet, 1 where nothing is proved."""
        if self.upper == self.lower:
            return 0.0
        return 1.0 if math.isinf(self.upper) else (self.upper - self.lower) / self.upper

    @property
    def clean_right(self) -> bool:
        """True when the program gives the input its label."""
        return self.predicted == self.label


def certified_radius(
    network: str | Graph | Classifier,
    x: np.ndarray,
    label: int | None = None,
    *,
    nearness: Nearness | None = None,
    target: int | None = None,
    settings: RadiusSettings | None = None,
    cancel: Callable[[], bool] | None = None,
) -> CertifiedRadius:
    """How far the input x can move before its class can change.

    Args:
        network: a file, a Graph, or a Classifier made once for many inputs.
        x: one input, any shape that flattens to [N_in], in the network's input units.
        label: the class to hold; None: the one the network gives.
        nearness: norm, valid range, mask and scales; default l-infinity without limits.
        target: only this class counts as a mistake; None: any other.
        settings: see RadiusSettings.
        cancel: asked often; True stops with what is known.
    Raises:
        ShapeError: x or an array of `nearness` has the wrong size.
        SpecError: a class out of range, x not finite or outside the valid range.
    """
    settings = settings or RadiusSettings()
    run = Run.within(settings.timeout_s, cancel)
    classifier = network if isinstance(network, Classifier) else Classifier(network)
    center = classifier.deployed(classifier.flat(x))
    nearness = _rounded(nearness or Nearness(), classifier)
    nearness.check_center(center)
    label, predicted, rows, right = classifier.ask(center, label, target)
    if not right:
        return CertifiedRadius(
            0.0, 0.0, nearness.norm, label, predicted, target, None, StopReason.MISCLASSIFIED, classifier.soundness,
            seconds={"attack": 0.0, "proof": 0.0},
        )  # fmt: skip
    limits = Limits(settings.gap_rel, settings.effort, settings.attack_effort, settings.seed, settings.radii)
    bracket = Bracket(classifier, nearness, rows, center, run, limits)
    began = time.monotonic()
    with classifier.until(run.deadline):
        reason = bracket.solve()
    spent = time.monotonic() - began
    return CertifiedRadius(
        lower=bracket.lower,
        upper=bracket.closest.distance,
        norm=nearness.norm,
        label=label,
        predicted=predicted,
        target=target,
        counterexample=bracket.closest.best,
        reason=reason,
        soundness=classifier.soundness,
        proved_by=bracket.proved_by,
        subdomains=bracket.subdomains,
        balls=bracket.balls,
        seconds={"attack": bracket.attack_seconds, "proof": spent - bracket.attack_seconds},
    )


def _rounded(nearness: Nearness, classifier: Classifier) -> Nearness:
    """Arrays of the network's size, the valid range widened to the program's numbers."""
    sized = nearness.sized(classifier.graph.input_size)
    if sized.valid is None:
        return sized
    dtype = classifier.graph.dtype
    valid = (float_floor(sized.valid[0], dtype), float_ceiling(sized.valid[1], dtype))
    return replace(sized, valid=valid)
