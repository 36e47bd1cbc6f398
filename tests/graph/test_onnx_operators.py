"""Every ONNX operator in the table, in its variants, agrees with ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest

from tests.graph.onnx_models import Case, Var, model_of, run_onnx
from tests.graph.operator_cases import CASES
from verifier.graph.evaluate import evaluate
from verifier.graph.onnx.importer import import_onnx
from verifier.graph.passes import simplify


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_operator_agrees_with_onnx_runtime(case: Case) -> None:
    model = model_of(case)
    graph = import_onnx(model.SerializeToString(), source=case.name)
    rng = np.random.default_rng(7)
    variables = {f"in{i}": v for i, v in enumerate(case.operands) if isinstance(v, Var)}
    feeds = {n: rng.uniform(v.low, v.high, size=v.shape).astype(v.dtype) for n, v in variables.items()}
    expected = run_onnx(model, feeds)
    flat = np.concatenate([feeds[name].reshape(-1) for name in graph.input_names]).astype(np.float64)
    size = max(1.0, float(np.max(np.abs(expected), initial=0.0)))
    for candidate in (graph, simplify(graph)):
        got = evaluate(candidate, flat)[0]
        assert got.shape == expected.shape
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6 * size)
