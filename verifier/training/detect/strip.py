"""STRIP: a triggered input keeps its prediction whatever is laid over it, a clean one does not."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax
from torch import nn

from verifier.data import Dataset
from verifier.errors import SpecError
from verifier.training.detect.rows import RowScores
from verifier.training.predict import logits


def superimposed_entropy(
    x: np.ndarray, model: nn.Module, overlays: Dataset, *, copies: int = 50, strength: float = 0.5, seed: int = 0
) -> np.ndarray:
    """Mean entropy (nats) of the predictions of each row blended with random clean rows, float64 [n].

    Args:
        x: rows [n, *shape]; overlays: trusted rows.
        copies: blends a row; strength: share of the overlay in a blend.
    Raises:
        SpecError: no overlays.
    """
    if len(overlays) == 0:
        raise SpecError("STRIP: needs trusted rows to lay over the inputs")
    rng = np.random.default_rng(seed)
    total = np.zeros(len(x))
    for _ in range(copies):
        over = overlays.x[rng.integers(0, len(overlays), len(x))]
        p = softmax(logits(model, ((1 - strength) * x + strength * over).astype(np.float32)).astype(np.float64), axis=1)
        total -= np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0).sum(axis=1)
    return total / copies


def strip(data: Dataset, model: nn.Module, trusted: Dataset, *, false_alarms: float = 0.05, seed: int = 0) -> RowScores:
    """Flag rows whose entropy is below what `false_alarms` of the trusted rows show.

    Works on rows of a data set and on inputs met in use. It reads superimposed inputs, so triggers
    that a blend destroys (faint blends, warps) escape it.

    Source: Gao et al. 2019, arXiv:1902.06531.
    """
    clean = superimposed_entropy(trusted.x, model, trusted, seed=seed)
    entropy = superimposed_entropy(data.x, model, trusted, seed=seed + 1)
    limit = float(np.quantile(clean, false_alarms))
    reason = f"entropy of blends below {limit:.3f} nats, the {false_alarms:.0%} quantile of trusted rows"
    return RowScores("STRIP", -entropy, entropy < limit, reason)
