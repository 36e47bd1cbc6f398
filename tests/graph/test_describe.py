"""`describe`: the counts are those of the file, JSON and text say the same."""

import json

from tests.graph.onnx_models import Case, Var, model_of, weights
from verifier.graph.describe import describe
from verifier.graph.onnx.importer import import_onnx
from verifier.graph.passes import simplify


def graph_of(case):
    return simplify(import_onnx(model_of(case).SerializeToString(), source="made.onnx"))


def test_counts_and_shapes_of_a_convolution():
    case = Case("Conv", [Var((1, 3, 7, 6)), weights(4, 3, 3, 2), weights(4)])
    description = describe(graph_of(case))
    assert (description.parameters, description.neurons) == (4 * 3 * 3 * 2 + 4, 0)
    assert description.inputs == (("in0", (1, 3, 7, 6)),) and description.outputs == (("out0", (1, 4, 5, 5)),)
    assert description.operators == {"Conv": 1} and description.dtype == "float32"


def test_neurons_are_the_nonlinear_results():
    assert describe(graph_of(Case("Relu", [Var((2, 3))]))).neurons == 6
    assert describe(graph_of(Case("Flatten", [Var((2, 3))]))).neurons == 0


def test_text_and_json_say_the_same():
    description = describe(graph_of(Case("Gelu", [Var((3, 5))], opset=20)))
    text, data = str(description), json.loads(json.dumps(description.to_json()))
    for word in ("made.onnx", "in0 [3,5] float32", "out0 [3,5]", "15 nonlinear", "Gelu"):
        assert word in text
    assert data["neurons"] == 15 and data["inputs"] == [{"name": "in0", "shape": [3, 5]}]
    assert [n["operator"] for n in data["nodes"]] == ["Input", "Gelu"]
