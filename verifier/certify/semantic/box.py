"""The parameter box: how it is written, scaled, laid out as a network input, and cut into pieces."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from verifier.attack.semantic.threat import SemanticThreat
from verifier.attack.semantic.transformations import TRANSFORMATIONS, Transformation
from verifier.errors import SpecError

#: Pixels that a sampling coordinate may travel within one piece, about.
PIECE_PIXELS = 0.5
#: Above this many pieces a box is refused rather than worked on for ever.
MOST_PIECES = 10_000
#: Parameters are allowed this much beyond their range, relative to its ends: they may be float32 numbers.
WIDENING = 2.0**-22

#: Orders of components that are certified one by one: those of four.
MOST_ORDERS = 24

Ends = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Piece:
    """A part of the question that one graph answers.

    Attributes:
        lower, upper: ranges of the transformations' parameters, float64 [P].
        order: components (the transformations as numbered in the threat, then any pixel change) as applied.
    """

    lower: np.ndarray
    upper: np.ndarray
    order: tuple[int, ...]


def parse_step(text: str) -> Transformation:
    """A transformation from "brightness=-0.1:0.1" or "translation=-1:1,-0.5:0.5".

    Raises:
        SpecError: another form, an unknown name, the wrong number of ranges, a range without the identity.
    """
    name, equals, ranges = text.partition("=")
    if name not in TRANSFORMATIONS:
        raise SpecError(f"transformation '{name}': expected one of {', '.join(TRANSFORMATIONS)}, as in {_EXAMPLE}")
    step = TRANSFORMATIONS[name]
    try:
        ends = [tuple(float(v) for v in part.split(":")) for part in ranges.split(",")]
    except ValueError:
        ends = []
    fits = len(ends) == len(step.identity) and all(len(e) == 2 and all(map(math.isfinite, e)) for e in ends)
    if not (equals and fits):
        raise SpecError(
            f"transformation {name}: expected {len(step.identity)} ranges LOW:HIGH ({', '.join(step.parameters)}) "
            f"separated by commas, got '{ranges}'; as in {_EXAMPLE}"
        )
    return step.within(tuple(e[0] for e in ends), tuple(e[1] for e in ends))


_EXAMPLE = "brightness=-0.1:0.1 or translation=-1:1,-1:1"


def parse_threat(texts: Sequence[str], valid: tuple[float, float], *, free_order: bool = False) -> SemanticThreat:
    """Transformations in the order given; "pixels=EPS", a change of every pixel by up to EPS, may come last.

    Raises:
        SpecError: see `parse_step`; nothing given, a transformation twice, pixels not last or not positive.
    """
    pixels = [text for text in texts if text.partition("=")[0] == "pixels"]
    if pixels and (len(pixels) > 1 or texts[-1] != pixels[0]):
        raise SpecError("transformation pixels: expected once and last, after the transformations")
    eps = 0.0
    if pixels:
        try:
            eps = float(pixels[0].partition("=")[2])
        except ValueError:
            eps = math.nan
        if not 0 < eps < math.inf:
            raise SpecError(f"transformation pixels: expected a number above 0, as in pixels=0.01, got '{pixels[0]}'")
    return SemanticThreat(tuple(parse_step(t) for t in texts[: len(texts) - len(pixels)]), eps, free_order, valid)


def scaled(threat: SemanticThreat, share: float) -> SemanticThreat:
    """The box shrunk towards the identity: every range times `share`."""
    if share == 1:
        return threat
    steps = []
    for step in threat.transformations:
        lower, upper = (
            tuple(i + share * (e - i) for i, e in zip(step.identity, ends, strict=True))
            for ends in (step.lower, step.upper)
        )
        steps.append(step.within(lower, upper))
    return replace(threat, transformations=tuple(steps), pixel_eps=share * threat.pixel_eps)


def words(threat: SemanticThreat) -> str:
    """The box in words, for reports."""
    parts = [
        f"{step.name} " + ", ".join(
            f"{a:g} to {b:g} {name}" for a, b, name in zip(step.lower, step.upper, step.parameters, strict=True)
        )
        for step in threat.transformations
    ]  # fmt: skip
    if threat.pixel_eps > 0:
        parts.append(f"a change of up to {threat.pixel_eps:g} of every pixel")
    low, high = threat.valid
    between = "; in any order with " if threat.free_order else "; then "
    return between.join(parts) + f"; pixels clipped to [{low:g}, {high:g}] after each"


def whole(threat: SemanticThreat) -> Piece:
    """Everything at once, in the order given."""
    ends = [np.array([v for step in threat.transformations for v in getattr(step, e)]) for e in ("lower", "upper")]
    return Piece(ends[0], ends[1], tuple(range(threat.components)))


def pieces(threat: SemanticThreat, shape: tuple[int, int, int]) -> list[Piece]:
    """Pieces that cover the threat: its box in parts, each in every order where that is free.

    Angles and shifts are cut so that no sampling coordinate travels much further than PIECE_PIXELS;
    what is left to cut the search finds out itself.

    Raises:
        SpecError: more than MOST_PIECES, or more than MOST_ORDERS.
    """
    _, height, width = shape
    radius = 0.5 * math.hypot(height, width)
    cuts = []
    for step in threat.transformations:
        for a, b, name in zip(step.lower, step.upper, step.parameters, strict=True):
            travel = {"degrees": radius * math.pi / 180, "pixels down": 1.0, "pixels right": 1.0}.get(name, 0.0) * (
                b - a
            )
            edges = np.linspace(a, b, max(1, math.ceil(travel / PIECE_PIXELS)) + 1)
            cuts.append(list(itertools.pairwise(edges.tolist())))
    orders = math.factorial(threat.components) if threat.free_order else 1
    if orders > MOST_ORDERS:
        raise SpecError(
            f"transformations: {threat.components} components have {orders} orders, more than {MOST_ORDERS}; give a "
            "fixed order, or fewer of them"
        )
    count = math.prod(len(c) for c in cuts) * orders
    if count > MOST_PIECES:
        raise SpecError(
            f"transformations: this box would be cut into {count} pieces, more than {MOST_PIECES}; narrow the ranges "
            "of rotation and translation, or certify them a part at a time"
        )
    given = tuple(range(threat.components))
    return [
        Piece(np.array([a for a, _ in chosen]), np.array([b for _, b in chosen]), order)
        for order in (itertools.permutations(given) if threat.free_order else [given])
        for chosen in itertools.product(*cuts)
    ]


def input_ends(threat: SemanticThreat, piece: Piece, pixels: int) -> Ends:
    """The box of the composed network's inputs: parameters, slightly widened, then any pixel change."""
    lower, upper = piece.lower, piece.upper
    slack = np.where(upper > lower, WIDENING * (np.abs(lower) + np.abs(upper)), 0.0)
    change = np.full(pixels if threat.pixel_eps > 0 else 0, threat.pixel_eps * (1 + WIDENING))
    return np.concatenate([lower - slack, -change]), np.concatenate([upper + slack, change])
