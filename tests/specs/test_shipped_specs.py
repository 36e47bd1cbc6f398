"""The shipped networks and properties: complete, readable, and with the verdicts that are known."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from verifier.api import verify
from verifier.batch.instances import read_instances
from verifier.graph.evaluate import evaluate
from verifier.graph.load import load_network
from verifier.settings import Settings
from verifier.spec.load import load_query

SPECS = Path(__file__).parent.parent.parent / "specs"
INSTANCES = read_instances(SPECS / "instances.csv")
NETWORKS = sorted((SPECS / "onnx").glob("*.onnx"))
EXPECTED = json.loads((SPECS / "expected.json").read_text())


def test_every_file_is_listed_and_every_verdict_known():
    assert {Path(i.spec) for i in INSTANCES} == set((SPECS / "vnnlib").iterdir())
    listed = {path for i in INSTANCES for path in ([i.network] if isinstance(i.network, str) else i.network.values())}
    assert {Path(path) for path in listed} == set(NETWORKS)
    assert {Path(i.vnnlib).stem: i.expected for i in INSTANCES} == EXPECTED
    assert set(EXPECTED.values()) == {"sat", "unsat"}


def test_the_promised_kinds_of_networks_are_there():
    operators = {path.stem: {n.op_type for n in onnx.load(path).graph.node} for path in NETWORKS}
    for name, wanted in {
        "fc": {"Gemm", "Relu"}, "conv": {"Conv"}, "residual": {"Conv", "Add"}, "batchnorm": {"BatchNormalization"},
        "maxpool": {"MaxPool"}, "avgpool": {"AveragePool"}, "sigmoid": {"Sigmoid"}, "tanh": {"Tanh"},
        "leaky": {"LeakyRelu"}, "gelu": {"Gelu", "Erf"}, "attention": {"Softmax", "LayerNormalization", "ReduceMean"},
    }.items():  # fmt: skip
        assert wanted <= operators[name], name
    versions = {path.stem: "(vnnlib-version <2.0>)" in path.read_text() for path in (SPECS / "vnnlib").iterdir()}
    for name in operators.keys() - {"fc_coarse"}:
        mine = [is_2 for stem, is_2 in versions.items() if stem.startswith(f"{name}_")]
        assert True in mine and False in mine, f"{name}: properties in both versions"


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_import_agrees_with_onnx_runtime(path):
    graph = load_network(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (model_input,) = session.get_inputs()
    points = np.random.default_rng(0).random((20, 64), dtype=np.float32)
    ours = evaluate(graph, points)
    for x, y in zip(points, ours, strict=True):
        (theirs,) = session.run(None, {model_input.name: x.reshape(model_input.shape)})
        # Scores near 0 are differences of terms near 10: float32 round-off is relative to those.
        assert np.abs(y - theirs.reshape(-1)).max() <= 1e-5 * max(1.0, np.abs(y).max())


@pytest.mark.parametrize("instance", INSTANCES, ids=lambda i: Path(i.vnnlib).stem)
def test_verdicts(instance):
    report = verify(instance.network, instance.spec, Settings(timeout_s=60, threads=1))
    assert report.verdict.value == instance.expected, report.reason_detail


@pytest.mark.parametrize("name", ["fc_small", "fc_targeted_large", "fc_rows", "fc_range"])
def test_an_exact_program_agrees(name):
    from fill_expected import exact_verdict

    graph = load_network(SPECS / "onnx" / "fc.onnx")
    query = load_query(SPECS / "vnnlib" / f"{name}.vnnlib", graph)
    assert exact_verdict(query, SPECS / "onnx" / "fc.onnx") == EXPECTED[name]


def test_the_exact_program_is_exact():
    """Against enumeration over a fine grid of a two-input network whose minimum lies on a grid point."""
    from exact import ReluProgram

    layers = [(np.array([[1.0, -1.0], [1.0, 1.0]]), np.array([0.0, -0.5])), (np.array([[1.0, -2.0]]), np.array([0.25]))]
    program = ReluProgram(layers, np.array([-1.0, -1.0]), np.array([1.0, 1.0]))
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 81)] * 2), axis=-1).reshape(-1, 2)
    values = np.maximum(grid @ layers[0][0].T + layers[0][1], 0) @ layers[1][0].T + layers[1][1]
    assert program.minimum({0: 1.0}) == pytest.approx(values.min(), abs=1e-6)
    program.require({0: 1.0, 1: 1.0}, 0.0)
    inside = values[grid.sum(axis=1) <= 1e-12]
    assert program.minimum({0: 1.0}) == pytest.approx(inside.min(), abs=1e-6)
