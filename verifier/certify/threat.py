"""Which inputs count as near: a norm, per-feature scales, a valid range and the features that may move."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from verifier.errors import ShapeError, SpecError
from verifier.spec.problem import Ball, InputSet

NORMS = (0.0, 1.0, 2.0, math.inf)


def norm_name(p: float) -> str:
    """ "l0", "l1", "l2" or "linf"."""
    return "linf" if math.isinf(p) else f"l{p:g}"


def parse_norm(text: str) -> float:
    """p from "linf", "l2", "2", "inf", ...

    Raises:
        SpecError: any other text.
    """
    found = {"0": 0.0, "1": 1.0, "2": 2.0, "inf": math.inf}.get(text.lower().removeprefix("l"))
    if found is None:
        raise SpecError(f"norm: expected l0, l1, l2 or linf, got '{text}'")
    return found


@dataclass(frozen=True)
class Nearness:
    """{x' : ||(x' - x) / scale||_p <= radius}, inside `valid`, equal to x wherever `mask` is off.

    Attributes:
        norm: p in {0, 1, 2, inf}; for p = 0 the radius is a number of features.
        valid: (lower, upper), float64 [N_in] each, or None for no limits.
        mask: bool [N_in], features that may move; None: all.
        scale: float64 [N_in] > 0, what counts as one unit of each feature; None: one.
        also: further (p, eps), p in {1, 2, inf}, that hold at every radius: ||(x' - x) / scale||_p <= eps.
            The set is then an intersection of balls. Proofs use the box of all of them and one l1 or l2
            ball, that of `norm` before the others: exact for two constraints with a box among them, a
            superset else. Counterexamples keep to every one.
    Raises:
        SpecError: unknown norm, p = 0 without a valid range or with scales, scales that are not positive,
            a further norm twice or out of range.
    """

    norm: float = math.inf
    valid: tuple[np.ndarray, np.ndarray] | None = None
    mask: np.ndarray | None = None
    scale: np.ndarray | None = None
    also: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        self._check_also()
        if self.norm not in NORMS:
            raise SpecError(f"norm: expected 0, 1, 2 or inf, got {self.norm}")
        if self.norm == 0 and self.valid is None:
            raise SpecError("norm: l0 needs the valid range of the features; give `valid`")
        if self.norm == 0 and self.scale is not None:
            raise SpecError("scale: l0 counts features, so scales mean nothing there; leave them out")
        for name, dtype in (("mask", bool), ("scale", np.float64)):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, np.asarray(value, dtype=dtype).reshape(-1))
        if self.scale is not None and not np.all((self.scale > 0) & np.isfinite(self.scale)):
            raise SpecError("scale: expected finite numbers > 0 for every feature")
        if self.valid is not None:
            lower, upper = (np.asarray(end, dtype=np.float64).reshape(-1) for end in self.valid)
            if not np.all(lower <= upper):
                raise SpecError("valid range: expected lower <= upper for every feature")
            object.__setattr__(self, "valid", (lower, upper))

    def _check_also(self) -> None:
        norms = [self.norm, *(p for p, _ in self.also)]
        if len(set(norms)) < len(norms) or any(p not in NORMS[1:] for p in norms[1:]):
            raise SpecError(
                f"also: expected norms 1, 2 or inf, each once and other than {norm_name(self.norm)}, got "
                f"{', '.join(norm_name(p) for p in norms[1:])}"
            )
        if not all(0 < eps < math.inf for _, eps in self.also):
            raise SpecError(f"also: expected finite sizes > 0, got {', '.join(f'{eps:g}' for _, eps in self.also)}")

    def sized(self, features: int) -> Nearness:
        """The same with every array of length `features`; single numbers are repeated.

        Raises:
            ShapeError: an array of another length.
        """

        def fit(name: str, value: np.ndarray | None) -> np.ndarray | None:
            if value is None or value.size == features:
                return value
            if value.size != 1:
                raise ShapeError(f"{name}: expected {features} numbers (N_in) or one, got {value.size}")
            return np.repeat(value, features)

        valid = None if self.valid is None else (fit("valid", self.valid[0]), fit("valid", self.valid[1]))
        return replace(self, valid=valid, mask=fit("mask", self.mask), scale=fit("scale", self.scale))  # type: ignore[arg-type]

    def check_center(self, x: np.ndarray) -> None:
        """Raise SpecError unless x [N_in] is finite and inside the valid range."""
        if not np.all(np.isfinite(x)):
            raise SpecError("input: expected finite numbers, got NaN or infinity")
        if self.valid is None:
            return
        outside = (x < self.valid[0]) | (x > self.valid[1])
        if outside.any():
            i = int(outside.argmax())
            raise SpecError(
                f"input: feature {i} is {x[i]:g}, outside its valid range [{self.valid[0][i]:g}, "
                f"{self.valid[1][i]:g}]; give inputs in the network's own units"
            )

    def input_set(self, center: np.ndarray, radius: float) -> InputSet:
        """A set that contains every input within `radius` of the center, rounded outward.

        Args:
            center: float64 [N_in]. radius: finite, >= 0.
        """
        unit = np.ones_like(center) if self.scale is None else self.scale
        # No coordinate of a vector exceeds its norm, so every ball lies in a box of its own radius.
        sizes = [eps for _, eps in self.also] + ([radius] if self.norm != 0 else [])
        reach = np.nextafter(min(sizes, default=np.inf) * unit, np.inf)
        if radius == 0:
            reach = np.zeros_like(center)
        if self.mask is not None:
            reach = np.where(self.mask, reach, 0.0)
        moves = reach > 0
        lower = np.where(moves, np.nextafter(center - reach, -np.inf), center)
        upper = np.where(moves, np.nextafter(center + reach, np.inf), center)
        if self.valid is not None:
            lower = np.minimum(np.maximum(lower, self.valid[0]), center)
            upper = np.maximum(np.minimum(upper, self.valid[1]), center)
        ball = None
        norm, size = next(((p, e) for p, e in ((self.norm, radius), *self.also) if not math.isinf(p)), (math.inf, 0.0))
        if not math.isinf(norm):
            # A feature that cannot move contributes nothing, whatever its unit: a tiny one says so to the bounds.
            scale = np.where(moves, unit, 2.0**-500)
            ball = Ball(center, float(size), norm, None if norm == 0 else scale)
        return InputSet(lower, upper, ball=ball)

    def distance(self, center: np.ndarray, points: np.ndarray) -> np.ndarray:
        """How far points [P, N_in] are from the center, [P], never rounded down."""
        return self._length(points - center, self.norm)

    def _length(self, steps: np.ndarray, norm: float) -> np.ndarray:
        """The norm of steps [P, N_in] in units of the scale, [P], never rounded down."""
        size = np.abs(steps)
        if norm == 0:
            return np.count_nonzero(size, axis=1).astype(np.float64)
        size = size if self.scale is None else size / self.scale
        found = np.linalg.norm(size, ord=norm, axis=1)
        return np.where(found > 0, found * (1 + (steps.shape[1] + 8) * 2.0**-52), 0.0)

    def holds(self, center: np.ndarray, point: np.ndarray) -> bool:
        """True when the point [N_in] is valid and equals the center outside the mask."""
        if not np.all(np.isfinite(point)):
            return False
        if self.mask is not None and np.any((point != center) & ~self.mask):
            return False
        step = (point - center)[None]
        if any(not self._length(step, p)[0] <= eps for p, eps in self.also):
            return False
        return self.valid is None or bool(np.all((self.valid[0] <= point) & (point <= self.valid[1])))

    def restrict(self, center: np.ndarray, points: np.ndarray) -> np.ndarray:
        """The points [P, N_in] moved into the valid range, and back to the center outside the mask."""
        if self.valid is not None:
            points = np.clip(points, *self.valid)
        return points if self.mask is None else np.where(self.mask, points, center)

    def drawn_in(self, center: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Points [P, N_in] moved towards the center into the further balls, a little inside for later rounding."""
        for p, eps in self.also:
            size = self._length(points - center, p)
            inside = (1 - 1e-6) * eps / np.where(size > 0, size, 1.0)
            points = center + np.where(size > eps, inside, 1.0)[:, None] * (points - center)
        return points

    def largest(self, center: np.ndarray) -> float:
        """A radius that holds every valid input; inf without a valid range."""
        if self.valid is None and not self.also:
            return math.inf
        unit = np.ones_like(center) if self.scale is None else self.scale
        far = np.nextafter(min((eps for _, eps in self.also), default=np.inf) * unit, np.inf)
        if self.valid is not None:
            far = np.minimum(far, np.maximum(self.valid[1] - center, center - self.valid[0]))
        if self.mask is not None:
            far = np.where(self.mask, far, 0.0)
        return float(self.distance(center, (center + far)[None])[0])

    def words(self) -> str:
        """The threat in words, for reports."""
        name = norm_name(self.norm)
        if self.norm == 0:
            what = "at most the radius's number of features take any valid value"
        else:
            what = {
                1.0: "the sum of all changes",
                2.0: "the Euclidean length of the change",
                math.inf: "the change of every single feature",
            }[self.norm] + " stays within the radius"
        parts = [f"{name}: {what}"]
        if self.also:
            parts.append("within " + " and ".join(f"{eps:g} in {norm_name(p)}" for p, eps in self.also) + " as well")
        if self.scale is not None:
            parts.append("changes are measured in the given unit of each feature")
        if self.mask is not None:
            parts.append(f"only {int(self.mask.sum())} of {self.mask.size} features may move")
        parts.append("inputs stay inside their valid range" if self.valid is not None else "no limit on inputs")
        return "; ".join(parts)
