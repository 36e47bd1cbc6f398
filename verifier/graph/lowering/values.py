"""Values during import: constants and references, and the tracer that appends nodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from verifier.errors import UnsupportedOperator
from verifier.graph.ir import GraphBuilder


@dataclass(frozen=True)
class Ref:
    """The result of a graph node, as an importer sees it.

    Attributes:
        name: the node's name.
        shape: its static shape.
        dtype: "float32", "float64" or "bool"; a bool is a node whose values are 0.0 or 1.0.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of scalars."""
        return int(np.prod(self.shape, dtype=np.int64))


#: `np.ndarray | Ref`. Which of the two follows from tests on several values at once (`is_constant`),
#: from swapping operands, and from "a Ref in gives a Ref out": more than a type checker can follow.
Value = Any

# What a helper may consist of and a program would round.
_ROUNDED = ("Scale", "Add", "Sub", "Mul", "ReduceSum")


@dataclass
class Tracer:
    """Appends nodes for one network; `stem` names the nodes of the operation being lowered.

    `narrowed` is set once a float64 variable was cast to float32: the program then rounds to float32.
    """

    builder: GraphBuilder = field(default_factory=GraphBuilder)
    stem: str = "value"
    operator: str = "?"
    narrowed: bool = False
    _helpers: bool = False

    @contextmanager
    def helpers(self) -> Iterator[None]:
        """Nodes appended inside stand for work the deployed program does without rounding.

        A maximum, say, is exact when deployed, while y + relu(x - y) has a difference and a sum.
        """
        before, self._helpers = self._helpers, True
        try:
            yield
        finally:
            self._helpers = before

    def emit(
        self, op: str, inputs: tuple[Ref, ...], shape: tuple[int, ...], dtype: str | None = None, **attrs: Any
    ) -> Ref:
        """Append a node; its dtype is the first input's unless given."""
        shape = tuple(int(d) for d in shape)
        if self._helpers and op in _ROUNDED:
            attrs["deployed_error"] = 0.0
        name = self.builder.add(op, tuple(i.name for i in inputs), shape, self.stem, **attrs)
        return Ref(name, shape, dtype or (inputs[0].dtype if inputs else "float32"))

    def ref(self, value: Value, dtype: str = "float32") -> Ref:
        """The value as a node: a constant becomes a Constant node in floating point."""
        if isinstance(value, Ref):
            return value
        kind = "bool" if value.dtype == np.bool_ else str(value.dtype) if value.dtype.kind == "f" else dtype
        array = np.asarray(value, dtype=np.float32 if kind == "bool" else kind)
        return self.emit("Constant", (), array.shape, kind, value=array)

    def unsupported(self, detail: str) -> UnsupportedOperator:
        """The error for the operation being lowered; the caller raises it."""
        return UnsupportedOperator(self.operator, self.stem, detail)

    def constant(self, value: Value, what: str) -> np.ndarray:
        """`value` as an array, or the error that `what` must not depend on the network's input."""
        if isinstance(value, Ref):
            raise self.unsupported(f"{what} must be a constant, and it depends on the network's input")
        return value

    def integers(self, value: Value, what: str) -> list[int]:
        """`value` as a flat list of ints."""
        return [int(v) for v in self.constant(value, what).reshape(-1)]


def is_constant(*values: Value | None) -> bool:
    """True when no value refers to a node."""
    return not any(isinstance(v, Ref) for v in values)


def float_dtype(*values: Value) -> str:
    """The floating dtype of the first Ref, else of the first float array, else float32."""
    for value in values:
        if isinstance(value, Ref) and value.dtype != "bool":
            return value.dtype
    for value in values:
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            return str(value.dtype)
    return "float32"
