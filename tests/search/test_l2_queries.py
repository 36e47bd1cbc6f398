"""l2 questions are decided without torch where the compiled engine covers the network."""

import numpy as np
import pytest

from verifier.api import verify
from verifier.graph.ir import GraphBuilder
from verifier.outcome import Verdict
from verifier.settings import Settings
from verifier.spec.problem import classification_problem
from verifier.spec.query import query_of


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("share", "verdict"), [(0.995, Verdict.UNSAT), (1.005, Verdict.SAT)])
def test_distances_of_folded_linear_classifiers(seed: int, share: float, verdict: Verdict) -> None:
    """relu(z) - relu(-z) = z, so the network is linear, its relaxation is not, and neurons have to be split."""
    rng = np.random.default_rng(seed)
    first = np.float32(rng.normal(size=(80, 4)))
    last = np.float32(rng.normal(size=(4, 3)))
    weight = first.astype(float) @ last.astype(float)
    builder = GraphBuilder()
    x = builder.add("Input", (), (1, 80), "x")
    z = builder.add("Dense", (x,), (1, 8), "z", weight=np.concatenate([first, -first], 1), bias=np.zeros(8, np.float32))
    h = builder.add("Relu", (z,), (1, 8), "h")
    y = builder.add("Dense", (h,), (1, 3), "y", weight=np.concatenate([last, -last]), bias=np.zeros(3, np.float32))
    graph = builder.finish(("x",), (y,))
    center = np.float64(np.float32(rng.normal(size=80)))
    scores = center @ weight
    label = int(scores.argmax())
    exact = min(
        (scores[label] - scores[k]) / np.linalg.norm(weight[:, label] - weight[:, k]) for k in range(3) if k != label
    )
    problem = classification_problem(center, share * exact, 2.0, label, 3)
    report = verify(graph, query_of(graph, problem), Settings(timeout_s=60, threads=1))
    assert report.verdict is verdict
    assert report.engine == "native"
