"""One ONNX operation about to be lowered: its values and its attributes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from verifier.graph.lowering.values import Tracer, Value


@dataclass(frozen=True)
class Call:
    """Inputs (None where omitted), attributes, opset version and the number of outputs wanted."""

    op_type: str
    inputs: tuple[Value | None, ...]
    attrs: dict[str, Any]
    opset: int
    outputs: tuple[str, ...]

    def value(self, index: int) -> Value | None:
        """Input `index`, or None when it was omitted."""
        return self.inputs[index] if index < len(self.inputs) else None

    def attr(self, name: str, default: Any = None) -> Any:
        """Attribute `name`, or `default`."""
        value = self.attrs.get(name)
        return default if value is None else value

    def ints(self, t: Tracer, name: str, index: int) -> list[int] | None:
        """Integers given as attribute `name` (older opsets) or as constant input `index`."""
        value = self.value(index)
        if value is not None:
            return t.integers(value, name)
        given = self.attrs.get(name)
        return None if given is None else [int(v) for v in np.atleast_1d(given)]


Lowering = Callable[[Tracer, Call], "Value | tuple[Value, ...]"]
