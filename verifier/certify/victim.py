"""The classifier behind a network file: its classes, its exact answers, and what counts as a mistake."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from verifier.bounds.native_engine import NativeEngine, supports
from verifier.bounds.torch_engine import TorchEngine
from verifier.errors import ShapeError, SpecError
from verifier.graph.ir import Graph
from verifier.graph.load import load_network
from verifier.outcome import Soundness
from verifier.spec.exact import clause_margin
from verifier.spec.problem import Clause, misclassified
from verifier.spec.replay import Replay

#: Share of a row's terms above which its value in float64 is positive for certain.
CLEARLY = 2.0**-40


@dataclass(frozen=True)
class Rows:
    """Margins that must all stay positive: coeffs [S, N_out] @ y > 0 keeps the class.

    Attributes:
        rivals: int [S], the class each row guards against.
    """

    coeffs: np.ndarray
    rivals: np.ndarray

    def clauses(self) -> tuple[Clause, ...]:
        """One unsafe clause a row: margin <= 0, so ties count as mistakes."""
        return tuple(self.clause(row) for row in range(len(self.coeffs)))

    def clause(self, row: int) -> Clause:
        """The clause of one row."""
        return Clause(self.coeffs[row][None], np.zeros(1), np.zeros(1, dtype=bool))


class Classifier:
    """A network as a classifier: the largest output wins; one output z means two classes, 1 where z > 0.

    Args:
        network: an ONNX or .nnet file, or a Graph. ONNX files are replayed in ONNX Runtime.
        device: where bounds are computed.
        soundness: what proofs shall hold for.
    Attributes:
        graph, engine, classes.
    """

    def __init__(
        self,
        network: str | os.PathLike[str] | Graph,
        *,
        device: str = "cpu",
        soundness: Soundness = Soundness.IEEE_FLOAT,
    ):
        is_graph = isinstance(network, Graph)
        self.graph = network if isinstance(network, Graph) else load_network(os.fspath(network))
        self.source = self.graph.source if is_graph else os.fspath(network)  # type: ignore[arg-type]
        self.soundness = soundness
        self.engine = TorchEngine(self.graph, device=device, soundness=soundness)
        self._replay = Replay(network if not is_graph and ".onnx" in str(self.source) else self.graph)
        self.single = self.graph.output_size == 1
        self.classes = 2 if self.single else self.graph.output_size

    @cached_property
    def native(self) -> NativeEngine | None:
        """The compiled engine with torch's threads; None on another device or where it does not cover the network."""
        if self.engine.device.type != "cpu" or not supports(self.graph):
            return None
        return NativeEngine(self.graph, threads=torch.get_num_threads(), soundness=self.soundness)

    @contextmanager
    def until(self, deadline: float) -> Iterator[None]:
        """Within a `with` block the engines hurry towards a time.monotonic() value; they forget it afterwards."""
        engines = [engine for engine in (self.engine, self.native) if engine is not None]
        before = [engine.deadline for engine in engines]
        for engine in engines:
            engine.deadline = deadline
        try:
            yield
        finally:
            for engine, old in zip(engines, before, strict=True):
                engine.deadline = old

    def evaluate(self, points: np.ndarray) -> np.ndarray:
        """Outputs [P, N_out] at points [P, N_in] in an engine's arithmetic, for candidates not replayed yet."""
        return (self.native or self.engine).evaluate(points)

    def deployed(self, x: np.ndarray) -> np.ndarray:
        """x in the program's number type, flat float64 [N_in] or [P, N_in]."""
        with np.errstate(over="ignore"):
            return np.asarray(x).astype(self.graph.dtype).astype(np.float64)

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """Outputs [N_out] of the deployed program at one flat input, float64."""
        return self._replay.run(x.astype(self.graph.dtype)).astype(np.float64)

    def classify(self, outputs: np.ndarray) -> int:
        """The class of outputs [N_out]; -1 where they hold NaN."""
        if np.isnan(outputs).any():
            return -1
        return int(outputs[0] > 0) if self.single else int(outputs.argmax())

    def rows(self, label: int, target: int | None = None) -> Rows:
        """Margins of `label` over every other class, or over `target` alone.

        Raises:
            SpecError: classes out of range, or a target that is the label.
        """
        if target is not None and target == label:
            raise SpecError(f"target: expected a class other than the label {label}")
        if not self.single:
            clauses = misclassified(label, self.classes, target)
            coeffs = np.concatenate([c.coeffs for c in clauses])
            return Rows(coeffs, coeffs.argmin(axis=1))
        if not 0 <= label < 2 or (target is not None and not 0 <= target < 2):
            raise SpecError(f"label {label} or target {target}: a network with one output has classes 0 and 1")
        return Rows(np.array([[1.0 if label else -1.0]]), np.array([1 - label]))

    def unsafe(self, rows: Rows, outputs: np.ndarray) -> int | None:
        """The rival that the outputs [N_out] reach, compared exactly; None where all margins hold."""
        with np.errstate(invalid="ignore"):
            value, size = rows.coeffs @ outputs, np.abs(rows.coeffs) @ np.abs(outputs)
            open_rows = np.flatnonzero(~(value > CLEARLY * size)).tolist()
        for row in open_rows:
            if clause_margin(rows.clause(row), outputs)[0]:
                return int(rows.rivals[row])
        return None

    def ask(self, x: np.ndarray, label: int | None, target: int | None) -> tuple[int, int, Rows, bool]:
        """What a certificate for flat x [N_in] is about: label, predicted class, margins, and whether they hold at x.

        Args:
            label: the class to hold; None: the one the program gives.
        Raises:
            SpecError: see `rows`.
        """
        outputs = self.outputs(x)
        predicted = self.classify(outputs)
        label = predicted if label is None else label
        rows = self.rows(label, target)
        wrong = self.unsafe(rows, outputs) is not None or predicted == -1 or not np.isfinite(outputs).all()
        return label, predicted, rows, not (wrong or (target is None and predicted != label))

    def flat(self, x: np.ndarray, where: str = "input") -> np.ndarray:
        """One input of any shape as float64 [N_in].

        Raises:
            ShapeError: the wrong number of features; says both sizes and the network's input shape.
        """
        x = np.asarray(x)
        if x.size != self.graph.input_size:
            shapes = ", ".join(str(list(self.graph[name].shape)) for name in self.graph.inputs)
            raise ShapeError(
                f"{where}: expected {self.graph.input_size} features, the network's input {shapes}, "
                f"got {list(x.shape)}; reshape the data or choose the network it was made for"
            )
        return np.asarray(x, dtype=np.float64).reshape(-1)


class GraphScores(torch.nn.Module):
    """The engine's own evaluation as a torch module, for gradient attacks: [R, N_in] -> [R, classes].

    Args:
        columns: outputs to return, in this order; None for all.
    """

    def __init__(self, engine: TorchEngine, columns: tuple[int, ...] | None = None):
        super().__init__()
        self._network, self._columns = engine.network, columns
        # A parameter says to attacks which dtype and device inputs must have.
        self.register_buffer("kind", torch.zeros(1, dtype=engine.dtype, device=engine.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Outputs at a batch of flat inputs."""
        outputs = self._network.evaluate(x)
        return outputs if self._columns is None else outputs[:, list(self._columns)]
