"""How samples and images lie in a network's flat input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from verifier.errors import ShapeError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Placing:
    """How an image lies in the network's input: (C, H, W), or (H, W, C) where `channels_last`."""

    shape: tuple[int, int, int]
    channels_last: bool = False

    def flat(self, image: np.ndarray) -> np.ndarray:
        """[C, H, W] as the network's flat input [N_in]."""
        return (image.transpose(1, 2, 0) if self.channels_last else image).reshape(-1)

    def image(self, flat: np.ndarray) -> np.ndarray:
        """The inverse of `flat`."""
        c, h, w = self.shape
        return flat.reshape(h, w, c).transpose(2, 0, 1) if self.channels_last else flat.reshape(c, h, w)


def channels_come_last(sample: Shape, shapes: Sequence[Shape]) -> bool:
    """True when a network whose inputs have these shapes takes samples [C, H, W] as [H, W, C]."""
    if len(shapes) != 1 or len(sample) != 3:
        return False
    inner = tuple(d for d in shapes[0] if d != 1)
    return inner == (*sample[1:], sample[0]) and inner != sample


def arrange(x: np.ndarray, shapes: Sequence[Shape]) -> np.ndarray:
    """Samples [n, ...] as flat network inputs [n, N_in], channels moved last where the network has them last.

    Raises:
        ShapeError: the sizes differ; says both shapes.
    """
    wanted = sum(int(np.prod(shape)) for shape in shapes)
    if int(np.prod(x.shape[1:])) != wanted:
        names = " and ".join(str(list(shape)) for shape in shapes)
        raise ShapeError(
            f"data: a sample is {list(x.shape[1:])}, {int(np.prod(x.shape[1:]))} numbers, but the network's input "
            f"is {names}, {wanted} numbers; give the data set that the network was made for, in its input units"
        )
    if channels_come_last(tuple(x.shape[1:]), shapes):
        x = x.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(x).reshape(len(x), -1)
