"""How a named method may run, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from verifier.errors import SpecError
from verifier.outcome import Soundness


@dataclass(frozen=True)
class MethodSettings:
    """How a method may run.

    Attributes:
        timeout_s: of one method on the whole problem; None for no limit. What is known by then is returned.
        soundness: IEEE_FLOAT for the deployed program, REAL_ARITHMETIC otherwise.
        iterations: of slope optimisation (alpha-crown).
        steps: of every multiplier ascent (lagrangian, sdp, sdp-dual, sdp-crown).
        solver: of the LP: "highs", or a solver's name in cvxpy.
        cancelled: asked between steps; True returns what is known.
    """

    timeout_s: float | None = None
    soundness: Soundness = Soundness.IEEE_FLOAT
    iterations: int = 100
    steps: int = 300
    solver: str = "highs"
    cancelled: Callable[[], bool] = field(default=lambda: False)

    def validate(self) -> None:
        """Raises SpecError for values out of range."""
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise SpecError(f"method settings: expected timeout_s > 0, got {self.timeout_s}")
        if self.iterations < 1 or self.steps < 0:
            raise SpecError(f"method settings: expected iterations >= 1 and steps >= 0, got {self}")
        if self.soundness is Soundness.HEURISTIC:
            raise SpecError("method settings: a bound is never heuristic; expected IEEE_FLOAT or REAL_ARITHMETIC")


@dataclass(frozen=True)
class MethodResult:
    """Bounds of every specification row of a problem, cases and clauses in order.

    Attributes:
        method: its name.
        lower: float64 [S], rigorous lower bounds of coeffs @ outputs; -inf at worst, +inf where no input exists.
        limits: float64 [S]; a row is refuted where lower > limits (>= where strict).
        case, clause: int [S], where each row comes from.
        refuted: bool [number of clauses in the problem], clauses that no input satisfies.
        seconds: wall time, the shared stages it starts from included.
        peak_memory_bytes: resident memory it added.
        soundness: what the bounds hold for.
        notes: how it ended, one entry a distinct ending.
    """

    method: str
    lower: np.ndarray
    limits: np.ndarray
    case: np.ndarray
    clause: np.ndarray
    refuted: np.ndarray
    seconds: float
    peak_memory_bytes: int
    soundness: Soundness
    notes: tuple[str, ...]

    @property
    def margins(self) -> np.ndarray:
        """lower - limits, rounded down, [S]; positive where the row is refuted."""
        with np.errstate(invalid="ignore"):
            return np.nextafter(self.lower - self.limits, -np.inf)
