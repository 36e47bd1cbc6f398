"""Repair by fine-tuning under random boxes: no patch decides any more, known or not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.data import Dataset
from verifier.errors import SpecError
from verifier.training.repair.tuning import FINE_TUNE
from verifier.training.train import Progress, Recipe, train

#: Shifts keep the accuracy, the large step forgets.
ERASING = replace(FINE_TUNE, epochs=120, learning_rate=1e-2, shift=1)


def tune_under_boxes(
    model: nn.Module, clean: Dataset, recipe: Recipe = ERASING, progress: Progress | None = None
) -> nn.Module:
    """A copy trained on with trusted images only, a box of each covered by noise in every step.

    The noise plays every patch, also the trigger's, and the label stays; needs no reversed trigger.
    Triggers spread over the whole image are not like boxes and may survive.

    Raises:
        SpecError: not images.
    Source: Zhong et al. 2020 (random erasing), arXiv:1708.04896; augmentation against backdoors:
        Borgnia et al. 2021, arXiv:2011.09527.
    """
    if clean.kind != "image":
        raise SpecError(f"random boxes: need images, got {clean.kind}; take another repair")
    ends = [torch.tensor(np.broadcast_to(end, clean.shape).copy(), device=recipe.device) for end in clean.valid]

    def loss(net: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return functional.cross_entropy(net(covered(x, (ends[0], ends[1]), generator)), y)

    return train(model, clean, recipe, loss=loss, progress=progress).model


def covered(x: Tensor, ends: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
    """Images [n, C, H, W], each with one box of up to half the height and width filled with noise.

    Every second image gets noise of the range's two ends alone, as high-contrast patches have.

    Args:
        ends: lower and upper end of the valid range, [C, H, W].
    """
    n, _, height, width = x.shape
    noise = torch.rand(x.shape, generator=generator)
    noise[::2] = noise[::2].round()
    inside = (_spans(n, height, generator)[:, :, None] & _spans(n, width, generator)[:, None, :])[:, None]
    return torch.where(inside.to(x.device), ends[0] + (ends[1] - ends[0]) * noise.to(x.device), x)


def _spans(n: int, length: int, generator: torch.Generator) -> Tensor:
    """bool [n, length]: a run of 1 to length / 2 places, anywhere."""
    size = torch.randint(1, max(length // 2, 1) + 1, (n, 1), generator=generator)
    first = (torch.rand((n, 1), generator=generator) * (length - size + 1)).long()
    place = torch.arange(length)
    return (place >= first) & (place < first + size)
