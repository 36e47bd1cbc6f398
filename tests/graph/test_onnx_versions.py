"""Every case again at every version of its operator from opset 7 on, and at the newest opset."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.graph.onnx_models import Case, Var, model_of, run_onnx
from tests.graph.operator_cases import CASES
from tests.graph.test_operator_chains import operators_of_chains
from verifier.graph.evaluate import evaluate
from verifier.graph.onnx.importer import import_onnx
from verifier.graph.onnx.table import LOWERINGS
from verifier.graph.passes import simplify

#: What the verifier promises to read.
PROMISED = {
    "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "Neg", "Pow", "Sqrt", "Exp", "Log", "Reciprocal", "Abs", "Sign",
    "Floor", "Min", "Max", "Clip", "Relu", "LeakyRelu", "PRelu", "Elu", "Softplus", "Sigmoid", "HardSigmoid", "Tanh",
    "Atan", "Sin", "Cos", "Erf", "Gelu", "Softmax", "LayerNormalization", "BatchNormalization", "Conv",
    "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceSum", "ReduceMean", "ReduceMax",
    "ReduceMin", "Concat", "Split", "Slice", "Gather", "ScatterND", "Reshape", "Flatten", "Squeeze", "Unsqueeze",
    "Transpose", "Expand", "Tile", "Pad", "Resize", "Upsample", "Where", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "ArgMax", "Identity", "Constant", "ConstantOfShape", "Shape", "Range", "Cast", "Dropout",
}  # fmt: skip
HISTORY: dict[str, set[int]] = {}
for _schema in onnx.defs.get_all_schemas_with_history():
    if _schema.domain == "" and not _schema.deprecated:
        HISTORY.setdefault(_schema.name, set()).add(_schema.since_version)


def newest() -> int:
    """The newest opset that ONNX Runtime here can run."""
    for version in range(onnx.defs.onnx_opset_version(), 7, -1):
        if _runs(replace(CASES[0], opset=version)):
            return version
    raise AssertionError("no opset runs")


def _runs(case: Case) -> bool:
    """True when the case is legal at its opset: ONNX Runtime checks it and takes it."""
    try:
        onnxruntime.InferenceSession(model_of(case).SerializeToString(), _quiet(), providers=["CPUExecutionProvider"])
    except Exception:
        return False
    return True


def _quiet() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return options


NEWEST = newest()


def versions(case: Case) -> list[int]:
    """One opset, from 7 to the newest, for every definition of the operator but the case's own."""

    def definition(opset: int) -> int:
        return max(v for v in HISTORY[case.op] if v <= opset)

    candidates = {v for v in HISTORY[case.op] if 7 < v <= NEWEST} | {max(7, min(HISTORY[case.op]))}
    return sorted(v for v in candidates if definition(v) != definition(case.opset))


@pytest.mark.parametrize("case", [case for case in CASES if versions(case)], ids=lambda case: case.name)
def test_every_version_agrees_with_onnx_runtime(case: Case) -> None:
    rng = np.random.default_rng(7)
    variables = {f"in{i}": v for i, v in enumerate(case.operands) if isinstance(v, Var)}
    feeds = {n: rng.uniform(v.low, v.high, size=v.shape).astype(v.dtype) for n, v in variables.items()}
    for version in versions(case):
        model = model_of(replace(case, opset=version))
        try:
            expected = run_onnx(model, feeds)
        except Exception:  # not legal at that opset; ONNX Runtime's errors have no common class
            continue
        graph = simplify(import_onnx(model.SerializeToString(), source=f"{case.name} at opset {version}"))
        flat = np.concatenate([feeds[name].reshape(-1) for name in graph.input_names]).astype(np.float64)
        size = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
        np.testing.assert_allclose(evaluate(graph, flat)[0], expected, rtol=0, atol=2e-6 * size, err_msg=f"{version}")


def test_every_promised_operator_is_read_and_has_a_case() -> None:
    tested = {case.op for case in CASES} | operators_of_chains()
    assert set(LOWERINGS) >= PROMISED
    assert sorted(set(LOWERINGS) - tested) == [], "operators without a case"


def test_every_promised_operator_runs_at_the_newest_opset() -> None:
    """Upsample ended with opset 9; everything else is still there."""
    assert NEWEST >= 22
    still = {case.op for case in CASES if _runs(replace(case, opset=NEWEST))} | operators_of_chains()
    assert PROMISED - still == {"Upsample"}
