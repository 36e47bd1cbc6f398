"""The choices an expert can make; the defaults suit everybody."""

from __future__ import annotations

from dataclasses import dataclass

from verifier.errors import SpecError
from verifier.outcome import Soundness

EFFORTS = ("bounds", "slopes", "search")


@dataclass(frozen=True)
class Settings:
    """How to run one analysis.

    Attributes:
        timeout_s: wall-clock seconds, None for no limit.
        device: "cpu" or "cuda"; a missing device is an error.
        threads: CPU threads, None for all.
        soundness: "float32" (the deployed program, implies real arithmetic) or "real".
        effort: "bounds" stops after default bounds of the whole input set, "slopes" after optimised ones;
            "search" splits it.
        engine: "auto", "native" or "torch".
        seed: of every random choice.
    """

    timeout_s: float | None = None
    device: str = "cpu"
    threads: int | None = None
    soundness: str = "float32"
    effort: str = "search"
    engine: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Raise SpecError for values out of range, naming the setting."""
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise SpecError(f"timeout: expected seconds > 0, got {self.timeout_s}")
        if self.threads is not None and self.threads < 1:
            raise SpecError(f"threads: expected at least 1, got {self.threads}")
        for name, allowed in (
            ("soundness", ("float32", "real")),
            ("effort", EFFORTS),
            ("engine", ("auto", "native", "torch")),
        ):
            if getattr(self, name) not in allowed:
                raise SpecError(f"{name}: expected one of {', '.join(allowed)}, got '{getattr(self, name)}'")

    @property
    def soundness_level(self) -> Soundness:
        """The level that proofs under these settings reach."""
        return Soundness.IEEE_FLOAT if self.soundness == "float32" else Soundness.REAL_ARITHMETIC
