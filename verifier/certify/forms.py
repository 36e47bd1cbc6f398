"""From a proof's linear form to the largest radius it still proves, without another search."""

from __future__ import annotations

import numpy as np
import torch

from verifier.bounds.backward import LinearForm
from verifier.bounds.concretize import InputShape, concretize
from verifier.bounds.torch_engine import TorchEngine
from verifier.certify.threat import Nearness

#: Halvings of the interval in which the radius lies: relative accuracy 2^-14 of the form's own radius.
HALVINGS = 14


def radius_of_form(
    engine: TorchEngine, form: LinearForm, nearness: Nearness, center: np.ndarray, radius: float
) -> float:
    """The largest radius, up to `radius`, at which every row of the form is still positive.

    A form that holds on the ball of `radius` holds on every smaller one, and its minimum there is a
    closed expression; so each trial costs one pass over the coefficients.

    Args:
        form: rigorous, [B, S, N_in], valid on the ball of `radius` around `center`.
        center: float64 [N_in].
    Returns:
        A radius >= 0 at which the rigorous minimum of every row is > 0 (0 where not even the center is).
        For l0 a whole number of features.
    """

    def proved(r: float) -> bool:
        inputs = nearness.input_set(center, r)
        lower, upper = engine.boxes(inputs.lower[None], inputs.upper[None])
        b = form.coeffs.shape[0]
        value, _ = concretize(form, lower.expand(b, -1), upper.expand(b, -1), InputShape.of(inputs, engine.device))
        return bool((value > 0).all())

    with torch.no_grad():
        if proved(radius):
            return radius
        low, high = 0.0, radius
        if nearness.norm == 0:
            while high - low > 1:
                middle = float((low + high) // 2)
                low, high = (middle, high) if proved(middle) else (low, middle)
            return low
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if proved(middle) else (low, middle)
        return low
