"""Every ONNX operator that can be read, and the function that lowers it."""

from __future__ import annotations

from verifier.graph.onnx import activation, arithmetic, constants, layout, linear, pooling, reduce
from verifier.graph.onnx.call import Lowering

LOWERINGS: dict[str, Lowering] = {
    **activation.TABLE,
    **arithmetic.TABLE,
    **constants.TABLE,
    **layout.TABLE,
    **linear.TABLE,
    **pooling.TABLE,
    **reduce.TABLE,
}
