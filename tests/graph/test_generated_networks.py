"""Random ONNX graphs and properties: the importer agrees with ONNX Runtime, bounds hold, verdicts do not lie."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from tests.graph.onnx_models import run_onnx, variable, whole_model
from verifier.api import verify
from verifier.bounds.torch_engine import TorchEngine
from verifier.graph.evaluate import evaluate
from verifier.graph.load import load_network
from verifier.outcome import Verdict
from verifier.settings import Settings
from verifier.spec.problem import Case, Clause, InputSet, Problem
from verifier.spec.query import query_of

UNARY = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Softplus", "Elu", "Abs", "Neg", "Sin", "Erf", "Identity")
BINARY = ("Add", "Sub", "Mul", "Min", "Max", "Concat")
INPUTS = 3


@dataclass
class Drawn:
    """A graph on its way: its nodes and weights, and the vectors [1, n] it has so far."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    vectors: list[tuple[str, int]] = field(default_factory=lambda: [("x", INPUTS)])

    def weight(self, value: np.ndarray, dtype: str = "float32") -> str:
        self.weights.append(numpy_helper.from_array(value.astype(dtype), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def node(self, op: str, inputs: list[str], size: int, **attrs: object) -> tuple[str, int]:
        self.vectors.append((f"v{len(self.vectors)}", size))
        self.nodes.append(helper.make_node(op, inputs, [self.vectors[-1][0]], **attrs))
        return self.vectors[-1]

    def dense(self, source: tuple[str, int], size: int) -> tuple[str, int]:
        w = self.weight(self.rng.normal(size=(size, source[1])) / np.sqrt(source[1]))
        return self.node("Gemm", [source[0], w, self.weight(self.rng.normal(size=size) / 3)], size, transB=1)

    def binary(self, op: str, one: tuple[str, int], other: tuple[str, int]) -> tuple[str, int]:
        if op == "Concat":
            return self.node(op, [one[0], other[0]], one[1] + other[1], axis=1)
        if one[1] != other[1]:
            other = self.dense(other, one[1])
        return self.node(op, [one[0], other[0]], one[1])

    def image(self, source: tuple[str, int], pool: str) -> tuple[str, int]:
        """A convolution, batch normalisation and pooling over the vector as a picture of height 2."""
        pixels = self.dense(source, 8)
        shape = self.weight(np.array([1, 1, 2, 4]), "int64")
        kernel = self.weight(self.rng.normal(size=(2, 1, 2, 2)))
        norm = [self.weight(v) for v in (self.rng.random(2) + 0.5, self.rng.normal(size=2), self.rng.normal(size=2))]
        spread = self.weight(self.rng.random(2) + 0.5)
        at = len(self.vectors)
        parts = [f"i{at}_{k}" for k in range(4)]
        self.nodes += [
            helper.make_node("Reshape", [pixels[0], shape], [parts[0]]),
            helper.make_node("Conv", [parts[0], kernel], [parts[1]], pads=[0, 0, 1, 1]),
            helper.make_node("BatchNormalization", [parts[1], *norm, spread], [parts[2]]),
            helper.make_node(pool, [parts[2]], [parts[3]], kernel_shape=[2, 2], strides=[1, 2]),
        ]
        return self.node("Flatten", [parts[3]], 4)


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """A graph with skips, of up to seven steps that hypothesis chooses; two outputs."""
    graph = Drawn(np.random.default_rng(draw(st.integers(0, 2**32 - 1))))
    for _ in range(draw(st.integers(1, 7))):
        source = graph.vectors[draw(st.integers(0, len(graph.vectors) - 1))]
        kind = draw(st.sampled_from(("dense", "unary", "binary", "softmax", "image")))
        if kind == "dense":
            graph.dense(source, draw(st.integers(1, 5)))
        elif kind == "unary":
            graph.node(draw(st.sampled_from(UNARY)), [source[0]], source[1])
        elif kind == "binary":
            other = graph.vectors[draw(st.integers(0, len(graph.vectors) - 1))]
            graph.binary(draw(st.sampled_from(BINARY)), source, other)
        elif kind == "softmax":
            graph.node("Softmax", [source[0]], source[1], axis=1)
        else:
            graph.image(source, draw(st.sampled_from(("AveragePool", "MaxPool"))))
    out = graph.dense(graph.vectors[-1], 2)
    return whole_model(graph.nodes, [variable("x", 1, INPUTS)], [out[0]], graph.weights)


def test_outputs_that_do_not_depend_on_the_input(tmp_path) -> None:
    graph = Drawn(np.random.default_rng(0))
    one = graph.dense(graph.vectors[-1], 1)
    out = graph.dense(graph.node("Softmax", [one[0]], 1, axis=1), 2)
    path = tmp_path / "constant.onnx"
    path.write_bytes(whole_model(graph.nodes, [variable("x", 1, INPUTS)], [out[0]], graph.weights).SerializeToString())
    engine = TorchEngine(load_network(str(path)))
    assert np.array_equal(engine.gradient(np.ones((2, INPUTS)), np.ones((2, 2))), np.zeros((2, INPUTS)))


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    model=networks(),
    seed=st.integers(0, 1000),
    radius=st.sampled_from((0.0, 0.02, 0.3)),
    share=st.sampled_from((0.5, 0.9, 1.0, 1.1, 1.5, 3.0)),
)
def test_generated(model: onnx.ModelProto, seed: int, radius: float, share: float, tmp_path_factory) -> None:
    """One network, one box, one limit below, among or above the outputs that were sampled there."""
    path = tmp_path_factory.mktemp("generated") / "net.onnx"
    path.write_bytes(model.SerializeToString())
    graph = load_network(str(path))
    rng = np.random.default_rng(seed)
    center = rng.normal(size=INPUTS)
    lower, upper = (np.float64(np.float32(center + d)) for d in (-radius, radius))
    points = np.float32(lower + rng.random((64, INPUTS)) * (upper - lower)).clip(np.float32(lower), np.float32(upper))
    deployed = np.stack([run_onnx(model, {"x": p[None]}) for p in points[:16]])
    assert np.allclose(evaluate(graph, points[:16]), deployed, rtol=1e-4, atol=1e-5)

    row = np.array([1.0, -1.0])
    bounds = TorchEngine(graph).bound_boxes(lower[None], upper[None], np.stack([row, -row]))
    assert bounds.lower[0, 0] <= (deployed @ row).min()
    assert -bounds.lower[0, 1] >= (deployed @ row).max()

    sampled = deployed @ row
    limit = sampled.min() - 1e-3 + (1 - share) * 2 * (float(np.ptp(sampled)) + 1e-2)
    clause = Clause(row[None], np.array([limit]), np.array([False]))
    query = query_of(graph, Problem((Case(InputSet(lower, upper), (clause,)),), 2))
    report = verify(path, query, Settings(timeout_s=3, threads=1))
    if (sampled <= limit).any():
        assert report.verdict is not Verdict.UNSAT, report.reason
    if limit < bounds.lower[0, 0]:
        assert report.verdict is not Verdict.SAT, report.reason
