"""One sample's result, as a sweep writes it down."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from verifier.errors import SpecError

#: Columns of samples.csv, in order; every one is a field of `Row`.
COLUMNS = (
    "index", "label", "predicted", "lower", "upper", "status", "rival", "reason", "proved_by", "subdomains",
    "attack_seconds", "proof_seconds", "error",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One sample's result.

    Attributes:
        index: row of the data set. label, predicted: classes; predicted -1 for abstention or NaN.
        lower, upper: ends of the radius; inf where unbounded, NaN after an error.
        status: "wrong", "robust" (the whole valid range), "bracketed", "smoothed", "abstained" or "error".
        rival: class of the counterexample, -1 without one.
        counterexample: flat input, empty without one.
        detail: further facts (probability bound, radii of other certificate forms).
    """

    index: int
    label: int
    predicted: int
    lower: float
    upper: float
    status: str
    rival: int = -1
    reason: str = ""
    proved_by: str = ""
    subdomains: int = 0
    attack_seconds: float = 0.0
    proof_seconds: float = 0.0
    error: str = ""
    counterexample: tuple[float, ...] = ()
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        """True when the input itself is given its label."""
        return self.status not in ("wrong", "error") and self.predicted == self.label

    def verdict(self, radius: float) -> str:
        """ "certified", "attacked", "wrong" or "open" at a radius."""
        if not self.right:
            return "open" if self.status in ("error", "abstained") else "wrong"
        if self.lower >= radius:
            return "certified"
        return "attacked" if self.upper <= radius else "open"

    def to_json(self) -> dict[str, Any]:
        """Plain values; infinities and NaN become strings."""
        return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Row:
        """The inverse of `to_json`.

        Raises:
            SpecError: fields are missing or unknown.
        """
        try:
            lower, upper = float(values["lower"]), float(values["upper"])
            return Row(**{**values, "lower": lower, "upper": upper, "counterexample": tuple(values["counterexample"])})
        except (KeyError, TypeError, ValueError) as error:
            raise SpecError(f"not a row of samples.jsonl: {error}") from error
