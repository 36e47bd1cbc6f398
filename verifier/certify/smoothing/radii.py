"""Certified radii of a smoothed classifier from the probability of its top class.

Every function takes `p_top`, a lower bound on the probability of the returned class under the
noise, and `p_rival`, an upper bound on that of every other class (default: 1 - p_top), and
returns a radius that is never rounded up: 0 where nothing can be certified.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import optimize, special

from verifier.certify.smoothing.confidence import SAFETY_REL
from verifier.errors import SpecError


def gaussian_l2(p_top: float, sigma: float, p_rival: float | None = None) -> float:
    """l2 radius under Gaussian noise, by the Neyman-Pearson lemma: the largest that p alone allows.

        sigma / 2 * (Phi^-1(p_top) - Phi^-1(p_rival));  sigma * Phi^-1(p_top) with the default rival.

    Args:
        sigma: standard deviation of the noise, in input units, > 0.
    Source: Cohen, Rosenfeld & Kolter 2019, arXiv:1902.02918.
    """
    p_top, p_rival = _probabilities(p_top, p_rival, sigma)
    top, rival = float(special.ndtri(p_top)), float(special.ndtri(p_rival))
    # Each quantile has its own relative error, so the margin follows their magnitudes.
    return _down(0.5 * sigma * (top - rival), 0.5 * sigma * (abs(top) + abs(rival)))


def uniform_l1(p_top: float, width: float, p_rival: float | None = None) -> float:
    """l1 radius under noise uniform on [-width, width] in every feature: width (p_top - p_rival).

    Source: Lee et al. 2019, arXiv:1906.04948; Yang et al. 2020, arXiv:2002.08118.
    """
    p_top, p_rival = _probabilities(p_top, p_rival, width)
    return _down(width * (p_top - p_rival))


def laplace_l1(p_top: float, scale: float, p_rival: float | None = None) -> float:
    """l1 radius under Laplace noise of the given scale.

        max(scale / 2 * ln(p_top / p_rival), -scale * ln(1 - p_top + p_rival)).

    Source: Teng, Lee & Yuan 2020 (l1 adversarial robustness certificates).
    """
    p_top, p_rival = _probabilities(p_top, p_rival, scale)
    missing = (1.0 - p_top) + p_rival
    if missing <= 0.0:
        return math.inf
    radius = -scale * math.log(missing * (1.0 + SAFETY_REL))
    if p_rival > 0.0:
        radius = max(radius, 0.5 * scale * math.log(p_top / p_rival * (1.0 - SAFETY_REL)))
    return _down(radius)


def ablation_l0(p_top: float, features: int, kept: int, p_rival: float | None = None) -> int:
    """Number of features anyone may change when the classifier sees a random `kept` of them.

    Changing rho features is seen with probability D = 1 - C(d - rho, k) / C(d, k), and moves
    either probability by at most D: certified while p_top - D > p_rival + D, or, with the
    default rival, while p_top - D > 1/2.

    Args:
        features: d, features that can be kept or hidden.
        kept: k in 1..d, features kept.
    Returns:
        The largest certified rho, in 0..d - k.
    Source: Levine & Feizi 2020, arXiv:1911.09272.
    """
    given_rival = p_rival is not None
    p_top, p_rival = _probabilities(p_top, p_rival, 1.0)
    if not 1 <= kept <= features:
        raise SpecError(f"kept: expected 1..{features} features, got {kept}")
    gap = (p_top - p_rival) / 2.0 if given_rival else p_top - 0.5
    allowed = _down(gap)
    unseen, rho = 1.0, 0
    while rho < features - kept:
        # Rounded down at every factor, so a radius is never claimed by round-off.
        unseen = np.nextafter(unseen * np.nextafter((features - kept - rho) / (features - rho), 0.0), 0.0)
        if not 1.0 - unseen < allowed:
            break
        rho += 1
    return rho


def differential_privacy_l2(p_top: float, sigma: float, p_rival: float | None = None) -> float:
    """l2 radius under Gaussian noise from (epsilon, delta)-differential privacy.

        sup over beta in (0, 1] of sigma beta / sqrt(2 ln(1.25 (1 + e^beta) / (p_top - e^(2 beta) p_rival))).

    Weaker than `gaussian_l2`; kept for comparison. Any beta is valid, so the search needs no proof.

    Source: Lecuyer et al. 2019, arXiv:1802.03471.
    """
    p_top, p_rival = _probabilities(p_top, p_rival, sigma)

    def radius(beta: float) -> float:
        gap = p_top - math.exp(2.0 * beta) * p_rival * (1.0 + SAFETY_REL)
        if gap <= 0.0:
            return 0.0
        return sigma * beta / math.sqrt(2.0 * math.log(1.25 * (1.0 + math.exp(beta)) / gap))

    limit = min(1.0, 0.5 * math.log(p_top / p_rival)) if p_rival > 0.0 else 1.0
    return _down(_maximise(radius, 0.0, limit))


def renyi_l2(p_top: float, sigma: float, p_rival: float | None = None) -> float:
    """l2 radius under Gaussian noise from the Renyi divergence of shifted Gaussians.

        sup over a > 1 of sigma sqrt(-(2/a) ln(1 - p_top - p_rival + 2 M_{1-a}(p_top, p_rival))),

    M the power mean. Weaker than `gaussian_l2`; kept for comparison. Any order a is valid.

    Source: Li et al. 2019, arXiv:1809.03113.
    """
    p_top, p_rival = _probabilities(p_top, p_rival, sigma)

    def radius(log_excess: float) -> float:
        order = 1.0 + math.exp(log_excess)
        inner = max(0.0, 1.0 - p_top - p_rival) + 2.0 * _power_mean(p_top, p_rival, 1.0 - order)
        inner = inner * (1.0 + SAFETY_REL) + 2.0**-50
        return sigma * math.sqrt(-2.0 / order * math.log(inner)) if inner < 1.0 else 0.0

    return _down(_maximise(radius, -12.0, 12.0))


def _power_mean(a: float, b: float, exponent: float) -> float:
    """((a^e + b^e) / 2)^(1/e) for e < 0, a >= b; 0 where b = 0. Scaled by b, so nothing overflows."""
    if b == 0.0:
        return 0.0
    return b * (0.5 * (1.0 + (a / b) ** exponent)) ** (1.0 / exponent)


def _maximise(objective, low: float, high: float) -> float:
    """The best value found on a grid and in the bracket around its best point."""
    grid = np.linspace(low, high, 129)[1:]
    values = [objective(float(g)) for g in grid]
    best = int(np.argmax(values))
    bracket = (float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)]))
    found = optimize.minimize_scalar(lambda v: -objective(float(v)), bounds=bracket, method="bounded")
    return max(values[best], -float(found.fun))


def _down(value: float, magnitude: float | None = None) -> float:
    """`value` lowered by far more than the error of its computation; never below 0."""
    return max(0.0, value - SAFETY_REL * (abs(value) if magnitude is None else magnitude))


def _probabilities(p_top: float, p_rival: float | None, noise_scale: float) -> tuple[float, float]:
    """Checked bounds; p_top <= p_rival comes back as (1/2, 1/2), for which every radius is 0."""
    if not (noise_scale > 0.0 and math.isfinite(noise_scale)):
        raise SpecError(f"noise scale: expected a finite number > 0, got {noise_scale}")
    if p_rival is None:
        p_rival = 1.0 - p_top  # exact for p_top >= 1/2; below it nothing is certified
    if not (0.0 <= p_top <= 1.0 and 0.0 <= p_rival <= 1.0):
        raise SpecError(f"probabilities: expected numbers in [0, 1], got {p_top} and {p_rival}")
    return (p_top, p_rival) if p_top > p_rival else (0.5, 0.5)
