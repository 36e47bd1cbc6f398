"""TrojanNet detectors: one sample a class (DL-TND), or no data at all (DF-TND)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from verifier.data import Dataset
from verifier.errors import SpecError
from verifier.training.detect.masked import Descent, Pattern, lay_over, step_down
from verifier.training.predict import device_of, features_of, frozen
from verifier.training.train import Progress


@dataclass(frozen=True)
class LimitedData(Descent):
    """Settings of DL-TND, beside those of every descent (`steps` for each of both perturbations).

    Attributes:
        sparsity: weight of |mask|_1.
        margin: logit margin beyond which an attack gains nothing.
        threshold: median cosine above which a class may be flagged.
        ratio: its universal mask must also be below this share of the next smallest class's mask,
            see `limited_data`. Set on three backdoored and three clean digit classifiers, whose
            shares were 0.60 to 0.64 and 0.82 to 0.89.
    """

    sparsity: float = 0.05
    margin: float = 1.0
    threshold: float = 0.9
    ratio: float = 0.72


@dataclass(frozen=True)
class LimitedDataResult:
    """Evidence of DL-TND, one entry a class.

    Attributes:
        similarity: median over the samples of the cosine between the features under the
            universal and under the per-image perturbation, float64 [C].
        sizes: sum of the universal mask's values, float64 [C].
        flagged: the suspected class, if any.
    """

    similarity: np.ndarray
    sizes: np.ndarray
    flagged: tuple[int, ...]


def limited_data(
    model: nn.Module, clean: Dataset, settings: LimitedData | None = None, progress: Progress | None = None
) -> LimitedDataResult:
    """DL-TND: a backdoor is a shortcut that the universal and the per-image attack both find.

    For each class k: the universal perturbation makes the samples of all other classes leave their
    own class, while the sample of k stays in k; the per-image one sends each other sample to k.
    Where k is a backdoor's target both lead to the same features, and their cosine is high. On
    small rectified networks that cosine is high for easy clean classes too, so the shortcut must
    also be short: the universal mask of a flagged class stands alone on the small side.

    Args:
        clean: the first row of each class (in seeded order) is used, nothing else.
    Raises:
        SpecError: fewer than two classes present.
    Source: Wang, Zhang, Liu, Chen, Xiong & Wang 2020 (ECCV), arXiv:2007.15802.
    """
    settings = settings or LimitedData()
    x, y = _one_a_class(clean, settings.seed)
    device = device_of(model)
    x, y = x.to(device), y.to(device)
    classes = len(clean.classes)
    pattern = Pattern(clean.valid, clean.shape, device)
    with frozen(model):
        search = _Perturbations(model, x, pattern, settings)
        universal, sizes = search.find(
            classes, lambda out: _universal_loss(out, y, classes, settings.margin), shared=True
        )
        if progress is not None:
            progress(0.5, "universal perturbations")
        single, _ = search.find(classes, lambda out: _targeted_loss(out, y, classes, settings.margin), shared=False)
        if progress is not None:
            progress(1.0, "per-image perturbations")
        shape = (classes, len(x), -1)
        with torch.no_grad():
            shown = [features_of(model, part.flatten(0, 1)).reshape(shape) for part in (universal, single)]
    cosine = functional.cosine_similarity(shown[0], shown[1], dim=2).double().cpu().numpy()
    labels = y.cpu().numpy()
    similarity = np.array([np.median(cosine[k][labels != k]) for k in range(classes)])
    return LimitedDataResult(similarity, sizes, shortcuts(similarity, sizes, settings))


def shortcuts(similarity: np.ndarray, sizes: np.ndarray, settings: LimitedData) -> tuple[int, ...]:
    """The class whose mask is far smaller than every other's and whose two perturbations agree, if there is one."""
    first, second = (int(k) for k in np.argsort(sizes, kind="stable")[:2])
    alone = sizes[first] < settings.ratio * sizes[second]
    return (first,) if alone and similarity[first] > settings.threshold else ()


def _one_a_class(clean: Dataset, seed: int) -> tuple[Tensor, Tensor]:
    order = np.random.default_rng(seed).permutation(len(clean))
    rows = [next((int(i) for i in order if clean.y[i] == k), None) for k in range(len(clean.classes))]
    present = [r for r in rows if r is not None]
    if len(present) < 2:
        raise SpecError("DL-TND: needs one clean row of at least two classes")
    return torch.tensor(clean.x[present]), torch.tensor(clean.y[present])


def _rival(out: Tensor, label: Tensor) -> Tensor:
    """Largest logit of the other classes."""
    return out.scatter(-1, label[..., None], -float("inf")).amax(dim=-1)


def _universal_loss(out: Tensor, y: Tensor, classes: int, margin: float) -> Tensor:
    """[C]: samples of other classes leave their class, the class's own sample stays; out is [C, n, C]."""
    own = y[None] == torch.arange(classes, device=y.device)[:, None]
    lead = out.gather(2, y[None, :, None].expand(classes, -1, 1))[..., 0] - _rival(out, y[None].expand(classes, -1))
    losses = torch.where(own, (-lead).clamp(min=-margin), lead.clamp(min=-margin))
    others = (losses * ~own).sum(dim=1) / (~own).sum(dim=1).clamp(min=1)
    return others + (losses * own).sum(dim=1) / own.sum(dim=1).clamp(min=1)


def _targeted_loss(out: Tensor, y: Tensor, classes: int, margin: float) -> Tensor:
    """[C]: every sample reaches class k."""
    wanted = torch.arange(classes, device=y.device)[:, None].expand(out.shape[:2])
    gap = _rival(out, wanted) - out.gather(2, wanted[..., None])[..., 0]
    return gap.clamp(min=-margin).mean(dim=1)


class _Perturbations:
    """Sparse masked perturbations of n samples for all C classes at once."""

    def __init__(self, model: nn.Module, x: Tensor, pattern: Pattern, settings: LimitedData):
        self.model, self.x, self.pattern, self.settings = model, x, pattern, settings

    def find(self, classes: int, loss, *, shared: bool) -> tuple[Tensor, np.ndarray]:
        """Perturbed samples [C, n, *shape] and mask sizes [C]; `shared`: one for all samples of a class."""
        s = self.settings
        generator = torch.Generator().manual_seed(s.seed + int(shared))
        shape = (classes, 1 if shared else len(self.x), *self.x.shape[1:])
        raw = [(start + 0.1 * torch.randn(shape, generator=generator)).to(self.x.device) for start in (-1.0, 0.0)]
        raw = [part.requires_grad_(True) for part in raw]
        optimizer = torch.optim.Adam(raw, s.learning_rate)
        for _ in range(s.steps):
            perturbed, mask = self._apply(raw)
            out = self.model(perturbed.flatten(0, 1)).reshape(classes, len(self.x), -1)
            total = (loss(out) + s.sparsity * mask.flatten(2).sum(dim=2).mean(dim=1)).sum()
            step_down(optimizer, raw, total)
        perturbed, mask = self._apply(raw)
        return perturbed.detach(), mask.detach().flatten(2).sum(dim=2).mean(dim=1).double().cpu().numpy()

    def _apply(self, raw: list[Tensor]) -> tuple[Tensor, Tensor]:
        mask, pattern = self.pattern.read(*raw)
        return lay_over(self.x[None], mask, pattern), mask


@dataclass(frozen=True)
class DataFree(Descent):
    """Settings of DF-TND, beside those of every descent.

    Attributes:
        starts: random inputs the activations are maximised from.
        sparsity: weight of |mask|_1.
        threshold: how many times the second largest mean rise of a logit the largest must be.
    """

    steps: int = 200
    learning_rate: float = 0.05
    starts: int = 20
    sparsity: float = 0.02
    threshold: float = 3.0


@dataclass(frozen=True)
class DataFreeResult:
    """Evidence of DF-TND: mean rise of each logit, float64 [C], and the class that stands out, if any."""

    rises: np.ndarray
    ratio: float
    flagged: tuple[int, ...]


def data_free(
    model: nn.Module,
    shape: tuple[int, ...],
    valid: tuple[np.ndarray | float, np.ndarray | float],
    settings: DataFree | None = None,
    progress: Progress | None = None,
) -> DataFreeResult:
    """DF-TND: maximise hidden activations from noise; a backdoor's class rises far above the others.

    Maximises sum_i w_i r_i(x) - sparsity |mask|_1 over mask, pattern and weights w on the simplex,
    r the features, and compares the mean rise of each logit over random starts.

    Args:
        shape: of one input; valid: range of the inputs.
    Source: Wang, Zhang, Liu, Chen, Xiong & Wang 2020 (ECCV), arXiv:2007.15802; the threshold is
        relative here, since logits have no absolute scale.
    """
    settings = settings or DataFree()
    device = device_of(model)
    generator = torch.Generator().manual_seed(settings.seed)
    pattern = Pattern(valid, shape, device)
    count = settings.starts
    noise = pattern.lower + pattern.span * torch.rand((count, *shape), generator=generator).to(device)
    with frozen(model):
        width = features_of(model, noise[:1]).shape[1]
        raw = [
            torch.full((count, *shape), -1.0, device=device),
            torch.zeros((count, *shape), device=device),
            (0.01 * torch.randn((count, width), generator=generator)).to(device),
        ]
        raw = [part.requires_grad_(True) for part in raw]
        optimizer = torch.optim.Adam(raw, settings.learning_rate)
        for step in range(settings.steps):
            mask, picture = pattern.read(raw[0], raw[1])
            shown = lay_over(noise, mask, picture)
            gain = (raw[2].softmax(dim=1) * features_of(model, shown)).sum(dim=1)
            total = (settings.sparsity * mask.flatten(1).sum(dim=1) - gain).sum()
            step_down(optimizer, raw, total)
            if progress is not None and step % 20 == 19:
                progress((step + 1) / settings.steps, f"activation {float(gain.detach().mean()):.2f}")
        with torch.no_grad():
            rises = (model(shown.detach()) - model(noise)).mean(dim=0).double().cpu().numpy()
    return _stands_out(rises, settings.threshold)


def _stands_out(rises: np.ndarray, threshold: float) -> DataFreeResult:
    order = np.argsort(-rises, kind="stable")
    second = max(float(rises[order[1]]), 1e-9)
    ratio = float(rises[order[0]]) / second if rises[order[0]] > 0 else 0.0
    return DataFreeResult(rises, ratio, (int(order[0]),) if ratio > threshold else ())
