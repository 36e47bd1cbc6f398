"""A whole data set: one row a sample, in as many processes as wanted, each row out the moment it is known."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from verifier.certify.threat import Nearness
from verifier.errors import ShapeError, SpecError, VerifierError

METHODS = ("proof", "smoothing")
#: Columns of samples.csv, in order; every one is a field of `Row`.
COLUMNS = (
    "index", "label", "predicted", "lower", "upper", "status", "rival", "reason", "proved_by", "subdomains",
    "attack_seconds", "proof_seconds", "error",
)  # fmt: skip


@dataclass(frozen=True)
class Smoothing:
    """How the classifier is smoothed, see verifier.certify.smoothing.

    Attributes:
        noise: "gaussian", "laplace", "uniform" or "ablation"; sigma: its scale (features kept for ablation).
        samples, select, alpha: estimation and selection samples, and the probability of a wrong certificate.
        order: 0 for the vote alone, 1 to use its gradient as well (Gaussian only).
    """

    noise: str = "gaussian"
    sigma: float = 0.25
    samples: int = 10_000
    select: int = 100
    alpha: float = 0.001
    order: int = 0


@dataclass(frozen=True)
class Plan:
    """What to do with every sample.

    Attributes:
        network: a model file.
        nearness: norm, valid range, mask and scales, arrays of the network's size.
        radii: decide these; empty: narrow each radius down to `gap_rel`.
        timeout_s, gap_rel, effort, attack_effort, seed: see RadiusSettings.
        soundness: "float32" or "real". device, threads: of each process.
        smoothing: settings for smoothed certificates instead of proofs, or None.
        target: the only class that counts as a mistake, or None.
    """

    network: str
    nearness: Nearness
    radii: tuple[float, ...] = ()
    timeout_s: float | None = 30.0
    gap_rel: float = 0.05
    effort: str = "search"
    attack_effort: int = 1
    seed: int = 0
    soundness: str = "float32"
    device: str = "cpu"
    threads: int = 1
    smoothing: Smoothing | None = None
    target: int | None = None


@dataclass(frozen=True)
class Row:
    """One sample's result.

    Attributes:
        index: row of the data set. label, predicted: classes; predicted -1 for abstention or NaN.
        lower, upper: ends of the radius; inf where unbounded, NaN after an error.
        status: "wrong", "robust" (the whole valid range), "bracketed", "smoothed", "abstained" or "error".
        rival: class of the counterexample, -1 without one.
        counterexample: flat input, empty without one.
        detail: further facts (probability bound, radii of other certificate forms).
    """

    index: int
    label: int
    predicted: int
    lower: float
    upper: float
    status: str
    rival: int = -1
    reason: str = ""
    proved_by: str = ""
    subdomains: int = 0
    attack_seconds: float = 0.0
    proof_seconds: float = 0.0
    error: str = ""
    counterexample: tuple[float, ...] = ()
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        """True when the input itself is given its label."""
        return self.status not in ("wrong", "error") and self.predicted == self.label

    def verdict(self, radius: float) -> str:
        """ "certified", "attacked", "wrong" or "open" at a radius."""
        if not self.right:
            return "open" if self.status in ("error", "abstained") else "wrong"
        if self.lower >= radius:
            return "certified"
        return "attacked" if self.upper <= radius else "open"

    def to_json(self) -> dict[str, Any]:
        """Plain values; infinities and NaN become strings."""
        return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}

    @staticmethod
    def from_json(values: dict[str, Any]) -> Row:
        """The inverse of `to_json`.

        Raises:
            SpecError: fields are missing or unknown.
        """
        try:
            lower, upper = float(values["lower"]), float(values["upper"])
            return Row(**{**values, "lower": lower, "upper": upper, "counterexample": tuple(values["counterexample"])})
        except (KeyError, TypeError, ValueError) as error:
            raise SpecError(f"not a row of samples.jsonl: {error}") from error


def arrange(x: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
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
    if len(shapes) == 1 and x.ndim == 4:
        inner = tuple(d for d in shapes[0] if d != 1)
        channels_last = (*x.shape[2:], x.shape[1])
        if inner == channels_last and inner != tuple(x.shape[1:]):
            x = x.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(x).reshape(len(x), -1)


class Analyst:
    """Analyses samples one after the other; made once a process."""

    def __init__(self, plan: Plan):
        import torch

        from verifier.certify.radius import RadiusSettings
        from verifier.certify.victim import Classifier
        from verifier.outcome import Soundness

        torch.set_num_threads(plan.threads)
        level = Soundness.IEEE_FLOAT if plan.soundness == "float32" else Soundness.REAL_ARITHMETIC
        # A setting out of range fails here, once, rather than in every row.
        RadiusSettings(plan.gap_rel, plan.timeout_s, plan.effort, plan.attack_effort, plan.seed, plan.radii)
        self.plan = plan
        self.classifier = Classifier(plan.network, device=plan.device, soundness=level)
        self._smoothed = None if plan.smoothing is None else _smoothed(self.classifier, plan)

    def row(self, index: int, x: np.ndarray, label: int, cancel: Callable[[], bool] | None = None) -> Row:
        """The result for one sample; bad input becomes an "error" row.

        Args:
            x: flat [N_in].
        """
        began = time.monotonic()
        try:
            return self._smooth(index, x, label) if self._smoothed is not None else self._prove(index, x, label, cancel)
        except VerifierError as error:
            return Row(
                index, label, -1, math.nan, math.nan, "error", error=" ".join(str(error).split()),
                proof_seconds=time.monotonic() - began,
            )  # fmt: skip

    def _prove(self, index: int, x: np.ndarray, label: int, cancel: Callable[[], bool] | None) -> Row:
        from verifier.certify.radius import RadiusSettings, certified_radius
        from verifier.outcome import StopReason

        plan = self.plan
        settings = RadiusSettings(
            plan.gap_rel, plan.timeout_s, plan.effort, plan.attack_effort, plan.seed + index, plan.radii
        )
        found = certified_radius(
            self.classifier, x, label, nearness=plan.nearness, target=plan.target, settings=settings, cancel=cancel
        )
        status = {StopReason.MISCLASSIFIED: "wrong", StopReason.WHOLE_RANGE: "robust"}.get(found.reason, "bracketed")
        best = found.counterexample
        return Row(
            index, label, found.predicted, found.lower, found.upper, status,
            rival=-1 if best is None else best.rival,
            reason=found.reason.name.lower(),
            proved_by=found.proved_by,
            subdomains=found.subdomains,
            attack_seconds=found.seconds["attack"],
            proof_seconds=found.seconds["proof"],
            counterexample=() if best is None else tuple(best.x.tolist()),
            detail={"balls": found.balls} if best is None else {"balls": found.balls, "attack": best.source},
        )  # fmt: skip

    def _smooth(self, index: int, x: np.ndarray, label: int) -> Row:
        assert self._smoothed is not None and self.plan.smoothing is not None
        began = time.monotonic()
        certify = self._smoothed.certify_first_order if self.plan.smoothing.order else self._smoothed.certify
        found = certify(self.classifier.flat(x).astype(self.classifier.graph.dtype))
        right = found.label == label
        status = "abstained" if found.abstained else "smoothed" if right else "wrong"
        return Row(
            index, label, -1 if found.label is None else found.label, found.radius if right else 0.0, math.inf, status,
            reason="abstained" if found.abstained else "sampled",
            proved_by="smoothing",
            proof_seconds=time.monotonic() - began,
            detail={"p_lower": found.p_lower, "votes": found.top_count, "samples": found.samples, "radii": found.radii},
        )  # fmt: skip


def _smoothed(classifier: Any, plan: Plan) -> Any:
    import torch

    from verifier.bounds.torch_engine import TorchEngine
    from verifier.certify.smoothing import Ablation, Gaussian, Laplace, Sampling, SmoothedClassifier, Uniform
    from verifier.certify.victim import GraphScores

    s = plan.smoothing
    assert s is not None
    makers: dict[str, Callable[[], Any]] = {
        "gaussian": lambda: Gaussian(s.sigma),
        "laplace": lambda: Laplace(s.sigma),
        "uniform": lambda: Uniform(s.sigma),
        "ablation": lambda: Ablation(int(s.sigma)),
    }
    if s.noise not in makers:
        raise SpecError(f"noise: expected one of {', '.join(makers)}, got '{s.noise}'")
    noise = makers[s.noise]()
    if noise.norm != plan.nearness.norm:
        raise SpecError(
            f"norm: {s.noise} noise certifies l{noise.norm:g} radii; give --norm l{noise.norm:g} or another --noise"
        )
    dtype = torch.float32 if classifier.graph.dtype == "float32" else torch.float64
    engine = TorchEngine(classifier.graph, device=plan.device, dtype=dtype)
    module = GraphScores(engine).eval()
    vote: Any = (lambda z: (module(torch.as_tensor(z))[:, 0] > 0).long()) if classifier.single else module
    sampling = Sampling(s.select, s.samples, s.alpha, plan.seed)
    return SmoothedClassifier(_Threshold(module).eval() if classifier.single else vote, noise, sampling)


def _Threshold(module: Any) -> Any:
    """One output z as the two scores (0, z)."""
    import torch

    class Threshold(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.inner(x)
            return torch.cat([torch.zeros_like(z), z], dim=1)

    return Threshold()


def sweep(
    plan: Plan, x: np.ndarray, y: np.ndarray, indices: Sequence[int], workers: int = 1
) -> Generator[Row, None, None]:
    """Rows in the order they are done. Closing the generator (or Ctrl-C) ends every process.

    Args:
        x: flat inputs [n, N_in]; y: labels [n]; indices: rows to analyse.
    Raises:
        VerifierError: the network cannot be analysed at all, or a process died (its sample is named).
    """
    if workers == 1 or len(indices) < 2:
        analyst = Analyst(plan)
        for i in indices:
            yield analyst.row(int(i), x[i], int(y[i]))
        return
    Analyst(plan)  # bad networks and settings fail here, once, rather than in every process
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(indices)), context, _start, (plan, os.getpid()))
    try:
        waiting: dict[Future[Row], int] = {pool.submit(_work, int(i), x[i], int(y[i])): int(i) for i in indices}
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                index = waiting.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool:
                    raise VerifierError(
                        f"a worker process died, about sample {index}, probably for lack of memory; "
                        "the rows so far are kept: go on with --resume and fewer --workers"
                    ) from None
    finally:
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)


_analyst: Analyst | None = None


def _start(plan: Plan, parent: int) -> None:
    global _analyst
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent alone, which then decides
    _analyst = Analyst(plan)


def _work(index: int, x: np.ndarray, label: int) -> Row:
    assert _analyst is not None
    return _analyst.row(index, x, label)
