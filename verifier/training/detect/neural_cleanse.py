"""Neural Cleanse: reverse the smallest trigger towards each class and look for one that is far too small."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.data import Dataset
from verifier.errors import SpecError
from verifier.training.backdoor.trigger import Patch
from verifier.training.detect.anomaly import FEW, Outliers, anomaly_indices
from verifier.training.detect.masked import Descent, Pattern, step_down
from verifier.training.predict import device_of, frozen
from verifier.training.train import Progress


@dataclass(frozen=True)
class Cleanse(Descent):
    """Settings of the search, beside those of every descent.

    Attributes:
        rows: clean rows used a step, all of them if fewer.
        success: fraction of rows a mask must send to the class to count.
        patience: steps between changes of the mask's weight.
        threshold: anomaly index above which a class is flagged.
        ratio: with fewer than five classes, where the index means little: a class is flagged
            when its mask is smaller than this fraction of the median of the others.
    """

    rows: int = 64
    success: float = 0.99
    patience: int = 5
    threshold: float = 2.0
    ratio: float = 0.35


@dataclass(frozen=True)
class CleanseResult:
    """Evidence, one entry a class.

    Attributes:
        masks, patterns: float32 [C, *mask shape] and [C, *shape]; a class no mask reaches keeps its last one.
        norms: sum of the mask's values, float64 [C].
        reached: fraction of rows sent to the class, float64 [C].
        indices: anomaly index of the norm, negative for small masks, float64 [C].
        flagged: classes with a suspiciously small mask, smallest first.
        rule: how they were flagged, in words.
    """

    masks: np.ndarray
    patterns: np.ndarray
    norms: np.ndarray
    reached: np.ndarray
    indices: np.ndarray
    flagged: tuple[int, ...]
    rule: str

    def trigger(self, label: int) -> Patch:
        """The reversed trigger of a class."""
        return Patch(self.masks[label], self.patterns[label])


def neural_cleanse(
    model: nn.Module, clean: Dataset, settings: Cleanse | None = None, progress: Progress | None = None
) -> CleanseResult:
    """For every class minimise CE(f((1 - m) x + m pattern), class) + weight |m|_1 and compare the masks.

    One mask for all channels of an image, one for each value otherwise. The weight grows while
    the success stays above `success` and shrinks while it is below. All classes run together.

    Args:
        clean: trusted rows in the model's units, at least one outside each class.
    Raises:
        SpecError: an infinite valid range, or rows of one class only.
    Source: Wang et al. 2019 (S&P).
    """
    settings = settings or Cleanse()
    if not all(np.all(np.isfinite(end)) for end in clean.valid):
        raise SpecError("neural cleanse: needs a finite valid range for the pattern; set the data set's `valid`")
    if len(np.unique(clean.y)) < 2:
        raise SpecError("neural cleanse: needs clean rows of at least two classes")
    with frozen(model):
        search = _Search(model, clean, settings)
        for step in range(settings.steps):
            search.step()
            if progress is not None and step % 20 == 19:
                progress((step + 1) / settings.steps, f"smallest mask {float(search.best_norm.min()):.2f}")
    return _judged(search, settings)


class _Search:
    """State of the joint optimisation of all classes."""

    def __init__(self, model: nn.Module, clean: Dataset, settings: Cleanse):
        self.model, self.settings, self.device = model, settings, device_of(model)
        self.classes = len(clean.classes)
        self.x, self.y = (torch.tensor(part, device=self.device) for part in (clean.x, clean.y))
        self.generator = torch.Generator().manual_seed(settings.seed)
        mask_shape = (1, *clean.shape[1:]) if clean.kind == "image" else clean.shape
        self.free = [self._start(mask_shape, -1.0), self._start(clean.shape, 0.0)]
        self.pattern = Pattern(clean.valid, clean.shape, self.device)
        self.optimizer = torch.optim.Adam(self.free, settings.learning_rate, betas=(0.5, 0.9))
        self.weight = torch.full((self.classes,), 1e-2, device=self.device)
        self.streak = torch.zeros(self.classes, device=self.device)
        self.best_norm = torch.full((self.classes,), float("inf"), device=self.device)
        self.best_mask, self.best_pattern = (part.detach().clone() for part in self.pattern.read(*self.free))
        self.reached = torch.zeros(self.classes, device=self.device)

    def _start(self, shape: tuple[int, ...], mean: float) -> Tensor:
        noise = 0.1 * torch.randn((self.classes, *shape), generator=self.generator)
        return (mean + noise).to(self.device).requires_grad_(True)

    def step(self) -> None:
        """One step of every class on its own batch of rows of other classes."""
        x, own = self._batch()
        mask, pattern = self.pattern.read(*self.free)
        shown = x * (1 - mask[:, None]) + pattern[:, None] * mask[:, None]
        out = self.model(shown.flatten(0, 1)).reshape(*x.shape[:2], -1)
        wanted = torch.arange(self.classes, device=self.device)[:, None].expand(x.shape[:2])
        losses = functional.cross_entropy(out.permute(0, 2, 1), wanted, reduction="none")
        norms = mask.flatten(1).sum(dim=1)
        counts = own.sum(dim=1).clamp(min=1)
        total = ((losses * own).sum(dim=1) / counts + self.weight * norms).sum()
        hits = ((out.argmax(dim=2) == wanted) * own).sum(dim=1) / counts
        self._remember(hits, norms.detach(), mask.detach(), pattern.detach())
        step_down(self.optimizer, self.free, total)

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Rows [C, n, *shape] and whether each is outside its class, [C, n]; the same rows for all classes."""
        n = min(self.settings.rows, len(self.x))
        chosen = torch.randperm(len(self.x), generator=self.generator)[:n].to(self.device)
        own = self.y[chosen][None] != torch.arange(self.classes, device=self.device)[:, None]
        return self.x[chosen][None].expand(self.classes, *[-1] * self.x.ndim), own.float()

    def _remember(self, hits: Tensor, norms: Tensor, mask: Tensor, pattern: Tensor) -> None:
        good = hits >= self.settings.success
        better = (good & (norms < self.best_norm)) | (torch.isinf(self.best_norm) & ~good)
        self.best_mask[better], self.best_pattern[better] = mask[better], pattern[better]
        self.reached = torch.where(better, hits, self.reached)
        self.best_norm = torch.where(good & (norms < self.best_norm), norms, self.best_norm)
        self.streak = torch.where(good, self.streak.clamp(min=0) + 1, self.streak.clamp(max=0) - 1)
        rise, fall = self.streak >= self.settings.patience, self.streak <= -self.settings.patience
        self.weight = torch.where(rise, self.weight * 1.5, torch.where(fall, self.weight / 1.5**1.5, self.weight))
        self.weight = self.weight.clamp(1e-5, 1e3)
        self.streak = torch.where(rise | fall, torch.zeros_like(self.streak), self.streak)


def _judged(search: _Search, settings: Cleanse) -> CleanseResult:
    norms = search.best_mask.flatten(1).sum(dim=1).double().cpu().numpy()
    indices = anomaly_indices(norms)
    flagged, rule = flag_small(norms, settings)
    return CleanseResult(
        masks=search.best_mask.cpu().numpy(),
        patterns=search.best_pattern.cpu().numpy(),
        norms=norms,
        reached=search.reached.double().cpu().numpy(),
        indices=indices,
        flagged=flagged,
        rule=rule,
    )


def flag_small(norms: np.ndarray, settings: Cleanse) -> tuple[tuple[int, ...], str]:
    """Classes whose mask is an outlier on the small side, smallest first, and the rule in words."""
    rule = Outliers(settings.threshold, settings.ratio)
    few = len(norms) < FEW
    said = (
        f"mask below {settings.ratio:g} of the others' median (too few classes for an index)"
        if few
        else (f"anomaly index of the mask size above {settings.threshold:g} on the small side")
    )
    small = rule.small(norms)
    return tuple(int(k) for k in np.argsort(norms, kind="stable") if small[k]), said
