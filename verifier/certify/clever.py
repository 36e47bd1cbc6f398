"""CLEVER: an estimate of the smallest perturbation that changes a class. Never a certificate."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from verifier.errors import ShapeError, SpecError
from verifier.outcome import Soundness

# Shapes from which the maximum likelihood search starts; the best end wins.
_SHAPE_STARTS = (1.5, 4.0, 12.0, 40.0)
# An end point this many spreads above the largest maximum is a fit that ran away.
_LOCATION_REACH = 10.0


@dataclass(frozen=True)
class CleverSettings:
    """How much to sample.

    Attributes:
        batches: maxima per fit; samples: points per maximum.
        runs: independent repetitions, for the spread.
        seed: of the points.
    """

    batches: int = 40
    samples: int = 128
    runs: int = 3
    seed: int = 0

    def validate(self) -> None:
        """Raises SpecError for counts that cannot be fitted."""
        if self.batches < 5 or self.samples < 1 or self.runs < 1:
            raise SpecError(f"CLEVER: expected batches >= 5, samples >= 1 and runs >= 1, got {self}")


@dataclass(frozen=True)
class CleverScore:
    """An estimated minimal distance to another class, in input units of the chosen norm.

    Attributes:
        score: mean over runs of the smallest target's score; 0 when x is not classified as `label`.
        spread: standard deviation over runs (0 for one run).
        runs: float64 [runs], each run's score.
        targets: class -> its mean score over runs.
        radius: of the sampled ball; no score exceeds it.
        saturated: the score equals the radius: the distance may be larger; sample a larger ball.
        label, norm: what was asked.
    """

    score: float
    spread: float
    runs: np.ndarray
    targets: dict[int, float]
    radius: float
    saturated: bool
    label: int
    norm: float

    @property
    def soundness(self) -> Soundness:
        """Always HEURISTIC: sampling can miss the steepest gradient."""
        return Soundness.HEURISTIC


def clever(
    model: torch.nn.Module,
    x: np.ndarray,
    *,
    norm: float = 2.0,
    target: int | None = None,
    radius: float | None = None,
    settings: CleverSettings | None = None,
) -> CleverScore:
    """Estimate the distance from x to the decision boundary from sampled gradients.

    Args:
        model: torch module in evaluation mode, [B, *shape] -> logits [B, classes].
        x: one input without batch axis, in the model's units.
        norm: p of the distance, 1, 2 or inf; gradients are measured in the dual norm.
        target: only this class counts; None for the nearest of all.
        radius: of the sampled ball; default twice the first-order estimate of the distance.
        settings: sample sizes.
    Property: an estimate; equals the exact distance on linear classifiers.
    Raises:
        SpecError: unknown norm, target or radius, a model in training mode, or NaN gradients.
        ShapeError: the model does not return [B, classes].
    Source: Weng et al. 2018, arXiv:1801.10578.
    """
    settings = settings or CleverSettings()
    settings.validate()
    field = _Field(model, np.asarray(x), norm)
    label, rivals = field.label, [k for k in range(field.classes) if k != field.label]
    if target is not None:
        if target not in rivals:
            raise SpecError(f"target: expected a class other than {label} below {field.classes}, got {target}")
        rivals = [target]
    margins = field.margins(rivals)
    slopes = field.slopes(field.x[None], rivals)[0]
    if radius is None:
        with np.errstate(divide="ignore"):
            distances = np.where(slopes > 0, margins / np.maximum(slopes, 1e-300), np.inf)
        finite = distances[np.isfinite(distances) & (distances > 0)]
        radius = 2.0 * float(finite.min()) if finite.size else 1.0
    if not (radius > 0 and np.isfinite(radius)):
        raise SpecError(f"radius: expected a finite number > 0, got {radius}")
    scores = np.stack(
        [_one_run(field, rivals, margins, radius, settings, settings.seed + run) for run in range(settings.runs)]
    )
    per_run = scores.min(axis=1)
    spread = float(per_run.std(ddof=1)) if settings.runs > 1 else 0.0
    return CleverScore(
        score=float(per_run.mean()),
        spread=spread,
        runs=per_run,
        targets={k: float(s) for k, s in zip(rivals, scores.mean(axis=0), strict=True)},
        radius=radius,
        saturated=bool(np.any(per_run >= radius)),
        label=label,
        norm=float(norm),
    )


def reverse_weibull_location(maxima: np.ndarray) -> float:
    """The right end point of the reverse Weibull law fitted to maxima [M] by maximum likelihood.

    Equal maxima (a linear function) give that value. A fit that leaves the data or runs away is
    dropped; if none is left, the largest maximum is the estimate.

    Raises:
        SpecError: NaN or infinite values.
    """
    maxima = np.asarray(maxima, dtype=np.float64).reshape(-1)
    if not np.all(np.isfinite(maxima)):
        raise SpecError("CLEVER: gradient norms hold NaN or infinite values")
    top, width = float(maxima.max()), float(np.ptp(maxima))
    if width <= 1e-6 * abs(top):
        return top
    data = (maxima - top) / width
    best, location = -np.inf, 0.0
    for shape in _SHAPE_STARTS:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            # The search visits parameters outside the support; only its end matters.
            warnings.simplefilter("ignore")
            try:
                c, loc, scale = stats.weibull_max.fit(data, shape, loc=0.1, scale=1.0)
            except stats.FitError:
                continue
            likelihood = float(stats.weibull_max.logpdf(data, c, loc, scale).sum())
        # Below shape 1 the likelihood is unbounded at the largest maximum and says nothing.
        if np.isfinite(likelihood) and c >= 1.0 and 0.0 <= loc <= _LOCATION_REACH and likelihood > best:
            best, location = likelihood, float(loc)
    return top + width * location


class _Field:
    """Margins and gradient norms of f_label - f_k around x."""

    def __init__(self, model: torch.nn.Module, x: np.ndarray, norm: float):
        if norm not in (1, 2, np.inf):
            raise SpecError(f"norm: expected 1, 2 or inf, got {norm}")
        if any(m.training for m in model.modules()):
            raise SpecError("torch module: got training mode, expected evaluation mode; call model.eval()")
        if not np.all(np.isfinite(x)):
            raise SpecError("CLEVER: the input holds NaN or infinite values")
        tensors = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
        options = {"dtype": tensors[0].dtype, "device": tensors[0].device} if tensors else {"dtype": torch.float32}
        self._model, self.norm = model, norm
        self._dual = {1: np.inf, 2: 2.0, np.inf: 1.0}[norm]
        self.x = torch.tensor(x, **options)
        with torch.no_grad():
            logits = model(self.x[None])
        if logits.ndim != 2 or logits.shape[0] != 1 or logits.shape[1] < 2:
            raise ShapeError(f"model: expected logits [1, classes >= 2] for one input, got {list(logits.shape)}")
        self._logits = logits[0].double().cpu().numpy()
        self.classes, self.label = logits.shape[1], int(self._logits.argmax())

    def margins(self, rivals: list[int]) -> np.ndarray:
        """f_label - f_k at x, float64 [K]."""
        return self._logits[self.label] - self._logits[rivals]

    def slopes(self, points: Tensor, rivals: list[int]) -> np.ndarray:
        """Dual norm of the gradient of f_label - f_k at points [B, *shape], float64 [B, K]."""
        points = points.detach().requires_grad_(True)
        logits = self._model(points)
        found = []
        for rival in rivals:
            margin = (logits[:, self.label] - logits[:, rival]).sum()
            (gradient,) = torch.autograd.grad(margin, points, retain_graph=True)
            found.append(torch.linalg.vector_norm(gradient.reshape(len(points), -1).double(), self._dual, dim=1))
        return torch.stack(found, dim=1).cpu().numpy()

    def sample(self, count: int, radius: float, rng: np.random.Generator) -> Tensor:
        """Points uniform in the lp ball around x, [count, *shape]."""
        size = self.x.numel()
        if np.isinf(self.norm):
            offset = rng.uniform(-1.0, 1.0, size=(count, size))
        elif self.norm == 2:
            direction = rng.standard_normal((count, size))
            direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-300)
            offset = direction * rng.random((count, 1)) ** (1.0 / size)
        else:
            # Uniform in the cross-polytope: exponentials over their sum, one spare for the inside.
            parts = rng.standard_exponential((count, size + 1))
            offset = parts[:, :size] / parts.sum(axis=1, keepdims=True)
            offset *= rng.choice((-1.0, 1.0), size=(count, size))
        moved = torch.as_tensor(radius * offset, dtype=self.x.dtype, device=self.x.device)
        return self.x[None] + moved.reshape(count, *self.x.shape)


def _one_run(
    field: _Field, rivals: list[int], margins: np.ndarray, radius: float, settings: CleverSettings, seed: int
) -> np.ndarray:
    """Scores of every rival, float64 [K], from one set of points."""
    rng = np.random.default_rng(seed)
    maxima = np.stack(
        [field.slopes(field.sample(settings.samples, radius, rng), rivals).max(axis=0) for _ in range(settings.batches)]
    )
    locations = np.array([reverse_weibull_location(column) for column in maxima.T])
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = np.where(locations > 0, margins / locations, np.inf)
    return np.clip(distances, 0.0, radius)
