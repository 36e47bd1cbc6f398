"""Smoothed classifiers against linear classifiers whose radii are known exactly."""

import numpy as np
import pytest
import torch
from scipy import stats

from verifier.certify.smoothing import (
    Ablation,
    Gaussian,
    Laplace,
    Sampling,
    SmoothedClassifier,
    Uniform,
    batched,
    denoised,
)
from verifier.errors import ShapeError, SpecError

WEIGHT = np.array([3.0, -4.0])


def half_plane(batch):
    return (batch @ WEIGHT - 1.0 > 0).astype(np.int64)


class LinearModule(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[0.0, 0.0], [3.0, -4.0]]))
            self.layer.bias.copy_(torch.tensor([0.0, -1.0]))
        self.eval()

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize("classifier", [half_plane, LinearModule()], ids=["callable", "torch"])
def test_linear_classifier_radius_is_the_exact_distance(classifier):
    x = np.array([0.6, -0.1])
    exact = (x @ WEIGHT - 1.0) / np.linalg.norm(WEIGHT)
    samples = Sampling(estimate=40_000, alpha=0.001, seed=5)
    smoothed = SmoothedClassifier(classifier, Gaussian(0.25), samples)
    found = smoothed.certify(x)
    assert found.label == 1 and found.norm == 2
    assert found.radius <= exact
    assert found.radius == pytest.approx(exact, rel=0.06)  # five standard errors of the vote
    assert found.radii["differential-privacy"] < found.radii["renyi"] < found.radius
    assert smoothed.predict(x) == 1
    first = smoothed.certify_first_order(x)
    assert first.radius <= exact and first.radius == pytest.approx(exact, rel=0.08)


def test_certificates_hold_at_the_promised_rate():
    """The p bound exceeds the truth in at most a share alpha of the runs (alpha = 0.2 makes it visible)."""
    x = np.array([0.6, -0.1])
    truth = stats.norm.cdf((x @ WEIGHT - 1.0) / np.linalg.norm(WEIGHT) / 0.25)
    wrong = 0
    for seed in range(200):
        settings = Sampling(select=10, estimate=200, alpha=0.2, seed=seed)
        wrong += SmoothedClassifier(half_plane, Gaussian(0.25), settings).certify(x).p_lower > truth
    # Binomial(200, 0.2) exceeds 62 with probability below 1e-4.
    assert wrong <= 62


def test_flat_classifier_gains_from_the_gradient():
    def slab(batch):
        return (np.abs(batch[:, 0]) <= 1.0).astype(np.int64)

    smoothed = SmoothedClassifier(slab, Gaussian(0.5), Sampling(estimate=100_000))
    found = smoothed.certify_first_order(np.zeros(2))
    assert found.radius > found.radii["neyman-pearson"]
    exact_at_radius = stats.norm.cdf((1 - found.radius) / 0.5) - stats.norm.cdf((-1 - found.radius) / 0.5)
    assert exact_at_radius >= 0.5


def test_l1_and_l0_noises():
    def first_feature(batch):
        return (batch[:, 0] > 0).astype(np.int64)

    x = np.full(20, 0.3)
    settings = Sampling(estimate=20_000)
    uniform = SmoothedClassifier(first_feature, Uniform(0.5), settings).certify(x)
    # P[0.3 + U(-.5, .5) > 0] = 0.8: the l1 radius 2 * 0.5 * 0.3 equals the distance.
    assert uniform.norm == 1 and uniform.radius <= 0.3 and uniform.radius == pytest.approx(0.3, abs=0.02)
    laplace = SmoothedClassifier(first_feature, Laplace(0.2), settings).certify(x)
    assert laplace.radius <= 0.3 and laplace.radius == pytest.approx(0.3, abs=0.02)

    def any_left(batch):
        return (batch.max(axis=1) > 0.1).astype(np.int64)

    ablation = SmoothedClassifier(any_left, Ablation(kept=2, fill=0.0), settings).certify(x)
    # All votes agree; C(18 - ..., 2) decides: 1.5 - p < C(20 - r, 2)/190 holds up to r = 5.
    assert ablation.norm == 0 and ablation.radius == 5


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_ablation_keeps_exactly_the_requested_features(kind):
    class Recorder(torch.nn.Module):
        def forward(self, x):
            seen.append(x.reshape(len(x), 3, -1).numpy().copy())
            return torch.zeros(len(x), 2)

    def record(batch):
        seen.append(batch.reshape(len(batch), 3, -1).copy())
        return np.zeros(len(batch), dtype=np.int64)

    seen = []
    classifier = Recorder().eval() if kind == "torch" else record
    noise = Ablation(kept=4, fill=-1.0, grouped_axis=0)
    image = np.ones((3, 4, 4), dtype=np.float32)
    SmoothedClassifier(classifier, noise, Sampling(select=1, estimate=50)).certify(image)
    kept = np.concatenate(seen) == 1.0
    assert np.all(kept == kept[:, :1]), "channels of a pixel must go together"
    assert np.all(kept[:, 0].sum(axis=1) == 4)
    assert len(np.unique(kept[:, 0], axis=0)) > 10


def test_abstains_when_classes_tie():
    def coin(batch):
        return (batch[:, 0] > 0).astype(np.int64)

    smoothed = SmoothedClassifier(coin, Gaussian(1.0), Sampling(estimate=500))
    found = smoothed.certify(np.zeros(1))
    assert found.abstained and found.radius == 0.0 and set(found.radii.values()) == {0.0}
    assert smoothed.predict(np.zeros(1)) is None
    assert "no class" in found.statement


def test_nan_scores_never_win_a_vote():
    def broken(batch):
        return np.full((len(batch), 3), np.nan)

    smoothed = SmoothedClassifier(broken, Gaussian(1.0), Sampling(estimate=500))
    assert smoothed.certify(np.zeros(2)).abstained
    assert smoothed.predict(np.zeros(2)) is None


def test_seeded_and_independent_of_order_with_progress():
    calls = []
    settings = Sampling(estimate=3000, seed=9, memory_bytes=40_000)
    smoothed = SmoothedClassifier(half_plane, Gaussian(0.5), settings)
    first = smoothed.certify(np.array([0.6, 0.1]), progress=lambda done, total: calls.append((done, total)))
    second = smoothed.certify(np.array([0.6, 0.1]))
    assert first == second
    assert calls[-1] == (3100, 3100) and len(calls) > 5
    other = SmoothedClassifier(half_plane, Gaussian(0.5), Sampling(estimate=3000, seed=10))
    assert other.certify(np.array([0.6, 0.1])).top_count != first.top_count


def test_batch_halves_when_memory_runs_out():
    sizes = []

    def limited(batch):
        if len(batch) > 100:
            raise MemoryError("too large")
        sizes.append(len(batch))
        return half_plane(batch)

    found = SmoothedClassifier(limited, Gaussian(0.1), Sampling(estimate=1000)).certify(np.array([1.0, 0.0]))
    assert found.label == 1 and found.samples == 1000 and sum(sizes) == 1100


def test_denoiser_of_another_kind_goes_first():
    truth = np.array([0.6, -0.1])

    def denoise(batch):
        return truth + 0.1 * (batch - truth)

    plain = SmoothedClassifier(LinearModule(), Gaussian(1.0), Sampling(estimate=2000))
    helped = SmoothedClassifier(denoised(denoise, LinearModule()), Gaussian(1.0), Sampling(estimate=2000))
    assert helped.certify(truth).radius > 3 * plain.certify(truth).radius
    with pytest.raises(ShapeError, match="denoiser"):
        SmoothedClassifier(denoised(lambda b: b[:, :1], half_plane), Gaussian(1.0)).certify(truth)


def test_onnx_session_with_a_fixed_batch(tmp_path):
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.array([[0.0, 3.0], [0.0, -4.0]], dtype=np.float32), "w")
    bias = numpy_helper.from_array(np.array([0.0, -1.0], dtype=np.float32), "b")
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [7, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [7, 2])],
        [weight, bias],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    settings = Sampling(estimate=5000, seed=2)
    x = np.array([0.6, -0.1], np.float32)
    through_session = SmoothedClassifier(session, Gaussian(0.25), settings).certify(x)
    through_callable = SmoothedClassifier(half_plane, Gaussian(0.25), settings).certify(x)
    assert through_session.label == 1
    assert abs(through_session.top_count - through_callable.top_count) <= 2


def test_malformed_inputs_are_refused():
    with pytest.raises(SpecError, match="NaN"):
        SmoothedClassifier(half_plane, Gaussian(1.0)).certify(np.array([np.nan, 0.0]))
    with pytest.raises(SpecError, match="sigma"):
        Gaussian(0.0)
    with pytest.raises(SpecError, match="training mode"):
        batched(LinearModule().train())
    with pytest.raises(SpecError, match="classifier"):
        batched(3)
    with pytest.raises(SpecError, match="sampling"):
        SmoothedClassifier(half_plane, Gaussian(1.0), Sampling(alpha=1.0))
    with pytest.raises(ShapeError, match="scores"):
        SmoothedClassifier(lambda b: np.zeros((len(b), 2, 2)), Gaussian(1.0)).certify(np.zeros(2))
    with pytest.raises(SpecError, match="keeps 5 features of 2"):
        SmoothedClassifier(half_plane, Ablation(5)).certify(np.zeros(2))
    with pytest.raises(SpecError, match="Gaussian"):
        SmoothedClassifier(half_plane, Laplace(1.0)).certify_first_order(np.zeros(2))
