"""Elementwise functions of one value."""

from __future__ import annotations

from typing import Any

import numpy as np

from verifier.graph.elementwise import ELEMENTWISE
from verifier.graph.lowering.values import Ref, Tracer, Value


def unary(t: Tracer, op: str, x: Value, **attrs: Any) -> Value:
    """A unary operator of the grammar; a constant is evaluated in its own precision."""
    if isinstance(x, Ref):
        return t.emit(op, (x,), x.shape, "float32" if x.dtype == "bool" else x.dtype, **attrs)
    dtype = x.dtype if x.dtype.kind in "fi" else np.dtype("float32")
    with np.errstate(all="ignore"):
        return np.asarray(ELEMENTWISE[op](x, attrs)).astype(dtype, copy=False)
