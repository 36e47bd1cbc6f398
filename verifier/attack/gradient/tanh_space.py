"""Unconstrained variables for a box: x = mid + half * tanh(w), the change of variables of C&W."""

from __future__ import annotations

import torch
from torch import Tensor

from verifier.attack.rows import Rows


class TanhSpace:
    """Maps w [R, *W] into the open box of some rows; features without a finite box stay as they are."""

    def __init__(self, rows: Rows):
        bounded = rows.lower.isfinite() & rows.upper.isfinite()
        zero = torch.zeros_like(rows.start)
        self.bounded, self.everywhere = bounded, bool(bounded.all())
        self.mid = torch.where(bounded, (rows.lower + rows.upper) / 2, zero)
        self.half = torch.where(bounded, (rows.upper - rows.lower) / 2, zero)

    def inside(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The point of the box for w, and its derivative there, elementwise."""
        flat = torch.tanh(w)
        point, slope = self.mid + self.half * flat, self.half * (1 - flat.square())
        if self.everywhere:
            return point, slope
        return torch.where(self.bounded, point, w), torch.where(self.bounded, slope, torch.ones_like(w))

    def variable(self, x: Tensor) -> Tensor:
        """A w whose point is close to x.

        Points on a face are pulled inside by half a percent of the box: nearer to it tanh is so
        flat that hundreds of steps go by before a black or white pixel moves (measured on digits).
        """
        safe = torch.where(self.half > 0, self.half, torch.ones_like(self.half))
        ratio = ((x - self.mid) / safe).clamp(-0.99, 0.99)
        return torch.where(self.bounded, torch.atanh(ratio), x)
