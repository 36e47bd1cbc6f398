"""Exact confidence bounds on a probability that was sampled, rounded to the safe side."""

from __future__ import annotations

from scipy import special

from verifier.errors import SpecError

# Two thousand times the documented relative error of the special functions used here.
SAFETY_REL = 2.0**-40


def lower_bound(count: int, samples: int, alpha: float) -> float:
    """One-sided Clopper-Pearson bound: P(probability < result) <= alpha over the sampling.

    Args:
        count: samples with the event, 0..samples.
        samples: independent samples, > 0.
        alpha: probability of a wrong bound, in (0, 1).
    Returns:
        The smallest p with P[Binomial(samples, p) >= count] >= alpha, rounded down.
    Raises:
        SpecError: a count or alpha out of range.
    Source: Clopper & Pearson 1934, Biometrika 26.
    """
    _check(count, samples, alpha)
    if count == 0:
        return 0.0
    failures = samples - count
    p = float(special.betaincinv(count, failures + 1, alpha)) * (1.0 - SAFETY_REL)
    # The inverse is iterative: accept it only where the tail, a different routine, agrees.
    while not special.betainc(count, failures + 1, p) <= alpha:
        p *= 1.0 - 2.0**-20
    return p


def upper_bound(count: int, samples: int, alpha: float) -> float:
    """One-sided Clopper-Pearson bound: P(probability > result) <= alpha over the sampling.

    Arguments, errors and source as in `lower_bound`; the result is rounded up.
    """
    _check(count, samples, alpha)
    return min(1.0, (1.0 - lower_bound(samples - count, samples, alpha)) * (1.0 + 2.0**-52))


def majority_p_value(first: int, second: int) -> float:
    """Two-sided p-value of 'the two classes are equally likely', given their counts.

    Source: Hung & Fithian 2019, as used by Cohen et al. 2019, arXiv:1902.02918 (PREDICT).
    """
    if first < second or second < 0:
        raise SpecError(f"counts: expected first >= second >= 0, got {first} and {second}")
    if first == second:
        return 1.0
    return min(1.0, 2.0 * float(special.betainc(first, second + 1, 0.5)) * (1.0 + SAFETY_REL))


def _check(count: int, samples: int, alpha: float) -> None:
    if samples <= 0 or not 0 <= count <= samples:
        raise SpecError(f"count: expected 0..samples with samples > 0, got {count} of {samples}")
    if not 0.0 < alpha < 1.0:
        raise SpecError(f"alpha: expected a probability in (0, 1), got {alpha}")
