"""How far the deployed program's long sums can be off on one box, for the native engine.

The C++ passes know each sum's size and result, and charge what any order of its additions could lose with
partial sums that large. Here the terms of dense layers are looked at one by one; see `ordered_error`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from verifier.bounds.summation import ordered_error
from verifier.kernels.stages import StagePlan

#: Sums of fewer products lose little; stages that take more steps of the recursion are left alone.
LONG_SUM, MOST_STEPS = 16, 1 << 26


def long_sums(stages: Sequence[StagePlan]) -> dict[int, StagePlan]:
    """The dense stages, counted from 1, whose sums are long enough."""
    return {
        number: stage
        for number, stage in enumerate(stages, 1)
        if stage.unit == 2.0**-24 and stage.products >= LONG_SUM and [m.kind for m in stage.maps] == ["dense"]
    }


def limit_sums(core: Any, stages: Mapping[int, StagePlan]) -> None:
    """Give a box's compiled subdomains, bounded already, the limits of these stages' rounding."""
    for number, stage in stages.items():
        neurons = _moving(core.post_bounds(number))
        ends = core.post_bounds(stage.maps[0].source)
        # Adding an exact zero rounds nothing; but fused operations may have given such a product a constant.
        inputs = np.arange(ends[0].size) if stage.fused else _moving(ends)
        if len(neurons) == 0 or len(neurons) * len(inputs) ** 2 // 4 > MOST_STEPS:
            continue
        weights = np.asarray(stage.maps[0].matrix, dtype=np.float64)[np.ix_(neurons, inputs)]
        products = [weights * end[inputs] for end in ends]
        constant = np.maximum(np.abs(stage.bias), stage.bias_magnitude)[neurons]
        size = np.maximum(*np.abs(products)).sum(axis=1) + constant
        limits = np.full(stage.size, np.inf)
        limits[neurons] = ordered_error(
            np.minimum(*products),
            np.maximum(*products),
            constant,
            size * (1 + (len(inputs) + 2) * 2.0**-52),
            fused=stage.fused,
            unit=stage.unit,
        )
        core.limit_sums(number, limits)


def _moving(ends: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Neurons whose h, between these ends, is not identically 0."""
    return np.flatnonzero((ends[0] != 0) | (ends[1] != 0))
