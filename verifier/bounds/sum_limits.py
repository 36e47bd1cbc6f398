"""How far the deployed program's long sums can be off on one box, for the native engine.

The C++ passes know each sum's size and result, and charge what any order of its additions could lose with
partial sums that large. Here the terms of dense layers are looked at one by one; see `ordered_error`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from verifier.bounds.summation import ordered_error
from verifier.kernels.stages import StagePlan

#: Sums of fewer products lose little; stages that take more steps of the recursion are left alone.
LONG_SUM, MOST_STEPS = 16, 1 << 26


def limit_sums(core: Any, stages: Sequence[StagePlan]) -> None:
    """Give a box's compiled subdomains, bounded already, the limits of their dense stages' rounding."""
    for number, stage in enumerate(stages, 1):
        if stage.unit != 2.0**-24 or stage.products < LONG_SUM or [m.kind for m in stage.maps] != ["dense"]:
            continue
        neurons = _moving(core, number)
        # Adding an exact zero rounds nothing; but fused operations may have given such a product a constant.
        inputs = np.arange(core.post_bounds(stage.maps[0].source)[0].size)
        if not stage.fused:
            inputs = _moving(core, stage.maps[0].source)
        if len(neurons) == 0 or len(neurons) * len(inputs) ** 2 // 4 > MOST_STEPS:
            continue
        weights = np.asarray(stage.maps[0].matrix, dtype=np.float64)[np.ix_(neurons, inputs)]
        ends = [weights * end[inputs] for end in core.post_bounds(stage.maps[0].source)]
        constant = np.maximum(np.abs(stage.bias), stage.bias_magnitude)[neurons]
        size = np.maximum(*np.abs(ends)).sum(axis=1) + constant
        limits = np.full(stage.size, np.inf)
        limits[neurons] = ordered_error(
            np.minimum(*ends),
            np.maximum(*ends),
            constant,
            size * (1 + (len(inputs) + 2) * 2.0**-52),
            fused=stage.fused,
            unit=stage.unit,
        )
        core.limit_sums(number, limits)


def _moving(core: Any, stage: int) -> np.ndarray:
    """Neurons of a stage, 0 for the input, whose h is not identically 0."""
    low, high = core.post_bounds(stage)
    return np.flatnonzero((low != 0) | (high != 0))
