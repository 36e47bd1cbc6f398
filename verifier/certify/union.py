"""Certified radius over a union of lp balls: one number for several norms at once.

The class holds on the union of the balls of radius r * size_p, one a norm, exactly where it holds on
each; so both ends follow from the radii of the single norms, and the first norm that ends low leaves
less to prove to the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from verifier.certify.radius import CertifiedRadius, RadiusSettings, certified_radius
from verifier.certify.threat import Nearness
from verifier.certify.victim import Classifier
from verifier.errors import SpecError
from verifier.graph.ir import Graph


@dataclass(frozen=True)
class CertifiedUnion:
    """The class stays on every ball of radius `lower` times its size; at `upper` one of them holds a counterexample.

    Attributes:
        parts: norm -> what was found for it alone, in that norm's own units.
        weakest: the norm whose counterexample gives `upper`; None without one.
    """

    lower: float
    upper: float
    parts: Mapping[float, CertifiedRadius]
    weakest: float | None


def certified_union(
    network: str | Graph | Classifier,
    x: np.ndarray,
    label: int | None = None,
    *,
    sizes: Mapping[float, float],
    nearness: Nearness | None = None,
    settings: RadiusSettings | None = None,
    cancel: Callable[[], bool] | None = None,
) -> CertifiedUnion:
    """The largest r for which the class holds on the union of the balls ||x' - x||_p <= r * sizes[p].

    Args:
        network, x, label, cancel: see `certified_radius`.
        sizes: norm p in {1, 2, inf} -> how large its ball is at r = 1, > 0.
        nearness: valid range, mask, scales and further balls; its norm is not used.
        settings: for each norm; the time limit is shared equally.
    Raises:
        SpecError: no norms, unknown ones, sizes that are not positive; see also `certified_radius`.
    """
    if not sizes or not all(p in (1.0, 2.0, math.inf) and 0 < size < math.inf for p, size in sizes.items()):
        raise SpecError(f"union of balls: expected norms 1, 2, inf with finite sizes > 0, got {dict(sizes)}")
    near, settings = nearness or Nearness(), settings or RadiusSettings()
    classifier = network if isinstance(network, Classifier) else Classifier(network)
    share = None if settings.timeout_s is None else settings.timeout_s / len(sizes)
    lower, upper, weakest = math.inf, math.inf, None
    parts: dict[float, CertifiedRadius] = {}
    for p, size in sizes.items():
        one = replace(settings, timeout_s=share, radii=tuple(r * size for r in settings.radii))
        found = certified_radius(
            classifier, x, label, nearness=replace(near, norm=p), settings=one, cancel=cancel
        )  # fmt: skip
        parts[p] = found
        # A quotient may be rounded either way: the lower end goes down, the upper end up.
        low, high = found.lower / size, found.upper / size
        lower = min(lower, low if math.isinf(low) or low == 0 else math.nextafter(low, 0.0))
        if high < upper:
            upper, weakest = math.nextafter(high, math.inf), p
    return CertifiedUnion(lower, upper, parts, weakest)
