"""Does the class stay for every parameter of a box of image transformations?

Requires: a classifier with one image input; a SemanticThreat (its order may be free: every one is proved).
Returns: for each share of the box (the box shrunk towards the identity): proved, refuted by a replayed
counterexample, or open.
Method: the attacks on the threat look for a counterexample first; then the composed network (see
`compose`) is verified over the parameter box, cut into pieces where geometry asks for it, in each order.
Property: sound for the deployed network fed with the image transformed in real arithmetic or by any
program within `rounding.pixel_error` of that, the attacks' torch functions among them; complete up to
that allowance, given time.
Source: Mohapatra et al. 2020 (Semantify-NN), arXiv:1912.09533.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from verifier.api import verify
from verifier.attack.base import Attack
from verifier.attack.model import Model
from verifier.attack.onnx_victim import GraphModule
from verifier.attack.semantic.composite import Composite
from verifier.attack.semantic.grid import GridSearch
from verifier.attack.semantic.threat import SemanticThreat
from verifier.certify.placing import Placing
from verifier.certify.semantic.box import Piece, input_ends, pieces, scaled
from verifier.certify.semantic.compose import transformed_network
from verifier.certify.victim import Classifier, Rows
from verifier.errors import ShapeError, SpecError
from verifier.graph.ir import Graph
from verifier.outcome import Soundness, StopReason, Verdict
from verifier.report.model import Report
from verifier.run import Run
from verifier.settings import Settings
from verifier.spec.problem import Case, InputSet, Problem
from verifier.spec.query import query_of

_PROVED = (StopReason.PROVED_BY_BOUNDS, StopReason.PROVED_BY_SEARCH)
#: Values a parameter for the exhaustive search, by the number of parameters; more are left to gradients.
GRID = {1: 41, 2: 11, 3: 7}


@dataclass(frozen=True)
class SemanticSettings:
    """How hard to try.

    Attributes:
        shares: shares of the parameter box to decide, each in (0, 1].
        timeout_s: wall-clock seconds an image, None for no limit.
        seed: of the attacks. device, threads: of the proofs.
    Raises:
        SpecError: values out of range.
    """

    shares: tuple[float, ...] = (1.0,)
    timeout_s: float | None = None
    seed: int = 0
    device: str = "cpu"
    threads: int | None = 1

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < s <= 1 for s in self.shares):
            raise SpecError(f"shares of the parameter box: expected numbers above 0 and at most 1, got {self.shares}")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise SpecError(f"timeout: expected seconds > 0, got {self.timeout_s}")


@dataclass(frozen=True)
class SemanticCounterexample:
    """A transformed image that the deployed network gives another class.

    Attributes:
        parameters: transformation -> its parameters, in their own units.
        x: the transformed image as the network's flat input [N_in].
        rival: the class it reaches. source: the attack, or "proof search".
    """

    parameters: dict[str, tuple[float, ...]]
    x: np.ndarray
    rival: int
    source: str


@dataclass(frozen=True)
class SemanticCertificate:
    """The class provably stays on `lower` times the box; a counterexample lies in `upper` times the box.

    Attributes:
        lower: the largest share proved, 0 for none. upper: the smallest refuted, inf for none.
        label, predicted: the class asked about, and the one given to the image itself.
        reason: how the last proof went; COUNTEREXAMPLE where every share up to `upper` is decided.
        subdomains: parameter boxes bounded; pieces: into which the box was cut.
        seconds: "attack" and "proof".
    """

    lower: float
    upper: float
    label: int
    predicted: int
    counterexample: SemanticCounterexample | None
    reason: StopReason
    soundness: Soundness = Soundness.IEEE_FLOAT
    subdomains: int = 0
    pieces: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


def certify_transformations(
    network: str | Graph | Classifier,
    image: np.ndarray,
    label: int | None = None,
    *,
    threat: SemanticThreat,
    channels_last: bool = False,
    target: int | None = None,
    settings: SemanticSettings | None = None,
    cancel: Callable[[], bool] | None = None,
) -> SemanticCertificate:
    """Prove or refute that the class stays for all parameters of the threat.

    Args:
        network: a file, a Graph, or a Classifier made once for many images.
        image: [C, H, W], in the network's input units.
        label: the class to hold; None: the one the network gives.
        threat: transformations with their boxes, in order (or any, where it is free); a pixel budget comes last.
        channels_last: the network takes [H, W, C].
        target: only this class counts as a mistake; None: any other.
        settings: see SemanticSettings. cancel: asked often; True stops with what is known.
    Raises:
        ShapeError: the image does not fit. SpecError: a class, image or threat that makes no sense.
    """
    settings = settings or SemanticSettings()
    classifier = network if isinstance(network, Classifier) else Classifier(network, device=settings.device)
    if classifier.soundness is not Soundness.IEEE_FLOAT:
        raise SpecError("transformations: proofs are for the deployed program, which implies real arithmetic")
    if np.ndim(image) != 3:
        raise ShapeError(f"transformations: expected one image [C, H, W], got {list(np.shape(image))}")
    placing = Placing(image.shape, channels_last)
    pieces(threat, placing.shape)  # too many are refused before any attack takes its time
    given = torch.as_tensor(classifier.deployed(image))[None]
    classifier.flat(placing.flat(image))
    image = threat.space(given).clean[0].numpy()  # round-off beyond the valid range cut off
    flat = classifier.deployed(placing.flat(image))
    label, predicted, rows, right = classifier.ask(flat, label, target)
    if not right:
        seconds = {"attack": 0.0, "proof": 0.0}
        return SemanticCertificate(0.0, 0.0, label, predicted, None, StopReason.MISCLASSIFIED, seconds=seconds)
    run = Run.within(settings.timeout_s, cancel)
    question = _Question(classifier, rows, placing, placing.image(flat), label, target)
    return _Work(question, settings, run).decide(threat, predicted)


@dataclass(frozen=True)
class _Question:
    """One image, [C, H, W] in the program's numbers, and the margins that keep its class."""

    classifier: Classifier
    rows: Rows
    placing: Placing
    image: np.ndarray
    label: int
    target: int | None


class _Work:
    """The work on one question, and what has been found."""

    def __init__(self, question: _Question, settings: SemanticSettings, run: Run):
        self.question, self.settings, self.run = question, settings, run
        self.subdomains = self.pieces = 0
        self.found: SemanticCounterexample | None = None
        self.model = Model.from_torch(_OnImages(question.classifier.graph, question.placing))
        self.batch = torch.as_tensor(question.image, dtype=self.model.dtype)[None]

    def decide(self, threat: SemanticThreat, predicted: int) -> SemanticCertificate:
        """Shares in rising order: a counterexample refutes the larger ones, too; what is left open stays so."""
        lower, upper, reason = 0.0, math.inf, StopReason.PROVED_BY_BOUNDS
        spent = {"attack": 0.0, "proof": 0.0}
        for share in sorted(self.settings.shares):
            part = scaled(threat, share)
            with _timed(spent, "attack"):
                self.found = self._attack(part)
            if self.found is None and reason in _PROVED:
                with _timed(spent, "proof"):
                    reason = self._prove(part)
                lower = share if reason in _PROVED else lower
            if self.found is not None:
                upper = share
                reason = StopReason.COUNTEREXAMPLE if reason in _PROVED else reason
                break
        return SemanticCertificate(
            lower, upper, self.question.label, predicted, self.found, reason, subdomains=self.subdomains,
            pieces=self.pieces, seconds=spent,
        )  # fmt: skip

    def _attack(self, threat: SemanticThreat) -> SemanticCounterexample | None:
        attacks: list[Attack] = [Composite(schedule=threat.free_order)]
        if not threat.pixel_eps and not threat.free_order and threat.parameter_count in GRID:
            attacks.insert(0, GridSearch(points=GRID[threat.parameter_count]))
        label, aims = [self.question.label], None if self.question.target is None else [self.question.target]
        for attack in attacks:
            result = attack(self.model, self.batch, label, threat, targets=aims, seed=self.settings.seed)
            if bool(result.success[0]) and result.parameters is not None:
                confirmed = self._confirmed(threat, result.parameters, attack.name)
                if confirmed is not None:
                    return confirmed
            if self.run.stopped():
                break
        return None

    def _confirmed(self, threat: SemanticThreat, work: Tensor, source: str) -> SemanticCounterexample | None:
        """The counterexample at working coordinates [1, W] if the deployed network agrees."""
        space = threat.space(self.batch)
        with torch.no_grad():
            transformed = threat.finalise(space, work)[0].numpy().astype(np.float64)
        q = self.question
        x = q.placing.flat(transformed)
        rival = q.classifier.unsafe(q.rows, q.classifier.outputs(x))
        if rival is None:
            return None
        values = {name: tuple(v[0].tolist()) for name, v in threat.parameters(work).items()}
        return SemanticCounterexample(values, x, rival, source)

    def _prove(self, threat: SemanticThreat) -> StopReason:
        """Why it ended: one of _PROVED where every piece is proved; sets `found` where one is refuted."""
        cut = pieces(threat, self.question.placing.shape)
        self.pieces = len(cut)
        proved = StopReason.PROVED_BY_BOUNDS
        for number, piece in enumerate(cut):
            if self.run.stopped():
                return StopReason.INTERRUPTED if self.run.cancelled() else StopReason.TIME_LIMIT
            report = self._verify(threat, piece, len(cut) - number - 1)
            self.subdomains += report.domains_visited
            if report.verdict is Verdict.SAT and report.witness is not None:
                self.found = self._confirmed(threat, self._working(threat, piece, report.witness.x), "proof search")
                return StopReason.REPLAY_FAILED if self.found is None else StopReason.COUNTEREXAMPLE
            if report.verdict is not Verdict.UNSAT:
                return report.reason
            proved = proved if report.reason is StopReason.PROVED_BY_BOUNDS else StopReason.PROVED_BY_SEARCH
        return proved

    def _verify(self, threat: SemanticThreat, piece: Piece, after: int) -> Report:
        """The report on one piece, which may take the time left so long as the `after` ones get a little."""
        q = self.question
        graph = transformed_network(q.classifier.graph, q.image, threat, q.placing, piece)
        inputs = InputSet(*input_ends(threat, piece, q.image.size))
        query = query_of(graph, Problem((Case(inputs, q.rows.clauses()),), graph.output_size))
        left = self.run.remaining()
        limit = None if math.isinf(left) else max(left / (1 + 0.1 * after), 0.05)
        settings = Settings(
            timeout_s=limit, device=self.settings.device, threads=self.settings.threads, seed=self.settings.seed
        )
        return verify(graph, query, settings, cancel=self.run.cancelled)

    def _working(self, threat: SemanticThreat, piece: Piece, inputs: np.ndarray) -> Tensor:
        """The attacks' coordinates [1, W] of the composed network's inputs [P (+ N)]."""
        space = threat.space(self.batch)
        count = threat.parameter_count
        identity = np.array([v for step in threat.transformations for v in step.identity])
        ends = [np.array([v for s in threat.transformations for v in getattr(s, e)]) for e in ("lower", "upper")]
        width = np.where(ends[1] > ends[0], ends[1] - ends[0], 1.0)
        parts = [(inputs[:count].astype(np.float64) - identity) / width]
        if threat.free_order:
            ranks = np.empty(threat.components)
            ranks[list(piece.order)] = np.linspace(0.0, 1.0, threat.components)
            parts.append(ranks)
        if threat.pixel_eps > 0:
            parts.append(inputs[count:].astype(np.float64) / threat.pixel_eps)
        work = torch.as_tensor(np.concatenate(parts), dtype=self.model.dtype)[None]
        return torch.minimum(torch.maximum(work, space.lower), space.upper)


@contextmanager
def _timed(spent: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        spent[name] += time.monotonic() - began


class _OnImages(torch.nn.Module):
    """The network on images [R, C, H, W], laid out as it takes them."""

    def __init__(self, graph: Graph, placing: Placing):
        super().__init__()
        self.inner, self.placing = GraphModule(graph), placing

    def forward(self, x: Tensor) -> Tensor:
        """Scores [R, K]."""
        return self.inner(x.permute(0, 2, 3, 1) if self.placing.channels_last else x)
