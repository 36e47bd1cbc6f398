"""One ONNX operation about to be lowered: its values and its attributes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from verifier.graph.lowering.values import Tracer, Value


@dataclass(frozen=True)
class Call:
    """Inputs (None where omitted), attributes, opset version and the names of the outputs wanted.

    An operator's required inputs are there in a legal file; that they are not is found when they
    are used, and the importer turns it into an error about the node. Hence `Any` and not `Value | None`.
    """

    op_type: str
    inputs: tuple[Any, ...]
    attrs: dict[str, Any]
    opset: int
    outputs: tuple[str, ...]

    def value(self, index: int) -> Any:
        """Input `index`, or None when it was omitted."""
        return self.inputs[index] if index < len(self.inputs) else None

    def attr(self, name: str, default: Any = None) -> Any:
        """Attribute `name`, or `default`."""
        value = self.attrs.get(name)
        return default if value is None else value

    def ints(self, t: Tracer, name: str, index: int) -> Any:
        """Integers given as attribute `name` (older opsets) or as constant input `index`; None without either."""
        value = self.value(index)
        if value is not None:
            return t.integers(value, name)
        given = self.attrs.get(name)
        return None if given is None else [int(v) for v in np.atleast_1d(given)]


Lowering = Callable[[Tracer, Call], "Value | tuple[Value, ...]"]

#: A function of values of any number, as the lowering modules have them.
Builder = Callable[..., Value]
