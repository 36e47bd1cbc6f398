"""The kernel to copy (csrc/example_op): a normalisation layer on boxes. CONTRIBUTING.md walks through it.

Shape letters: B boxes, N features.
"""

from __future__ import annotations

from verifier.errors import ShapeError
from verifier.kernels.arrays import Array, Call


def scale_boxes(
    lower: Array, upper: Array, scale: Array, shift: Array, *, threads: int | None = None
) -> tuple[Array, Array]:
    """Enclosure of x * scale + shift over boxes, rounded outward.

    For every box b, x in [lower[b], upper[b]] and feature i, in real arithmetic:
        out_lower[b, i]  <=  x[i] * scale[i] + shift[i]  <=  out_upper[b, i].

    Args:
        lower, upper: [B, N], float32 or float64, NumPy or torch on any device.
        scale, shift: [N], of the same dtype, library and device.
        threads: on the CPU; None for all that this process may use.
    Returns:
        out_lower, out_upper [B, N]; (-inf, inf) where an end is NaN, infinite or beyond 1e30 (float64: 1e250).
    Raises:
        ShapeError: shapes, dtypes, libraries or devices do not fit.
        DeviceError: GPU arrays in a build without CUDA.
    """
    if lower.ndim != 2:
        raise ShapeError(f"scale_boxes: lower: expected [B, N], got {list(lower.shape)}")
    b, n = (int(d) for d in lower.shape)
    call = Call("scale_boxes", lower, threads)
    call.read("lower", lower, (b, n))
    call.read("upper", upper, (b, n))
    call.read("scale", scale, (n,))
    call.read("shift", shift, (n,))
    low, high = call.create("out_lower", (b, n)), call.create("out_upper", (b, n))
    call.launch(boxes=b, n=n)
    return low, high
