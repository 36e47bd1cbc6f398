"""Every ONNX operator case: what ONNX Runtime computes in float32 never leaves the bounds. Tolerance zero."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from tests.graph.onnx_models import Case, Var, model_of
from tests.graph.operator_cases import CASES
from verifier.bounds.domains import DomainEngine
from verifier.bounds.torch_engine import TorchEngine
from verifier.graph.onnx.importer import import_onnx
from verifier.graph.passes import simplify

POINTS = 40


def session_of(case: Case) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model_of(case).SerializeToString(), options, providers=["CPUExecutionProvider"])


def box_of(case: Case, dtype: str, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A box in the range the case's inputs are drawn from, its ends representable."""
    variables = [v for v in case.operands if isinstance(v, Var)]
    low = np.concatenate([np.full(int(np.prod(v.shape)), v.low) for v in variables])
    high = np.concatenate([np.full(int(np.prod(v.shape)), v.high) for v in variables])
    half = 0.5 * share * (high - low)
    center = rng.uniform(low + half, high - half)
    return (center - half).astype(dtype).astype(np.float64), (center + half).astype(dtype).astype(np.float64)


def input_dtype(case: Case) -> str:
    return next(v.dtype for v in case.operands if isinstance(v, Var))


def outputs(case: Case, session: onnxruntime.InferenceSession, points: np.ndarray) -> np.ndarray:
    """ONNX Runtime's outputs [P, N_out] at flat points [P, N_in]."""
    variables = {f"in{i}": v for i, v in enumerate(case.operands) if isinstance(v, Var)}
    ends = np.cumsum([int(np.prod(v.shape)) for v in variables.values()])[:-1]
    found = []
    for point in points:
        parts = np.split(point, ends)
        feeds = {n: p.astype(v.dtype).reshape(v.shape) for (n, v), p in zip(variables.items(), parts, strict=True)}
        found.append(np.concatenate([np.asarray(v).reshape(-1).astype(np.float64) for v in session.run(None, feeds)]))
    return np.array(found)


@pytest.mark.parametrize("share", [0.02, 0.6])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_onnx_runtime_never_leaves_the_bounds(case: Case, share: float) -> None:
    graph = simplify(import_onnx(model_of(case).SerializeToString(), source=case.name))
    rng = np.random.default_rng(11)
    lower, upper = box_of(case, input_dtype(case), share, rng)
    points = rng.uniform(lower, upper, size=(POINTS, graph.input_size))
    points[: POINTS // 2] = np.where(rng.random((POINTS // 2, graph.input_size)) < 0.5, lower, upper)
    points = np.clip(points.astype(input_dtype(case)), lower, upper)
    y = outputs(case, session_of(case), points)
    unit = np.eye(graph.output_size)
    engine = TorchEngine(graph)
    bounds = engine.bound_boxes(lower[None], upper[None], np.concatenate([unit, -unit]))
    low, high = np.split(bounds.lower[0], 2)
    assert np.isfinite(low).all() and np.isfinite(high).all(), "no bound at all"
    assert (y >= low).all(), f"below by {np.max(low - y)}"
    assert (y <= -high).all(), f"above by {np.max(y + high)}"
    forms = np.einsum("sn,pn->ps", bounds.coeffs[0], points.astype(np.float64)) + bounds.offset[0]
    size = np.abs(bounds.coeffs[0]) @ np.abs(points).max(axis=0) + np.abs(bounds.offset[0])
    assert (forms - 1e-12 * size <= np.concatenate([y, -y], axis=1)).all()


@pytest.mark.parametrize("case", CASES[::4], ids=lambda case: case.name)
def test_optimised_slopes_never_pass_a_sample(case: Case) -> None:
    graph = simplify(import_onnx(model_of(case).SerializeToString(), source=case.name))
    rng = np.random.default_rng(12)
    lower, upper = box_of(case, input_dtype(case), 0.4, rng)
    points = np.clip(rng.uniform(lower, upper, size=(POINTS, lower.size)).astype(input_dtype(case)), lower, upper)
    y = outputs(case, session_of(case), points)[:, 0]
    engine = TorchEngine(graph)
    low, high = engine.boxes(lower[None], upper[None])
    rows = torch.zeros(1, 1, graph.output_size, dtype=engine.dtype)
    for sign in (1.0, -1.0):
        rows[0, 0, 0] = sign
        found = engine.enclose(low, high)
        domains = DomainEngine(engine, found, low, high, rows, torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool))
        batch = domains.bound(domains.initial(torch.zeros(1, dtype=torch.int64)), 8, lambda: False).batch
        assert (sign * y).min() >= float(batch.margin[0])
