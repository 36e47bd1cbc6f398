"""Torch modules attacked through compiled code: which are, which are not, and that the module has the last word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import INF
from torch import Tensor, nn
from torch.nn import functional

from verifier.attack.compiled_victim import CompiledForward
from verifier.attack.model import Model, Preprocessing
from verifier.attack.registry import build
from verifier.attack.stand_in import stand_in
from verifier.attack.threat import LpThreat
from verifier.data.packaged import digits

IMAGES = torch.tensor(digits().x[:24])


def stack(**settings: Any) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, stride=2, padding=1, **settings),
        nn.BatchNorm2d(6),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Sequential(nn.Linear(96, 20), nn.Tanh(), nn.Identity()),
        nn.Linear(20, 10),
    )
    for _ in range(3):
        net(torch.rand(16, 1, 8, 8))  # running statistics
    return net.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("preprocess", [None, Preprocessing(0.3, 0.5)])
def test_a_stack_is_read_and_agrees(dtype: torch.dtype, preprocess: Preprocessing | None) -> None:
    net = stack().to(dtype)
    x = IMAGES.to(dtype)
    model = Model.from_torch(net, preprocess=preprocess)
    found = stand_in(model, x)
    assert found.compiled is not None and found.judge is net and model.compiled is None
    assert torch.allclose(found.scores(x), model.scores(x), atol=1e-5 if dtype == torch.float32 else 1e-12)
    assert found.scores(x).dtype == dtype and torch.equal(found.judged(x), model.scores(x))


class Wrapped(nn.Module):
    """The same module, which torch.fx cannot follow: a choice hangs on the input."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if bool((x < 2).any()) else -self.inner(x)


class Residual(nn.Module):
    """Shortcuts, shapes asked for, functions, parameters used outside layers, and a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.statistics = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.last, self.sign = nn.Linear(128, 10), 1.0

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.first(x))
        for _ in range(2):
            y = y + self.scale * torch.relu(self.statistics(self.inner(y)))
        y = torch.cat([functional.avg_pool2d(y, 2), functional.adaptive_avg_pool2d(y, (4, 4))], dim=1)
        flat = functional.dropout(y, 0.5, self.training).view(x.size(0), y.shape[1] * 16)
        return self.sign * self.last(flat)


def test_a_residual_module_is_read_and_attacked_alike() -> None:
    net = Residual().double().eval()
    x = IMAGES.double()
    found = stand_in(Model.from_torch(net), x)
    assert found.compiled is not None and torch.allclose(found.scores(x), net(x), atol=1e-12)
    assert_attacked_alike("apgd", LpThreat(eps=0.05), net=net)


def test_what_a_residual_module_hangs_on_is_watched() -> None:
    net = Residual().eval()
    model = Model.from_torch(net)
    first = stand_in(model, IMAGES).compiled
    assert stand_in(model, IMAGES).compiled is first
    net.sign = -1.0
    second = stand_in(model, IMAGES)
    assert second.compiled is not None and second.compiled is not first
    assert torch.allclose(second.scores(IMAGES), net(IMAGES), atol=1e-5)
    with torch.no_grad():
        net.scale.mul_(2)
    assert torch.allclose(stand_in(model, IMAGES).scores(IMAGES), net(IMAGES), atol=1e-5)
    net.inner.register_forward_hook(lambda module, args, out: -out)
    assert stand_in(model, IMAGES) is model


class Choosing(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class Remembering(Residual):
    """Counts rows: compiled code would not."""

    rows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows = self.rows + x.shape[0]
        return super().forward(x)


class Collecting(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return super().forward(x)


class Unknown(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.special.expit(x))


class Softened(Residual):
    """A known function with an argument that its lowering does not know."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.add(x, x, out=None))


class Overwriting(Residual):
    """A sum written into a tensor that is used again, which torch.fx takes for a new one."""

    def forward(self, x: Tensor) -> Tensor:
        y = x * 1
        z = y
        z += 1
        return super().forward(y)


@pytest.mark.parametrize("kind", [Choosing, Remembering, Collecting, Unknown, Softened, Overwriting])
def test_modules_that_cannot_be_followed_stay_with_torch(kind: type[Residual]) -> None:
    net = kind().eval()
    model = Model.from_torch(net)
    before = dict(vars(net))
    assert stand_in(model, IMAGES) is model
    assert vars(net) == before and not getattr(net, "seen", [])
    net.train()
    assert stand_in(model, IMAGES) is model


def assert_attacked_alike(
    attack: str, threat: LpThreat, *, net: nn.Module | None = None, targeted: bool = False, **settings: Any
) -> None:
    """Compiled code and torch end alike, in double precision: no sign of a derivative hangs on the order of a sum."""
    net, x = net or stack().double(), IMAGES.double()
    wrapped = Wrapped(net).eval()
    assert stand_in(Model.from_torch(net), x).compiled is not None
    assert stand_in(Model.from_torch(wrapped), x).compiled is None
    y = net(x).argmax(1)
    targets = (y + 3) % 10 if targeted else None
    mine, theirs = (build(attack, **settings)(m, x, y, threat, targets=targets, seed=0) for m in (net, wrapped))
    assert torch.equal(mine.success, theirs.success) and bool(mine.success.any()) and not bool(mine.success.all())
    for counts in ("queries", "gradients", "restarts"):
        assert torch.equal(getattr(mine, counts), getattr(theirs, counts))
    assert torch.allclose(mine.adversarial, theirs.adversarial, atol=1e-6)
    predicted = net(mine.adversarial).argmax(1)
    assert torch.equal(predicted == targets if targets is not None else predicted != y, mine.success)


@pytest.mark.parametrize(
    ("attack", "settings"),
    [
        ("apgd", {}),
        ("square", {"steps": 30}),
        ("fab", {"steps": 10}),
        ("deepfool", {"steps": 10}),
        ("cw", {"steps": 8}),
    ],
)
def test_attacks_on_a_stack_end_as_on_the_wrapped_module(attack: str, settings: dict[str, Any]) -> None:
    assert_attacked_alike(attack, LpThreat(norm=2.0 if attack in ("deepfool", "cw") else INF, eps=0.15), **settings)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(
    "settings", [{}, {"loss": "margin"}, {"restarts": 3, "steps": 10}, {"steps": 1}, {"random_start": False}]
)
def test_whole_ascents_end_as_steps_from_outside(
    settings: dict[str, Any], targeted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, ascend = [], CompiledForward.ascend
    monkeypatch.setattr(CompiledForward, "ascend", lambda *args: whole.append(args) or ascend(*args))
    mask = torch.ones(1, 8, 8, dtype=torch.bool)
    mask[:, :2] = False
    assert_attacked_alike("pgd", LpThreat(eps=0.25 if targeted else 0.15, mask=mask), targeted=targeted, **settings)
    assert len(whole) == 1  # the first starts; later ones stop each other


def spoil_hook(net: nn.Sequential) -> None:
    net[2].register_forward_hook(lambda module, args, out: -out)


def spoil_pre_hook(net: nn.Sequential) -> None:
    net.register_forward_pre_hook(lambda module, args: (1 - args[0],))


def spoil_forward(net: nn.Sequential) -> None:
    net[2].forward = lambda x: -x  # type: ignore[method-assign]


def spoil_class(net: nn.Sequential) -> None:
    class Odd(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return -super().forward(x)

    net[2] = Odd()


def spoil_mode(net: nn.Sequential) -> None:
    net[4].train()


def spoil_parametrisation(net: nn.Sequential) -> None:
    nn.utils.parametrizations.weight_norm(net[6])


@pytest.mark.parametrize(
    "spoil", [spoil_hook, spoil_pre_hook, spoil_forward, spoil_class, spoil_mode, spoil_parametrisation]
)
def test_anything_else_stays_with_torch(spoil: Callable[[nn.Sequential], None]) -> None:
    net = stack()
    model = Model.from_torch(net)
    assert stand_in(model, IMAGES).compiled is not None
    spoil(net)
    assert stand_in(model, IMAGES) is model


def test_unread_settings_stay_with_torch() -> None:
    for net in (stack(padding_mode="circular"), nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Softmax(1)).eval()):
        model = Model.from_torch(net)
        assert stand_in(model, IMAGES) is model
    statistics = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, track_running_stats=False)).eval()
    assert stand_in(Model.from_torch(statistics), IMAGES).compiled is None


def test_a_layer_used_twice_is_used_twice() -> None:
    half, relu = nn.Linear(64, 64), nn.ReLU()
    net = nn.Sequential(nn.Flatten(), half, relu, half, relu).eval()
    found = stand_in(Model.from_torch(net), IMAGES)
    assert found.compiled is not None and torch.allclose(found.scores(IMAGES), net(IMAGES), atol=1e-5)


def test_changed_weights_are_read_again_and_unseen_changes_are_noticed() -> None:
    net = stack()
    model = Model.from_torch(net)
    first = stand_in(model, IMAGES)
    assert stand_in(model, IMAGES).compiled is first.compiled
    with torch.no_grad():
        net[6].weight.mul_(2)
    second = stand_in(model, IMAGES)
    assert second.compiled is not first.compiled and second.compiled is not None
    net[6].weight.data.mul_(2)  # torch does not count this as a change
    assert stand_in(model, IMAGES) is model


def test_an_attack_leaves_what_was_read_usable() -> None:
    net = stack()
    before = stand_in(Model.from_torch(net), IMAGES).compiled
    build("pgd", steps=2)(net, IMAGES, net(IMAGES).argmax(1), LpThreat(eps=0.1), seed=0)
    assert stand_in(Model.from_torch(net), IMAGES).compiled is before


@pytest.mark.parametrize("lenient", [False, True])
def test_points_that_the_judge_loses_are_won_back_clearly(lenient: bool) -> None:
    """`lenient`: the judge rounds otherwise when it is asked about the lost points alone."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    model = Model.from_torch(net)
    y = net(IMAGES).argmax(1)
    gap = 4e-6

    def judge(x: Tensor) -> Tensor:
        """The scores, a little in favour of the label of the nearest image."""
        nearest = (x.flatten(1)[:, None] - IMAGES.flatten(1)).abs().sum(2).argmin(1)
        strict = (nearest < len(IMAGES) / 2) & (len(x) == len(IMAGES)) if lenient else nearest >= 0
        return net(x) + gap * strict[:, None] * nn.functional.one_hot(y[nearest], 10)

    model.forward, model.module, model.judge = net, None, judge
    result = build("fab", steps=10)(model, IMAGES, y, LpThreat(norm=INF), seed=0)
    scores = judge(result.adversarial)
    first, second = scores.topk(2, dim=1).values.unbind(1)
    assert bool(result.success.all()) and bool((judge(result.adversarial).argmax(1) != y).all())
    clear = first - second > 8 * torch.finfo(scores.dtype).eps * scores.abs().amax(1)
    assert lenient or bool(clear.all())
