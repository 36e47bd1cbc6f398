"""Expectation over transformations: a model that averages its scores over random views of an input."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from verifier.attack.model import Access, Model
from verifier.errors import SpecError

Transformation = Callable[[Tensor, torch.Generator], Tensor]


class ExpectationModel(Model):
    """A Model whose scores are the mean log-probabilities over `samples` random transformations.

    Any attack run on it is that attack under EOT; each row counts `samples` queries.

    Args:
        model: the victim; it must give scores.
        transformations: differentiable maps (inputs [R, *S], generator) -> inputs; one is drawn
            per evaluation.
        fixed: draw the same transformations for every evaluation, so that the model is a function
            (re-prediction then agrees with what the attack saw).
    Source: Athalye et al. 2018, arXiv:1707.07397.
    """

    def __init__(
        self, model: Model, transformations: Sequence[Transformation], *, samples: int, seed: int, fixed: bool = True
    ):
        if not transformations or samples < 1:
            raise SpecError("expectation: expected at least one transformation and one sample")
        if model.access < Access.SCORES:
            raise SpecError("expectation: needs the victim's scores")
        super().__init__(model.forward, access=model.access, preprocess=model.preprocess, module=model.module)
        self.inner, self.transformations, self.samples = model, tuple(transformations), samples
        self.seed, self.fixed, self.calls = seed, fixed, 0
        self.dtype, self.device, self.vectorised = model.dtype, model.device, model.vectorised
        self.evaluations_per_row = samples * model.evaluations_per_row
        self.source = f"expectation of {model.source}"

    def scores(self, x: Tensor) -> Tensor:
        """Mean log-probabilities [R, K]."""
        generator = torch.Generator(device=x.device).manual_seed(self.seed + self.calls)
        self.calls += 0 if self.fixed else 1
        parts = []
        for _ in range(self.samples):
            pick = int(torch.randint(len(self.transformations), (1,), generator=generator, device=x.device))
            parts.append(self.inner.scores(self.transformations[pick](x, generator)).log_softmax(1))
        return torch.stack(parts).mean(0)


def gaussian_noise(sigma: float) -> Transformation:
    """x + sigma * n, the same n for every row of a batch: a row's scores do not depend on its company."""

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:
        return x + sigma * torch.randn(x.shape[1:], generator=generator, device=x.device, dtype=x.dtype)

    return transform


def random_shift(pixels: int) -> Transformation:
    """Images [R, C, H, W] moved by up to `pixels` in each direction, edges repeated."""

    def transform(x: Tensor, generator: torch.Generator) -> Tensor:
        down, across = torch.randint(-pixels, pixels + 1, (2,), generator=generator, device=x.device).tolist()
        rows = (torch.arange(x.shape[2], device=x.device) + down).clamp(0, x.shape[2] - 1)
        columns = (torch.arange(x.shape[3], device=x.device) + across).clamp(0, x.shape[3] - 1)
        return x[:, :, rows][:, :, :, columns]

    return transform
