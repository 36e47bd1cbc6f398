"""What is asked: input sets and the unsafe outputs over them, with no trace of any file format.

A Problem is a union of cases. Each case pairs one input set with a disjunction of clauses; a
clause is a conjunction of linear rows over the flat output vector. The question is whether
some input of some case makes every row of one of its clauses true (`sat`) or none does (`unsat`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from verifier.errors import ShapeError, SpecError


@dataclass(frozen=True)
class Ball:
    """{x : ||(x - center) / scale||_p <= radius}, p in {1, 2, inf}; center and scale [N_in], scale > 0.

    p = 0 is a budget: at most `radius` features leave the center (within the set's box).
    """

    center: np.ndarray
    radius: float
    p: float
    scale: np.ndarray | None = None


@dataclass(frozen=True)
class InputSet:
    """A box, optionally intersected with linear rows `row_coeffs @ x <= row_limits` and a ball.

    Attributes:
        lower, upper: float64 [N_in], finite; every other constraint only shrinks the box.
        row_coeffs: float64 [R, N_in]; row_limits: float64 [R].
        ball: an extra lp constraint, or None.
        row_strict: bool [R], rows that hold with `<`; None: all `<=`. Bounds may ignore it, a
            witness may not.
    """

    lower: np.ndarray
    upper: np.ndarray
    row_coeffs: np.ndarray | None = None
    row_limits: np.ndarray | None = None
    ball: Ball | None = None
    row_strict: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("lower", "upper"):
            value = np.ascontiguousarray(getattr(self, name), dtype=np.float64)
            if value.ndim != 1 or not np.isfinite(value).all():
                raise SpecError(f"input set: {name} must be a finite vector [N_in], got shape {value.shape}")
            object.__setattr__(self, name, value)
        if self.lower.shape != self.upper.shape:
            raise ShapeError(f"input set: lower {self.lower.shape} and upper {self.upper.shape} differ")

    @property
    def size(self) -> int:
        """N_in."""
        return self.lower.shape[0]

    @property
    def is_box(self) -> bool:
        """True when the box is the whole description."""
        return self.row_coeffs is None and self.ball is None

    @property
    def is_empty_box(self) -> bool:
        """True when some lower end exceeds its upper end: no input exists."""
        return bool(np.any(self.lower > self.upper))


@dataclass(frozen=True)
class Clause:
    """Unsafe when `coeffs @ y <= limits` holds in every row (`<` where `strict`).

    Attributes:
        coeffs: float64 [M, N_out]; limits: float64 [M]; strict: bool [M].
    """

    coeffs: np.ndarray
    limits: np.ndarray
    strict: np.ndarray

    def __post_init__(self) -> None:
        # Property files hold up to a million clauses: arrays that are right already are left alone.
        coeffs = np.asarray(self.coeffs, dtype=np.float64)
        coeffs = coeffs if coeffs.ndim == 2 else np.atleast_2d(coeffs)
        limits = np.asarray(self.limits, dtype=np.float64).reshape(-1)
        strict = np.asarray(self.strict, dtype=bool).reshape(-1)
        if strict.shape != limits.shape:
            strict = np.broadcast_to(strict, limits.shape).copy()
        if coeffs.shape[0] != limits.shape[0]:
            raise ShapeError(f"clause: {coeffs.shape[0]} rows of coefficients, {limits.shape[0]} limits")
        if not (np.isfinite(coeffs).all() and np.isfinite(limits).all()):
            raise SpecError("clause: coefficients and limits must be finite")
        for name, value in (("coeffs", coeffs), ("limits", limits), ("strict", strict)):
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Case:
    """One input set and the clauses that are unsafe on it (a disjunction; may be empty: never unsafe)."""

    inputs: InputSet
    clauses: tuple[Clause, ...]


@dataclass(frozen=True)
class Problem:
    """A union of cases; `sat` if any case has an unsafe input.

    Attributes:
        cases: may be empty (nothing can be unsafe).
        output_size: N_out that every clause refers to.
        exact_real: the specification asked for real arithmetic (VNN-LIB 2.0 type `real`).
    """

    cases: tuple[Case, ...]
    output_size: int
    exact_real: bool = False
    notes: tuple[str, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        for case in self.cases:
            for clause in case.clauses:
                if clause.coeffs.shape[1] != self.output_size:
                    raise ShapeError(
                        f"clause refers to {clause.coeffs.shape[1]} outputs, the network has {self.output_size}"
                    )


def misclassified(label: int, classes: int, target: int | None = None) -> tuple[Clause, ...]:
    """Clauses of 'the top class is not `label`', or with `target`: 'class `target` reaches `label`'.

    Row of rival k: y_label - y_k <= 0.
    """
    if not 0 <= label < classes or (target is not None and not 0 <= target < classes):
        raise SpecError(f"label {label} or target {target} is outside 0..{classes - 1}")
    rivals = [target] if target is not None else [k for k in range(classes) if k != label]
    clauses = []
    for rival in rivals:
        row = np.zeros((1, classes))
        row[0, label], row[0, rival] = 1.0, -1.0
        clauses.append(Clause(row, np.zeros(1), np.zeros(1, dtype=bool)))
    return tuple(clauses)


def lp_ball(
    center: np.ndarray,
    radius: float,
    p: float = np.inf,
    *,
    valid: tuple[float, float] | None = None,
    mask: np.ndarray | None = None,
) -> InputSet:
    """The lp ball around `center`, cut to the `valid` range; only features under `mask` may move.

    For p = inf the result is a plain box. p = 0 lets `radius` features take any valid value.

    Raises:
        SpecError: negative radius, unknown p, or p = 0 without a valid range.
    """
    center = np.asarray(center, dtype=np.float64).reshape(-1)
    if not radius >= 0:
        raise SpecError(f"radius: expected a number >= 0, got {radius}")
    if p not in (0, 1, 2, np.inf):
        raise SpecError(f"p: expected 0, 1, 2 or inf, got {p}")
    if p == 0 and valid is None:
        raise SpecError("an l0 ball needs the valid range of the features")
    reach = np.full_like(center, np.inf if p == 0 else radius)
    if mask is not None:
        reach = np.where(np.asarray(mask, dtype=bool).reshape(-1), reach, 0.0)
    low, high = valid if valid is not None else (-np.inf, np.inf)
    lower = np.minimum(np.maximum(center - reach, low), center)
    upper = np.maximum(np.minimum(center + reach, high), center)
    return InputSet(lower, upper, ball=None if np.isinf(p) else Ball(center, float(radius), float(p)))


def classification_problem(
    center: np.ndarray,
    radius: float,
    p: float,
    label: int,
    classes: int,
    *,
    target: int | None = None,
    valid: tuple[float, float] | None = None,
    mask: np.ndarray | None = None,
) -> Problem:
    """'Every input of the lp ball around `center` is given class `label`', as its unsafe set.

    Args:
        center: [N_in] or any shape that flattens to it, in the network's own units.
        radius: in the same units; for p = 0 the number of features that may change.
        p: 0, 1, 2 or inf.
        label, classes: the right class and the number of classes, N_out.
        target: only this class counts as unsafe; None: any other class.
        valid: (low, high) of every feature; None: unlimited.
        mask: features that may change, like `center`; None: all.
    Raises:
        SpecError: a label or target outside 0..classes-1, or an impossible ball (`lp_ball`).
    """
    clauses = misclassified(label, classes, target)
    return Problem((Case(lp_ball(center, radius, p, valid=valid, mask=mask), clauses),), classes)
