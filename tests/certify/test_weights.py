"""Certified radii of weights: the graph is the network, bounds hold, attacks stay above."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from radius_nets import dense_network
from threads import one_thread  # noqa: F401
from torch import nn
from torch.func import functional_call

from verifier.attack.weights import WeightAttack
from verifier.bounds.torch_engine import TorchEngine
from verifier.certify.radius import RadiusSettings
from verifier.certify.weight_graph import Site, sites_of, weight_graph
from verifier.certify.weights import WeightBall, WeightedNetwork, certified_weight_radius
from verifier.cli.main import main
from verifier.data.packaged import digits
from verifier.errors import ShapeError, SpecError
from verifier.graph.evaluate import evaluate
from verifier.graph.load import load_network
from verifier.graph.torch.importer import load_module
from verifier.outcome import Soundness, StopReason

SPECS = Path(__file__).parent.parent.parent / "specs" / "onnx"
QUICK = RadiusSettings(timeout_s=10)
ROUGH = RadiusSettings(timeout_s=3, gap_rel=0.4, attack_effort=0)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).eval()


def convolutions():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=(1, 0), stride=(1, 2)), nn.ReLU(),
        nn.Conv2d(2, 2, 2, groups=2, dilation=2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 3),
    ).eval()  # fmt: skip


def one_axis():
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.LeakyReLU(), nn.Flatten(), nn.Linear(15, 3)).eval()


MODULES = {"mlp": (mlp, (6,)), "conv": (convolutions, (1, 5, 7)), "1d": (one_axis, (2, 5))}


def sample(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def moved(graph, sites, theta):
    """The network itself with other weights, an independent way to the same numbers."""
    nodes, at = dict(graph.nodes), 0
    for site in sites:
        value = site.value(graph)
        part = theta[at : at + value.size].reshape(value.shape)
        at += value.size
        nodes[site.node] = replace(nodes[site.node], attrs={**nodes[site.node].attrs, site.attribute: part})
    return replace(graph, nodes=nodes)


@pytest.mark.parametrize("name", [*MODULES, "residual.onnx", "avgpool.onnx", "sigmoid.onnx", "maxpool.onnx"])
def test_the_graph_is_the_network_with_its_weights_moved(name):
    if name in MODULES:
        make, shape = MODULES[name]
        graph = load_module(make(), (1, *shape))
    else:
        graph = load_network(SPECS / name, simplified=False)
    rng = np.random.default_rng(1)
    x = rng.random(graph.input_size).astype(np.float32)
    everything = sites_of(graph)
    for sites in (everything, everything[:1], everything[1:2], everything[-2:], everything[2:5]):
        ours = weight_graph(graph, x, sites)
        center = np.concatenate([s.value(graph).reshape(-1) for s in sites]).astype(np.float64)
        for scale in (0.0, 0.1):
            theta = center + scale * rng.standard_normal(center.size)
            expected = evaluate(moved(graph, sites, theta), x.astype(np.float64)[None])
            assert np.abs(evaluate(ours, theta[None]) - expected).max() < 1e-9


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("which", ["all", "first", "last"])
def test_bounds_hold_every_float32_program(name, which):
    make, shape = MODULES[name]
    module, x = make(), sample(MODULES[name][1])
    named = WeightedNetwork(module, shape)
    only = {"all": (), "first": ("0.weight",), "last": tuple(named.names)[-1:]}[which]
    chosen = named.chosen(WeightBall(only))
    graph = weight_graph(named.graph, x.reshape(-1), tuple(chosen.values()))
    center = np.concatenate([s.value(named.graph).reshape(-1) for s in chosen.values()]).astype(np.float64)
    engine = TorchEngine(graph, soundness=Soundness.IEEE_FLOAT)
    rng = np.random.default_rng(3)
    for reach in (0.0, 1e-3, 0.05):
        box = engine.enclose(*engine.boxes((center - reach)[None], (center + reach)[None])).box
        low, high = (end[graph.outputs[0]].double().numpy().reshape(-1) for end in (box.lower, box.upper))
        for _ in range(100):
            theta = center + reach * rng.choice([-1.0, 1.0, rng.uniform(-1, 1)], center.size)
            theta = np.clip(theta.astype(np.float32), center - reach, center + reach).astype(np.float32)
            y = run(module, named, chosen, theta, x)
            assert (low <= y).all() and (y <= high).all()
        if reach == 0.0:
            assert (high - low).max() < 1e-4


def run(module, named, chosen, theta, x):
    """The module with weights theta, float32, as float64 numbers."""
    values, at = dict(module.named_parameters()), 0
    for name, site in chosen.items():
        part = theta[at : at + site.value(named.graph).size].reshape(site.value(named.graph).shape)
        at += part.size
        values[name] = torch.tensor(part.T.copy() if name in named.turned else part)
    with torch.no_grad():
        return functional_call(module, values, (torch.tensor(x)[None],))[0].double().numpy()


@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
def test_a_linear_classifiers_radius_is_known(p):
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((5, 4)).astype(np.float32), rng.standard_normal(5).astype(np.float32)
    graph = dense_network([(weight, np.zeros(4))])
    scores = x.astype(np.float64) @ weight.astype(np.float64)
    margin = np.sort(scores)[-1] - np.sort(scores)[-2]
    # Two columns move against each other: the margin is a linear function of 10 weights.
    q = {1.0: np.inf, 2.0: 2.0, math.inf: 1.0}[p]
    exact = margin / np.linalg.norm(np.concatenate([x, x]).astype(np.float64), q)
    ball = WeightBall(("dense0.weight",), relative=False, p=p)
    found = certified_weight_radius(graph, x, ball=ball, settings=replace(QUICK, gap_rel=0.01)).radius
    assert found.lower <= exact <= found.upper * (1 + 1e-6) and found.lower > 0.98 * exact
    share = certified_weight_radius(graph, x, ball=replace(ball, relative=True), settings=QUICK).radius
    unit = np.linalg.norm(weight.astype(np.float64).reshape(-1), p)
    assert share.lower * unit <= exact and share.lower * unit > 0.93 * exact


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("only", [(), ("0",)])
def test_no_attack_gets_below_the_certificate(name, only):
    make, shape = MODULES[name]
    module = make()
    named = WeightedNetwork(module, shape)
    certified = 0
    for seed in range(2):
        x = sample(shape, seed)
        label = int(module(torch.tensor(x)[None]).argmax())
        chosen = named.chosen(WeightBall(only))
        found = certified_weight_radius(named, x, label, ball=WeightBall(only), settings=ROUGH)
        lower, upper = found.radius.lower, found.radius.upper
        assert 0 <= lower <= upper
        certified += lower > 0.3 * upper
        attacked = attack_radius(module, x, label, tuple(chosen), 2 * upper)
        assert lower <= attacked
        # The counterexample changes the module itself, not only the graph.
        values = {**dict(module.named_parameters()), **{k: torch.tensor(v.copy()) for k, v in found.worst.items()}}
        with torch.no_grad():
            scores = functional_call(module, values, (torch.tensor(x)[None],))[0]
        others = [float(scores[k]) for k in range(3) if k != label]
        assert max(others) >= float(scores[label]) - 1e-5
        for key, value in found.worst.items():
            before = dict(module.named_parameters())[key].detach().numpy()
            assert np.abs(value - before).max() <= upper * np.abs(before).max() * (1 + 1e-6)
    assert certified == 2


def attack_radius(module, x, label, only, high):
    """The smallest radius at which the existing attack succeeds, by bisection; inf where it never does."""

    def succeeds(eps):
        attack = WeightAttack(eps=eps, only=only, steps=30, restarts=2, loss="margin")
        return attack(module, x[None], np.array([label]), seed=0).accuracy < 1

    best, low = (high, 0.0) if succeeds(high) else (math.inf, high)
    for _ in range(6 if math.isfinite(best) else 0):
        middle = 0.5 * (low + best)
        low, best = (low, middle) if succeeds(middle) else (middle, best)
    return best


def test_a_digits_network_is_certified_close_to_its_counterexample():
    data, named = digits(), WeightedNetwork(str(SPECS / "conv.onnx"))
    for only in ((), ("conv_0",)):
        settings = RadiusSettings(timeout_s=20, gap_rel=0.3, attack_effort=0)
        found = certified_weight_radius(
            named, data.x[1501], int(data.y[1501]), ball=WeightBall(only), settings=settings
        )
        assert found.radius.reason is StopReason.GAP_REACHED and found.radius.lower > 0.005


def test_names_and_mistakes():
    module = mlp()
    named = WeightedNetwork(module, (6,))
    assert next(iter(named.names.values())) == Site("linear", "weight") and len(named.names) == 6
    with pytest.raises(SpecError, match=r"no dense.*'9'.*0\.weight"):
        named.chosen(WeightBall(("9",)))
    with pytest.raises(SpecError, match="one tensor at a time"):
        named.chosen(WeightBall(("0",), p=2.0))
    with pytest.raises(SpecError, match="p in 1, 2, inf"):
        WeightBall(p=3.0)
    with pytest.raises(SpecError, match="input_shape"):
        WeightedNetwork(module)
    with pytest.raises(ShapeError, match="expected 6 features"):
        certified_weight_radius(named, np.zeros(5))
    normed = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        normed[1].running_var.fill_(2.0)
    with pytest.raises(SpecError, match="not all can move"):
        certified_weight_radius(normed, sample((6,)))
    assert certified_weight_radius(normed, sample((6,)), ball=WeightBall(("3",)), settings=QUICK).radius.lower > 0
    twins = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    twins[2].load_state_dict(twins[0].state_dict())
    with pytest.raises(SpecError, match=r"several layers|told apart"):
        WeightedNetwork(twins, (3,))


def test_command_line(tmp_path, capsys):
    ask = ["--data", "digits", "--start", "1500", "--samples", "2", "--timeout", "10", "--weights", "gemm_4"]
    net = str(SPECS / "fc.onnx")
    assert main(["radius", net, *ask, "--out", str(tmp_path / "r")]) == 0
    assert "certified radius" in capsys.readouterr().out
    page = (tmp_path / "r" / "report.html").read_text()
    assert "weights of gemm_4" in page and "move in linf" in page
    assert json.loads((tmp_path / "r" / "run.json").read_text())["question"]["weights"]["only"] == ["gemm_4"]
    assert main(["certify", net, *ask, "--eps", "0.001", "--weight-unit", "absolute"]) == 0
    assert "100.0 %" in capsys.readouterr().out
    for words, said in (
        (["--mask", "3"], "--mask"),
        (["--norm", "l2"], "one tensor"),
        (["--method", "smoothing"], "--method"),
    ):
        assert main(["radius", net, *ask, *words]) == 2
        log = capsys.readouterr().err
        assert said in log and log.count("\n") == 1
    ask[-1] = "nothing"
    assert main(["radius", net, *ask]) == 2 and "gemm_0.weight" in capsys.readouterr().err
    assert main(["radius", net, *ask[:-2], "--weight-unit", "absolute"]) == 2
