"""The two kinds of rule an operator can have; the tables in ops/table.py list who has which.

After lowering (ops/lowering.py) every node is linear, elementwise nonlinear, or a product, so a
bound engine needs three rules and no operator names. Rules are stateless singletons; the node
carries the attributes, `NodeTensors` their tensors on the engine's device.

Shape letters: B subdomains, S specification rows, M any leading rows (B*S flattened).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from verifier.graph.ir import Graph, Node


def may_hold(mask: Tensor) -> bool:
    """Whether the mask holds anywhere; on a GPU always True, because a look would wait for all work before it."""
    return mask.is_cuda or bool(mask.any())


@dataclass(frozen=True)
class Lines:
    """slope_lower * x + offset_lower <= f(x) <= slope_upper * x + offset_upper on [lower, upper]."""

    slope_lower: Tensor
    offset_lower: Tensor
    slope_upper: Tensor
    offset_upper: Tensor


class NodeTensors:
    """A node with its input shapes and its constant attributes as tensors of one dtype and device."""

    def __init__(self, graph: Graph, node: Node, dtype: torch.dtype, device: torch.device):
        self.node = node
        self.shape = node.shape
        self.input_shapes = tuple(graph[i].shape for i in node.inputs)
        self.dtype, self.device = dtype, device
        self._tensors: dict[str, Tensor] = {}
        self._derived: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Tensor:
        """Attribute `key` as a tensor; floating attributes take the engine's dtype, integer ones int64.

        "abs:weight" is the magnitude of `weight`; a missing bias_magnitude is the magnitude of the bias.
        """
        if key not in self._tensors:
            self._tensors[key] = self._make(key)
        return self._tensors[key]

    def _make(self, key: str) -> Tensor:
        if key.startswith("abs:"):
            return self[key[4:]].abs()
        if key == "bias_magnitude" and self.node.attrs.get(key) is None:
            return self["abs:shift"] if "shift" in self.node.attrs else self["abs:bias"]
        value = np.asarray(self.node.attrs[key])
        dtype = self.dtype if value.dtype.kind == "f" else torch.int64
        return torch.tensor(value, dtype=dtype, device=self.device)

    def once(self, key: str, make: Callable[[NodeTensors], Any]) -> Any:
        """make(self), computed at the first call for `key` and kept."""
        if key not in self._derived:
            self._derived[key] = make(self)
        return self._derived[key]

    @property
    def extra_roundings(self) -> int:
        """Roundings of the deployed program that were fused into this node."""
        return int(self.node.attrs.get("rounding_terms", 0))


class Linear(ABC):
    """y = sum_k T_k x_k + c: exact in bound propagation; its only error is rounding."""

    @abstractmethod
    def value(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        """y for inputs [B, *input_shape_k]; returns [B, *shape]."""

    @abstractmethod
    def magnitude(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        """sum_k |T_k| x_k for inputs >= 0, [B, *shape]; constants are left out."""

    @abstractmethod
    def transpose(self, at: NodeTensors, coeffs: Tensor) -> tuple[Tensor, ...]:
        """T_k^T coeffs for every input k; coeffs [M, *shape] -> [M, *input_shape_k]."""

    def constant(self, at: NodeTensors) -> Tensor | None:
        """c, broadcastable to `shape`, or None where it is zero."""
        return None

    def constant_magnitude(self, at: NodeTensors) -> Tensor | None:
        """At least the sum of |constant terms| before cancellation, or None where there are none."""
        return None

    def ends(
        self, at: NodeTensors, lows: Sequence[Tensor], highs: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]] | None:
        """Inputs that give the smallest and the largest y on a box, where that is a choice of ends.

        Intervals taken at the ends keep small ends small; a midpoint and a radius would lose them to
        rounding when the other end is huge. None: use midpoint and radius.
        """
        return None

    def keeps_sign(self, at: NodeTensors) -> bool:
        """True when inputs >= 0 give y >= 0 in floating point, too: sums and products of such numbers."""
        return False

    def summands(self, at: NodeTensors) -> int:
        """Most numbers summed for one result of `value`, as the deployed program does; 0 when data only moves."""
        return 0

    def carried(self, at: NodeTensors) -> int:
        """Most numbers summed for one result of `transpose`; 0 when data only moves."""
        return self.summands(at)

    def terms(self, at: NodeTensors) -> int:
        """Most numbers summed for one result, in `value` or in `transpose`; 0 when data only moves."""
        return max(self.summands(at), self.carried(at))


class Elementwise(ABC):
    """y_i = f(x_i), nonlinear.

    Every bound a rule returns is valid in exact arithmetic for the exact f: own rounding is rounded
    outward here. The rounding of the *deployed* f is `deployed_error`, which engines add.
    All methods broadcast: lower, upper and free parameters may have shapes [B, *shape],
    [B, S, *shape] or [K]; attributes that are arrays broadcast against the trailing `shape`
    (or are indexed with `at.take(...)` by the engine, which then passes flat rows of elements).
    """

    #: whether the lower / upper line has a free parameter in [0, 1] worth optimising
    free_lower: ClassVar[bool] = False
    free_upper: ClassVar[bool] = False
    #: True when f is piecewise linear with a single kink at 0, so that splitting there is exact
    kink_at_zero: ClassVar[bool] = False

    @abstractmethod
    def value(self, x: Tensor, node: Node) -> Tensor:
        """f(x), differentiable."""

    @abstractmethod
    def interval(self, lower: Tensor, upper: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """Smallest and largest f on [lower, upper], rounded outward; +-inf where unbounded or undefined."""

    @abstractmethod
    def lines(
        self,
        lower: Tensor,
        upper: Tensor,
        node: Node,
        free_lower: Tensor | None = None,
        free_upper: Tensor | None = None,
    ) -> Lines:
        """Linear enclosure on [lower, upper]; every choice of the free parameters in [0, 1] is sound.

        None stands for `start`. Differentiable in the free parameters. Degenerate intervals
        (lower == upper) give finite lines; infinite ends give slope 0 and the interval as offset.
        """

    def never_negative(self, node: Node) -> bool:
        """True when no program's rounding gives a negative result: squares, magnitudes, roots."""
        return False

    def start(self, lower: Tensor, upper: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """Good default free parameters (for the lower and the upper line)."""
        half = torch.full_like(lower, 0.5)
        return half, half

    def parallel(self, lower: Tensor, upper: Tensor, node: Node) -> tuple[Tensor, Tensor]:
        """Free parameters of lines that are nearest to each other at their farthest."""
        return self.start(lower, upper, node)

    def surrogate(self, x: Tensor, node: Node) -> Tensor:
        """f(x) with a gradient that an attack can follow; differs from f'(x) only where f' says nothing."""
        return self.value(x, node)

    def split_point(self, lower: Tensor, upper: Tensor, node: Node) -> Tensor:
        """Where to cut [lower, upper] in two so that both halves are relaxed well."""
        return 0.5 * (lower + upper)

    def exact_on(self, lower: Tensor, upper: Tensor, node: Node) -> Tensor:
        """Bool mask: f is linear on [lower, upper], so that `lines` is exact there."""
        return lower == upper

    def deployed_error(self, lower: Tensor, upper: Tensor, node: Node, unit_roundoff: float) -> Tensor:
        """At least |f_deployed(x) - f(x)| on [lower, upper] for arithmetic of the given unit round-off."""
        low, high = self.interval(lower, upper, node)
        return 4 * unit_roundoff * torch.maximum(low.abs(), high.abs())
