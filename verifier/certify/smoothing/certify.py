"""Certify and predict with a smoothed classifier: sample, count votes, bound, and abstain when unsure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from verifier.certify.smoothing import confidence
from verifier.certify.smoothing.classifier import NO_CLASS, Batched, batched
from verifier.certify.smoothing.first_order import gaussian_l2_first_order, slope_upper_bound
from verifier.certify.smoothing.noise import Ablation, Gaussian, Noise, Source
from verifier.errors import SpecError

Progress = Callable[[int, int], None]

_BATCH_MOST = 4096
# Room for the noisy batch, the noise and the classifier's first activations.
_COPIES = 8


@dataclass(frozen=True)
class Sampling:
    """How much to sample, and how sure to be.

    Attributes:
        select: samples that guess the top class; estimate: fresh samples that bound its probability.
        alpha: probability that a returned certificate is wrong, in (0, 1).
        seed: of the noise; the same seed, device and memory limit give the same answer.
        memory_bytes: limit on the noisy inputs held at a time; decides the batch size.
    """

    select: int = 100
    estimate: int = 10_000
    alpha: float = 0.001
    seed: int = 0
    memory_bytes: int = 256 << 20

    def validate(self) -> None:
        """Raises SpecError for values out of range."""
        if self.select < 1 or self.estimate < 1 or not 0.0 < self.alpha < 1.0 or self.memory_bytes < 1:
            raise SpecError(f"sampling: expected positive counts and alpha in (0, 1), got {self}")


@dataclass(frozen=True)
class SmoothedCertificate:
    """With probability at least 1 - alpha over the sampling, the smoothed class is `label` within `radius`.

    The statement is about ideal real-valued noise; it is not about the base classifier.

    Attributes:
        label: the certified class, or None when abstaining (then radius is 0).
        radius: of the open lp ball, p = `norm`; input units, or features for norm 0.
        radii: name of every certificate form computed from the same samples -> its radius.
        top_count, samples: votes for the guessed class among the estimation samples.
        p_lower: Clopper-Pearson lower bound behind `radius`.
    """

    label: int | None
    radius: float
    norm: float
    radii: dict[str, float]
    top_count: int
    samples: int
    p_lower: float
    alpha: float
    noise: Noise

    @property
    def abstained(self) -> bool:
        """True when no class is certified."""
        return self.label is None

    @property
    def statement(self) -> str:
        """The certificate in words."""
        level = f"with confidence {100 * (1 - self.alpha):g} % over {self.samples} samples of {self.noise}"
        if self.abstained:
            return f"no class is certified {level}"
        ball = f"every input closer than {self.radius:.6g} in l{self.norm:g}"
        return f"the smoothed classifier answers {self.label} for {ball}, {level}"


class SmoothedClassifier:
    """The classifier 'most likely class under noise'.

    Args:
        classifier: torch module, ONNX Runtime session or callable on batches [B, *shape] that
            returns integer labels [B] or scores [B, classes]; or the result of `denoised`.
        noise: Gaussian, Uniform, Laplace or Ablation.
        sampling: settings, see `Sampling`.
        device: for torch modules without parameters; others run where they live.
    """

    def __init__(self, classifier: Any, noise: Noise, sampling: Sampling | None = None, device: Any = None):
        self.noise = noise
        self.sampling = sampling or Sampling()
        self.sampling.validate()
        self._classifier: Batched = batched(classifier, device)

    def certify(self, x: np.ndarray, progress: Progress | None = None) -> SmoothedCertificate:
        """Guess the top class from some samples, bound its probability from others, grant a radius.

        Args:
            x: one input without batch axis, finite numbers in the classifier's own units.
            progress: called with (samples done, samples in all).
        Raises:
            SpecError: x is not finite.  ShapeError: the classifier returns neither labels nor scores.
        Source: Cohen, Rosenfeld & Kolter 2019, arXiv:1902.02918 (CERTIFY).
        """
        label, run = self._select(x, progress)
        if label is None:
            return self._certificate(None, 0, 0.0, {})
        top = sum(int(np.sum(labels == label)) for labels, _ in run.batches(self.sampling.estimate))
        p_lower = confidence.lower_bound(top, self.sampling.estimate, self.sampling.alpha)
        forms = self.noise.forms(_maskable(self.noise, run.shape))
        return self._certificate(label, top, p_lower, {k: form(p_lower) for k, form in forms.items()})

    def certify_first_order(self, x: np.ndarray, progress: Progress | None = None) -> SmoothedCertificate:
        """As `certify` for Gaussian noise, using the gradient of the vote as well.

        alpha is shared equally by the bound on the probability and the bound on the gradient, so
        the plain radius in `radii` is slightly smaller than `certify`'s; the first-order one gains
        where the classifier is flat around x.

        Raises:
            SpecError: the noise is not Gaussian, fewer than two estimation samples, or x is not finite.
        Source: Mohapatra et al. 2020, arXiv:2010.06651.
        """
        if not isinstance(self.noise, Gaussian) or self.sampling.estimate < 2:
            raise SpecError(f"first-order certificates need Gaussian noise and two samples, got {self.noise}")
        label, run = self._select(x, progress)
        if label is None:
            return self._certificate(None, 0, 0.0, {})
        half = self.sampling.estimate // 2
        counts = (half, self.sampling.estimate - half)
        sums = [_accepted_noise(run, count, label) for count in counts]
        top = sum(votes for votes, _ in sums)
        share = self.sampling.alpha / 2.0
        p_lower = confidence.lower_bound(top, self.sampling.estimate, share)
        means = [total / count for (_, total), count in zip(sums, counts, strict=True)]
        slope = slope_upper_bound(means[0], means[1], counts[0], counts[1], share)
        sigma = self.noise.sigma
        radii = {"first-order": gaussian_l2_first_order(p_lower, slope, sigma)}
        radii["neyman-pearson"] = self.noise.forms(0)["neyman-pearson"](p_lower)
        radii["first-order"] = max(radii.values())
        return self._certificate(label, top, p_lower, radii)

    def predict(self, x: np.ndarray, progress: Progress | None = None) -> int | None:
        """The most likely class, or None when the votes do not decide it at level alpha.

        Source: Cohen, Rosenfeld & Kolter 2019, arXiv:1902.02918 (PREDICT).
        """
        run = self._run(x, self.sampling.estimate, progress)
        votes: Counter[int] = Counter()
        for labels, _ in run.batches(self.sampling.estimate):
            votes.update(labels.tolist())
        ranked = [*votes.most_common(2), (NO_CLASS, 0)]
        (label, first), (_, second) = ranked[0], ranked[1]
        undecided = confidence.majority_p_value(first, second) > self.sampling.alpha
        return None if undecided or label == NO_CLASS else int(label)

    def _select(self, x: np.ndarray, progress: Progress | None) -> tuple[int | None, _Run]:
        run = self._run(x, self.sampling.select + self.sampling.estimate, progress)
        votes: Counter[int] = Counter()
        for labels, _ in run.batches(self.sampling.select):
            votes.update(labels[labels != NO_CLASS].tolist())
        return (int(votes.most_common(1)[0][0]) if votes else None), run

    def _run(self, x: np.ndarray, total: int, progress: Progress | None) -> _Run:
        x = np.asarray(x)
        x = x if x.dtype in (np.float32, np.float64) else x.astype(np.float32)
        if not np.all(np.isfinite(x)):
            raise SpecError("smoothing: the input holds NaN or infinite values")
        source = self._classifier.source(self.sampling.seed, x.dtype)
        batch = self.sampling.memory_bytes // max(1, _COPIES * x.size * x.itemsize)
        batch = int(min(max(batch, 1), _BATCH_MOST))
        return _Run(self._classifier, self.noise, source, source.array(x), _Meter(progress, total), batch)

    def _certificate(self, label: int | None, top: int, p_lower: float, radii: dict[str, float]) -> SmoothedCertificate:
        certified = label is not None and p_lower > 0.5
        return SmoothedCertificate(
            label=label if certified else None,
            radius=next(iter(radii.values())) if certified else 0.0,
            norm=self.noise.norm,
            radii=radii if certified else dict.fromkeys(radii, 0.0),
            top_count=top,
            samples=self.sampling.estimate,
            p_lower=p_lower,
            alpha=self.sampling.alpha,
            noise=self.noise,
        )


class _Meter:
    """Counts finished samples for a progress callback."""

    def __init__(self, progress: Progress | None, total: int):
        self._progress, self._total, self._done = progress, total, 0

    def add(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


@dataclass
class _Run:
    """One stream of noisy samples around one input."""

    classifier: Batched
    noise: Noise
    source: Source
    x: Any
    meter: _Meter
    batch: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape)

    def batches(self, count: int):
        """Yields (labels [B], standardised noise [B, *shape]) until `count` samples are drawn."""
        left = count
        while left > 0:
            rows = min(self.batch, left)
            try:
                noisy, standard = self.noise.draw(self.x, rows, self.source)
                labels = self.classifier.labels(noisy)
            except (MemoryError, RuntimeError) as error:
                if rows == 1 or not _out_of_memory(error):
                    raise
                self.batch = rows // 2
                continue
            if labels.shape != (rows,):
                raise SpecError(f"classifier: expected {rows} labels for {rows} inputs, got {labels.shape}")
            yield labels, standard
            left -= rows
            self.meter.add(rows)


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _accepted_noise(run: _Run, count: int, label: int) -> tuple[int, np.ndarray]:
    """Votes for `label` among `count` samples, and the sum of their standardised noise, float64 [N]."""
    votes, total = 0, np.zeros(math.prod(run.shape))
    for labels, standard in run.batches(count):
        accepted = labels == label
        votes += int(np.sum(accepted))
        # Summed in float64: float32 sums would need an error term in the confidence bound.
        rows = standard[run.source.rows(np.flatnonzero(accepted))].reshape(int(np.sum(accepted)), -1)
        part = rows.double().sum(0).cpu() if hasattr(rows, "double") else rows.sum(axis=0, dtype=np.float64)
        total += np.asarray(part)
    return votes, total


def _maskable(noise: Noise, shape: tuple[int, ...]) -> int:
    return math.prod(noise.positions(shape)) if isinstance(noise, Ablation) else math.prod(shape)
