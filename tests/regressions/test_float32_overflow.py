"""A float64 engine must not prove what the float32 program answers with inf - inf."""

import numpy as np
import pytest

from verifier.bounds.torch_engine import TorchEngine
from verifier.graph.ir import GraphBuilder
from verifier.outcome import Soundness


def overflowing(scale):
    """y = (x * scale) - (x * scale) summed by one Dense: 0 in real arithmetic, NaN where float32 overflows."""
    b = GraphBuilder()
    x = b.add("Input", (), (1, 1), "x")
    wide = b.add("Dense", (x,), (1, 2), "wide", weight=np.float32([[scale, scale]]), bias=np.zeros(2, np.float32))
    wide = b.add("Relu", (wide,), (1, 2), "relu")
    out = b.add("Dense", (wide,), (1, 1), "out", weight=np.float32([[1], [-1]]), bias=np.float32([1]))
    return b.finish(("x",), (out,))


@pytest.mark.parametrize(("scale", "proved"), [(1.0, True), (3e38, False)])
def test_overflow_is_never_proved(scale, proved):
    engine = TorchEngine(overflowing(scale))
    bounds = engine.bound_boxes(np.array([[2.0]]), np.array([[2.0]]), np.array([[1.0]]))
    assert bool(bounds.lower[0, 0] > 0) is proved


def test_real_arithmetic_has_no_largest_number():
    engine = TorchEngine(overflowing(1e30), soundness=Soundness.REAL_ARITHMETIC)
    bounds = engine.bound_boxes(np.array([[2.0]]), np.array([[2.0]]), np.array([[1.0]]))
    assert np.isfinite(bounds.lower[0, 0])
