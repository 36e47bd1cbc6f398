"""CLEVER against linear classifiers, whose distances are known, and a fit of known maxima."""

import numpy as np
import pytest
import torch
from scipy import stats

from verifier.certify.clever import CleverSettings, clever, reverse_weibull_location
from verifier.errors import ShapeError, SpecError
from verifier.outcome import Soundness

QUICK = CleverSettings(batches=10, samples=16, runs=2)


def linear(classes=3, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Linear(4, classes).double().eval()


@pytest.mark.parametrize(("norm", "dual"), [(1, np.inf), (2, 2), (np.inf, 1)])
@pytest.mark.parametrize("classes", [2, 3, 8])
def test_linear_classifiers_get_their_exact_distance(norm, dual, classes):
    model, x = linear(classes), np.array([0.3, -0.4, 0.9, 0.1])
    logits = model(torch.tensor(x)).detach().numpy()
    weight, label = model.weight.detach().numpy(), int(logits.argmax())
    exact = {
        k: (logits[label] - logits[k]) / np.linalg.norm(weight[label] - weight[k], dual)
        for k in range(classes)
        if k != label
    }
    found = clever(model, x, norm=norm, radius=100.0, settings=QUICK)
    assert found.label == label and found.targets == pytest.approx(exact, rel=1e-9)
    assert found.score == pytest.approx(min(exact.values()), rel=1e-9)
    assert found.spread == pytest.approx(0.0, abs=1e-9) and not found.saturated
    assert found.soundness is Soundness.HEURISTIC
    default = clever(model, x, norm=norm, settings=QUICK)
    assert default.score == pytest.approx(found.score, rel=1e-9)
    last = max(exact)
    targeted = clever(model, x, norm=norm, target=last, radius=100.0, settings=QUICK)
    assert targeted.score == pytest.approx(exact[last], rel=1e-9) and list(targeted.targets) == [last]


def test_location_of_a_known_law():
    data = stats.weibull_max.rvs(3.0, loc=2.0, scale=0.5, size=400, random_state=1)
    assert reverse_weibull_location(data) == pytest.approx(2.0, abs=0.08)
    assert reverse_weibull_location(data) >= data.max()
    assert reverse_weibull_location(np.full(10, 1.5)) == 1.5
    assert reverse_weibull_location(1e-8 * data) == pytest.approx(1e-8 * reverse_weibull_location(data), rel=1e-6)


def test_spread_and_saturation_are_reported():
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(4, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3)).eval()
    x = np.array([0.5, 0.2, -0.1, 0.4], dtype=np.float32)
    found = clever(model, x, radius=0.5)
    assert found.spread > 0 and len(found.runs) == 3
    assert found.score == pytest.approx(found.runs.mean())
    assert clever(model, x, radius=0.5).runs == pytest.approx(found.runs)
    small = clever(model, x, radius=1e-4, settings=QUICK)
    assert small.saturated and small.score == 1e-4


def test_the_model_is_not_altered():
    model = linear()
    before = [p.clone() for p in model.parameters()]
    clever(model, np.zeros(4), settings=QUICK)
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, model.parameters(), strict=True))


def test_malformed_inputs_are_named():
    model, x = linear(), np.zeros(4)
    with pytest.raises(SpecError, match="norm"):
        clever(model, x, norm=3)
    with pytest.raises(SpecError, match="training mode"):
        clever(linear().train(), x)
    with pytest.raises(SpecError, match="target"):
        clever(model, x, target=9)
    with pytest.raises(SpecError, match="radius"):
        clever(model, x, radius=-1.0)
    with pytest.raises(SpecError, match="NaN"):
        clever(model, np.full(4, np.nan))
    with pytest.raises(SpecError, match="batches"):
        clever(model, x, settings=CleverSettings(batches=2))
    with pytest.raises(ShapeError, match="classes"):
        clever(torch.nn.Flatten(0).eval(), x)
    with pytest.raises(SpecError, match="NaN or infinite"):
        reverse_weibull_location(np.array([1.0, np.inf]))
