"""Windows and mass patterns on an image grid, for the square attack."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from verifier.attack.projections import along, norm
from verifier.attack.rows import Rows
from verifier.attack.task import Task
from verifier.errors import ShapeError


class Grid:
    """How one sample's features lie on C x H x W; inputs without such axes are one row of pixels.

    Raises:
        ShapeError: image_shape does not hold the number of features.
    """

    def __init__(self, shape: tuple[int, ...], image_shape: tuple[int, ...] | None):
        size = math.prod(shape)
        if image_shape is None:
            axes = [*shape] if len(shape) in (2, 3) else [size]
            image_shape = tuple([1, 1, *axes][-3:])
        if math.prod(image_shape) != size:
            raise ShapeError(f"image_shape: expected {size} features, got {list(image_shape)}")
        self.shape = tuple(shape)
        self._windows: dict[tuple[int, int], Tensor] = {}
        self.channels, self.height, self.width = image_shape

    def image(self, work: Tensor) -> Tensor:
        """work [R, *S] as [R, C, H, W]."""
        return work.reshape(-1, self.channels, self.height, self.width)

    def flat(self, image: Tensor) -> Tensor:
        """[R, C, H, W] as [R, *S]."""
        return image.reshape(-1, *self.shape)

    def sides(self, share: float) -> tuple[int, int]:
        """Height and width of a square covering `share` of the image; a segment on one row."""
        if self.height == 1:
            return 1, max(1, min(self.width, round(share * self.width)))
        side = max(1, round(math.sqrt(share * self.height * self.width)))
        return min(side, self.height - 1), min(side, max(1, self.width - 1))

    def corner(self, task: Task, count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Random top-left corners of windows that fit, two int64 [R]."""
        return task.integers(self.height - height + 1, count), task.integers(self.width - width + 1, count)

    def features(self, task: Task, count: int, height: int, width: int) -> Tensor:
        """Random windows as the flat features that they hold, int64 [R, C, h * w]."""
        down, across = self.corner(task, count, height, width)
        first = self._windows.get((height, width))
        if first is None:
            grid = torch.arange(self.channels * self.height * self.width, device=down.device)
            first = grid.reshape(self.channels, self.height, self.width)[:, :height, :width].flatten(1)
            self._windows[height, width] = first
        return (down * self.width + across)[:, None, None] + first

    def mask(self, corner: tuple[Tensor, Tensor], height: int, width: int) -> Tensor:
        """Windows at given corners as bool [R, 1, H, W]."""
        down, across = self._offsets(corner)
        inside_h, inside_w = (down >= 0) & (down < height), (across >= 0) & (across < width)
        return (inside_h[:, :, None] & inside_w[:, None, :])[:, None]

    def place(self, pattern: Tensor, corner: tuple[Tensor, Tensor]) -> Tensor:
        """pattern [h, w] put at corners, zero elsewhere: [R, 1, H, W]."""
        height, width = pattern.shape
        down, across = self._offsets(corner)
        values = pattern[down.clamp(0, height - 1)[:, :, None], across.clamp(0, width - 1)[:, None, :]]
        return values[:, None] * self.mask(corner, height, width)

    def _offsets(self, corner: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        down = torch.arange(self.height, device=corner[0].device)[None] - corner[0][:, None]
        return down, torch.arange(self.width, device=corner[0].device)[None] - corner[1][:, None]


@lru_cache(maxsize=256)
def _two_bumps(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    like = torch.empty(0, dtype=dtype, device=device)
    if width < 2:
        pattern = bump(height, width, like)
    else:
        left = width // 2
        pattern = torch.cat([bump(height, left, like), -bump(height, width - left, like)], dim=1)
    return pattern / pattern.norm().clamp_min(1e-12)


def bump(height: int, width: int, like: Tensor) -> Tensor:
    """A mass concentrated at the centre, [h, w]: the ring at depth m holds sum_{k<=m} 1/(n+1-k)^2.

    Source: Andriushchenko et al. 2020, arXiv:1912.00049, eq. 2.
    """

    def depth(length: int) -> Tensor:
        at = torch.arange(length, device=like.device)
        return torch.minimum(at, length - 1 - at)

    rings = torch.minimum(depth(height)[:, None], depth(width)[None])
    n = int(rings.max())
    sums = torch.cumsum(1.0 / (n + 1 - torch.arange(n + 1, device=like.device, dtype=like.dtype)).square(), 0)
    return sums[rings]


def two_bumps(height: int, width: int, like: Tensor) -> Tensor:
    """A positive bump beside a negative one, of l2 norm 1, [h, w]; not to be written to."""
    return _two_bumps(height, width, like.dtype, like.device)


def sparse_start(rows: Rows, grid: Grid) -> Tensor:
    """A grid of about 5 x 5 tiles of two bumps with random signs, scaled to the budget, [R, *S]."""
    task, count = rows.task, len(rows)
    tile_h, tile_w = max(1, grid.height // 5), max(1, grid.width // 5)
    delta = torch.zeros(count, grid.channels, grid.height, grid.width, device=rows.start.device, dtype=rows.start.dtype)
    pattern = two_bumps(tile_h, tile_w, rows.start)
    for top in range(0, grid.height - tile_h + 1, tile_h):
        for left in range(0, grid.width - tile_w + 1, tile_w):
            sign = task.signs(count, grid.channels, 1, 1)
            delta[:, :, top : top + tile_h, left : left + tile_w] += pattern * sign
    return rows.start + _to_budget(rows, grid.flat(delta))


def sparse_proposal(rows: Rows, grid: Grid, best: Tensor, share: float) -> Tensor:
    """Move the mass of one window, and what the budget leaves, into bumps in another, [R, *S].

    Source: Andriushchenko et al. 2020, algorithm 3 (l2); the same with l1 sizes for l1.
    """
    task, p, count = rows.task, rows.p, len(rows)
    delta = grid.image(best - rows.start)
    height, width = (
        max(3, s) if limit > 3 else s for s, limit in zip(grid.sides(share), (grid.height, grid.width), strict=True)
    )
    into, out = (grid.corner(task, count, height, width) for _ in range(2))
    into_mask, out_mask = grid.mask(into, height, width), grid.mask(out, height, width)
    both = delta * (into_mask | out_mask)
    power = 2.0 if p == 2 else 1.0

    def mass(part: Tensor) -> Tensor:
        return part.abs().pow(power).sum((2, 3), keepdim=True)

    unused = (along(rows.eps, delta).pow(power) - mass(delta).sum(1, keepdim=True)).clamp_min(0) / grid.channels
    available = (mass(both) + unused).pow(1 / power)
    pattern = two_bumps(height, width, delta)
    flipped = two_bumps(width, height, delta).T
    turn = along(task.uniform(count) < 0.5, delta)
    fresh = torch.where(turn, grid.place(pattern, into), grid.place(flipped.contiguous(), into))
    fresh = fresh * task.signs(count, grid.channels, 1, 1)
    old = delta * into_mask
    mixed = fresh / mass(fresh).pow(1 / power).clamp_min(1e-12) + old / mass(old).pow(1 / power).clamp_min(1e-12)
    mixed = mixed / mass(mixed).pow(1 / power).clamp_min(1e-12) * available
    moved = torch.where(into_mask, mixed, torch.where(out_mask, torch.zeros_like(delta), delta))
    return rows.start + _to_budget(rows, grid.flat(moved))


def _to_budget(rows: Rows, delta: Tensor) -> Tensor:
    return delta * along(rows.eps / norm(delta, rows.p).clamp_min(1e-12), delta)
