"""Steps recorded as CUDA graphs: they change what the step changes, and those that wait for the GPU are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from native_nets import chain

from verifier.bounds import slopes
from verifier.bounds.repeated import Repeated
from verifier.bounds.slopes import Ascent, SlopeSpace
from verifier.bounds.torch_engine import TorchEngine

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_every_run_is_one_step() -> None:
    count, square = (torch.zeros((), device="cuda") for _ in range(2))

    def step() -> None:
        count.add_(1)
        square.copy_(count * count)

    repeated = Repeated(step)
    for k in range(1, 6):
        assert repeated.run()
        assert (float(count), float(square)) == (k, k * k)


def test_a_step_that_waits_is_refused() -> None:
    x = torch.ones(3, device="cuda")
    repeated = Repeated(lambda: x.mul_(float(x.sum())))
    assert not repeated.run() and not repeated.run()
    assert x.tolist() == [1, 1, 1]
    assert torch.cuda.get_sync_debug_mode() == 0


@pytest.mark.parametrize("op", [("Relu", {}), ("LeakyRelu", {"alpha": 0.1})])
def test_recorded_ascents_find_what_others_find(
    op: tuple[str, dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    graph = chain(rng, [4, 30, 30, 3], op[0], **op[1])
    engine = TorchEngine(graph, device="cuda", dtype=torch.float64)
    lower, upper = (torch.full((1, 4), x, dtype=torch.float64, device="cuda") for x in (-0.5, 0.5))
    found = engine.enclose(lower, upper)
    space = SlopeSpace(
        engine.network, found.box, {n: engine.open_neurons(n, found.box) for n in engine.network.bounded}
    )
    rows = engine.network.split_rows(torch.eye(3, dtype=torch.float64, device="cuda").unsqueeze(0))
    ascent = Ascent(engine.network, space, rows, found.box, lower, upper)
    start = space.start(found.box).expand(-1, 3, -1).clone()
    runs, recorded = [], []
    monkeypatch.setattr(
        slopes,
        "Repeated",
        lambda step: recorded.append(Repeated(step)) or recorded[-1],  # type: ignore[func-returns-value]
    )
    for worth in (6, 1000):
        monkeypatch.setattr(slopes, "WORTH_RECORDING", worth)
        free, _ = ascent.run(start, None, 20, lambda best: False)
        runs.append(ascent.evaluate(free, None, space.fixed_planes(found.box), rigorous=True)[0])
    first, _, _, _ = ascent.evaluate(start, None, space.fixed_planes(found.box), rigorous=True)
    assert [r.run() for r in recorded] == [True]
    assert torch.allclose(*runs, rtol=1e-9) and (runs[0] >= first).all() and (runs[0] > first).any()
