"""A clause added to other rows, with multipliers: a Lagrangian over the points where it can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from verifier.bounds.interval import Enclosure
from verifier.bounds.network import Network
from verifier.bounds.rounding import gamma


@dataclass(frozen=True)
class ClauseRows:
    """A clause as constraints rows @ y <= limits, with multipliers in units of `scale`.

    rows: [1, S, N_out] in the engine's dtype; limits: float64 [S]; spread: about how far rows @ y vary;
    scale: [1, R, 1], for R rows that the constraints are added to.
    """

    network: Network
    rows: Tensor
    limits: Tensor
    spread: float
    scale: Tensor | float = 1.0

    def reach(self, box: Enclosure) -> Tensor:
        """At least sum_i |c_ki y_i| on the box, float64 [S]."""
        sizes = [box.magnitude(name).flatten(1) for name in self.network.graph.outputs]
        return (self.rows[0].abs().double() @ torch.cat(sizes, dim=1)[0].double()) * (1 + 2.0**-40)

    def added(self, start: Mapping[str, Tensor], multipliers: Tensor) -> dict[str, Tensor]:
        """Rows [1, R, *shape] over nodes plus the clause's, multipliers [1, R, S] times."""
        found = dict(start)
        for name, part in self.network.split_rows((multipliers * self.scale) @ self.rows).items():
            found[name] = found[name] + part if name in found else part
        return found

    def less(self, value: Tensor, multipliers: Tensor, box: Enclosure) -> Tensor:
        """Bounds of such rows -> bounds of the rows alone, float64 [1, R], rounded down.

        What was bounded has the products of multipliers and rows rounded, and their sums. A bound that
        is not finite says nothing: -inf.
        """
        m, count = (multipliers * self.scale).double(), self.rows.shape[1]
        sizes = sum(box.magnitude(name).double().sum() for name in self.network.graph.outputs)
        rounding = 2 * gamma(count + 2, self.network.own_unit) * self.reach(box) + 2.0**-48 * self.limits.abs()
        result = value - m @ self.limits - (m @ rounding) * (1 + 2.0**-40)
        result = result - 2.0**-50 * (value.abs() + m @ self.limits.abs()) - 4 * count * self.network.tiny * sizes
        return torch.where(torch.isfinite(result), result, -torch.inf)
