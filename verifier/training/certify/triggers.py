"""Certified trigger bounds: the largest patch or blend for which no trigger of that shape exists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verifier.api import verify
from verifier.data import Dataset
from verifier.errors import SpecError
from verifier.graph.ir import Graph
from verifier.outcome import Verdict
from verifier.settings import Settings
from verifier.spec.problem import Case, Clause, InputSet, Problem
from verifier.spec.query import query_of
from verifier.training.train import Progress


@dataclass(frozen=True)
class TriggerQuestion:
    """Which triggers to rule out.

    Attributes:
        graph: the classifier, one input.
        rows: inputs [n, *shape] that do not belong to the target; valid: their range.
        target: the class asked for.
        timeout_s: wall-clock seconds for each input and shape.
        seed: of the searches.
    """

    graph: Graph
    rows: np.ndarray
    valid: tuple[np.ndarray | float, np.ndarray | float]
    target: int
    timeout_s: float = 10.0
    seed: int = 0


@dataclass(frozen=True)
class ShapeAnswer:
    """One shape of trigger against every input.

    Attributes:
        shape: in words; size: pixels of the side, or the blend strength.
        verdicts: one a row: "unsat" no trigger of this shape sends it to the target, "sat" one does.
        example: a triggered input [*shape] that reaches the target, if one was found.
    """

    shape: str
    size: float
    verdicts: tuple[str, ...]
    example: np.ndarray | None = None

    @property
    def ruled_out(self) -> bool:
        """True when no trigger of this shape sends any of the inputs to the target."""
        return all(v == Verdict.UNSAT.value for v in self.verdicts)

    @property
    def success_at_most(self) -> float:
        """Proved ceiling on the attack success rate of any trigger of this shape, on these inputs."""
        return 1.0 - sum(v == Verdict.UNSAT.value for v in self.verdicts) / max(len(self.verdicts), 1)


def rows_outside(data: Dataset, target: int, count: int, seed: int = 0) -> np.ndarray:
    """Up to `count` random rows [n, *shape] of other classes.

    Raises:
        SpecError: none, or no such class.
    """
    if not 0 <= target < len(data.classes):
        raise SpecError(f"target: expected a class in 0..{len(data.classes) - 1}, got {target}")
    others = np.flatnonzero(data.y != target)
    if len(others) == 0:
        raise SpecError("trigger bound: every row already has the target class; bring others")
    return data.x[np.sort(np.random.default_rng(seed).permutation(others)[:count])]


def patch_box(row: np.ndarray, mask: np.ndarray, valid: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Flat box of all inputs that agree with the row outside the mask (bool, row's shape)."""
    lower, upper = (np.where(mask, np.broadcast_to(end, row.shape), row) for end in valid)
    return lower.ravel().astype(np.float64), upper.ravel().astype(np.float64)


def blend_box(row: np.ndarray, strength: float, valid: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Flat box of (1 - strength) x + strength p over all patterns p of the valid range."""
    ends = [(1 - strength) * row.astype(np.float64) + strength * np.broadcast_to(e, row.shape) for e in valid]
    # Outward by more than a program that blends in float32 can be off: three roundings of 2^-24.
    slack = 2.0**-22 * (np.abs(row) + np.maximum(np.abs(ends[0]), np.abs(ends[1])))
    return (ends[0] - slack).ravel(), (ends[1] + slack).ravel()


def patch_mask(shape: Sequence[int], side: int, corner: tuple[int, int]) -> np.ndarray:
    """bool [*shape]: the side x side square of all channels whose top left pixel is `corner`."""
    mask = np.zeros(tuple(shape), dtype=bool)
    mask[:, corner[0] : corner[0] + side, corner[1] : corner[1] + side] = True
    return mask


def against(question: TriggerQuestion, boxes: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]]) -> tuple:
    """(verdict of every row, one example or None): is some input of the row's boxes sent to the target?

    Args:
        boxes: for each row the union of boxes its triggered versions fill.
    """
    classes, verdicts, example = question.graph.output_size, [], None
    if not 0 <= question.target < classes:
        raise SpecError(f"target: expected a class in 0..{classes - 1}, got {question.target}")
    others = [k for k in range(classes) if k != question.target]
    rows = np.zeros((len(others), classes))
    rows[np.arange(len(others)), others], rows[:, question.target] = 1.0, -1.0
    reaches = Clause(rows, np.zeros(len(others)), np.zeros(len(others), dtype=bool))
    settings = Settings(timeout_s=question.timeout_s, threads=1, seed=question.seed)
    for union in boxes:
        problem = Problem(tuple(Case(InputSet(low, high), (reaches,)) for low, high in union), classes)
        report = verify(question.graph, query_of(question.graph, problem), settings)
        verdicts.append(report.verdict.value)
        if report.witness is not None and example is None:
            example = np.asarray(report.witness.x, dtype=np.float32).reshape(question.rows.shape[1:])
    return tuple(verdicts), example


def patch_answers(
    question: TriggerQuestion, sides: Sequence[int], corner: tuple[int, int] | None = None,
    progress: Progress | None = None,
) -> list[ShapeAnswer]:  # fmt: skip
    """Every square side in turn, at one place or (None) at any place of the image.

    Raises:
        SpecError: not images, or a square that does not fit.
    """
    shape = question.rows.shape[1:]
    if len(shape) != 3 or not all(1 <= side <= min(shape[1:]) for side in sides):
        raise SpecError(f"trigger bound: squares {list(sides)} need images at least that large, got rows {shape}")
    answers = []
    for number, side in enumerate(sides):
        places = [corner] if corner is not None else [
            (top, left) for top in range(shape[1] - side + 1) for left in range(shape[2] - side + 1)
        ]  # fmt: skip
        masks = [patch_mask(shape, side, place) for place in places]
        if any(mask.sum() != shape[0] * side**2 for mask in masks):
            raise SpecError(f"trigger bound: a {side}x{side} square at {corner} leaves the image {shape[1:]}")
        boxes = [[patch_box(row, mask, question.valid) for mask in masks] for row in question.rows]
        where = "any place" if corner is None else f"row {corner[0]}, column {corner[1]}"
        answers.append(ShapeAnswer(f"{side}x{side} patch at {where}", side, *against(question, boxes)))
        if progress is not None:
            progress((number + 1) / len(sides), _in_words(answers[-1]))
    return answers


def blend_answers(
    question: TriggerQuestion, strengths: Sequence[float], progress: Progress | None = None
) -> list[ShapeAnswer]:
    """Every blend strength in turn: (1 - strength) x + strength p, p any pattern of the valid range."""
    if not all(0 < s <= 1 for s in strengths):
        raise SpecError(f"trigger bound: blend strengths must lie in (0, 1], got {list(strengths)}")
    if not all(np.all(np.isfinite(end)) for end in question.valid):
        raise SpecError("trigger bound: a blend needs a finite valid range; set the data set's `valid`")
    answers = []
    for number, strength in enumerate(strengths):
        boxes = [[blend_box(row, strength, question.valid)] for row in question.rows]
        answers.append(ShapeAnswer(f"blend of strength {strength:g}", strength, *against(question, boxes)))
        if progress is not None:
            progress((number + 1) / len(strengths), _in_words(answers[-1]))
    return answers


def largest_ruled_out(answers: Sequence[ShapeAnswer]) -> ShapeAnswer | None:
    """The largest size up to which every size asked about is ruled out for every input."""
    found = None
    for answer in sorted(answers, key=lambda a: a.size):
        if not answer.ruled_out:
            break
        found = answer
    return found


def _in_words(answer: ShapeAnswer) -> str:
    return f"{answer.shape}: success at most {answer.success_at_most:.0%}"
