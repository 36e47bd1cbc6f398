"""One ATen operation about to be lowered: its arguments by name, defaults filled in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from verifier.graph.lowering.values import Ref, Tracer, Value


@dataclass(frozen=True)
class Call:
    """An operator such as `aten::conv2d`, its overload ("padding", "" for the default) and arguments."""

    name: str
    overload: str
    args: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Argument `name`; `default` where it is absent or None."""
        value = self.args.get(name)
        return default if value is None else value

    def number(self, name: str, default: float) -> float:
        """A float argument."""
        value = self.get(name, default)
        return float(value.reshape(-1)[0]) if isinstance(value, np.ndarray) else float(value)

    def operand(self, name: str, like: Value | None = None) -> Value:
        """A tensor argument; a Python number becomes a constant of `like`'s precision."""
        value = self.args[name]
        if isinstance(value, (Ref, np.ndarray)):
            return value
        dtype = "float32" if like is None or str(like.dtype) == "bool" else str(like.dtype)
        return np.asarray(value, dtype=dtype)


Lowering = Callable[[Tracer, Call], Any]


def spread(value: Any, count: int) -> tuple[int, ...]:
    """`count` integers from one integer or a list of one or `count`."""
    values = [int(v) for v in (value if isinstance(value, (list, tuple)) else [value])]
    return tuple(values * count) if len(values) == 1 else tuple(values)
