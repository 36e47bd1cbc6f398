"""Certified radius of a network's own weights: how far they may move before one sample's class can change.

Requires: dense and convolution layers; any other operators between them stay as they are.
Returns: an interval that holds the smallest radius, in the units of `attack.weights.WeightAttack.eps`,
at which the class of the sample changes.
Method: the weights become the inputs of a graph (`weight_graph`), the ordinary certified radius follows:
minimum-norm attacks on the weights from above, bounds with bilinear relaxations and splits from below.
Property: sound for every setting of the chosen weights, in the deployed program's arithmetic.
Source: Weng et al. 2020 (AAAI), certified bounds for weight perturbation; bilinear bounds: McCormick 1976.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from verifier.certify.radius import CertifiedRadius, RadiusSettings, certified_radius
from verifier.certify.threat import Nearness
from verifier.certify.victim import Classifier
from verifier.certify.weight_graph import Site, sites_of, weight_graph
from verifier.errors import ShapeError, SpecError
from verifier.graph.ir import Graph
from verifier.graph.load import load_network
from verifier.outcome import Soundness


@dataclass(frozen=True)
class WeightBall:
    """What may move, and how far a radius of 1 is; the same meaning as in `WeightAttack`.

    Attributes:
        only: names of tensors: a module's parameter names, or "node.weight" and "node.bias" of a graph or
            file; a layer's own name stands for both. Empty for all.
        relative: the radius counts in each tensor's own p-norm (for inf its largest magnitude); a tensor of
            zeros then does not move. False: in the weights' own units.
        p: inf; 1 and 2 for a single tensor.
    Raises:
        SpecError: another p.
    """

    only: tuple[str, ...] = ()
    relative: bool = True
    p: float = math.inf

    def __post_init__(self) -> None:
        if self.p not in (1.0, 2.0, math.inf):
            raise SpecError(f"weights: expected p in 1, 2, inf, got {self.p}")


@dataclass(frozen=True)
class WeightCertificate:
    """The class stays for all weights within `radius.lower`.

    Attributes:
        radius: both ends, and how they were found; its counterexample is about the flat weights.
        worst: tensor name -> the weights that change the class at `radius.upper`, in the layout of the
            module or the graph; empty without a counterexample.
    """

    radius: CertifiedRadius
    worst: dict[str, np.ndarray]


class WeightedNetwork:
    """A network whose tensors have names; made once for many samples.

    Args:
        network: a module, a Graph or a file. Files are taken as they are stored, nothing fused.
        input_shape: of one sample, needed for a module.
    Attributes:
        graph: the network. names: tensor name -> its site. turned: names whose tensor the module holds
            transposed.
    """

    def __init__(self, network: nn.Module | Graph | str, input_shape: tuple[int, ...] | None = None):
        self.turned: set[str] = set()
        self._unplaced: list[str] = []
        if isinstance(network, nn.Module):
            from verifier.graph.torch.importer import load_module

            if input_shape is None:
                raise SpecError("weights: a module does not say its input shape; give input_shape, without the batch")
            self.graph = load_module(network, (1, *input_shape))
            self.names = self._of_module(network)
        else:
            self.graph = network if isinstance(network, Graph) else load_network(network, simplified=False)
            self.names = {site.name: site for site in sites_of(self.graph)}

    def chosen(self, ball: WeightBall) -> dict[str, Site]:
        """Name -> site of the tensors that move.

        Raises:
            SpecError: unknown names, or several tensors in a ball that is not a box.
        """
        if not ball.only and self._unplaced:
            raise SpecError(
                f"weights: {', '.join(self._unplaced)} are no weights of a dense or convolution layer as the program "
                f"stores it, so not all can move; name those that shall: {', '.join(self.names)}"
            )
        wanted = ball.only or tuple(self.names)
        found: dict[str, Site] = {}
        for name in wanted:
            both = {k: s for k, s in self.names.items() if k in (name, f"{name}.weight", f"{name}.bias")}
            if not both:
                raise SpecError(
                    f"weights: no dense or convolution weights named '{name}'; there are {', '.join(self.names)}"
                )
            found.update(both)
        if not math.isinf(ball.p) and len(found) != 1:
            raise SpecError(
                f"weights: a ball in l{ball.p:g} is certified for one tensor at a time, got {', '.join(found)}; "
                "name one, or use p = inf"
            )
        return found

    def _of_module(self, module: nn.Module) -> dict[str, Site]:
        """Parameters found in the graph by their values: a weight by its own, a bias beside its weight."""
        names: dict[str, Site] = {}
        parameters = {name: p.detach().cpu().numpy() for name, p in module.named_parameters()}
        weights = [s for s in sites_of(self.graph) if s.attribute == "weight"]
        for name, value in parameters.items():
            for site in weights:
                stored = site.value(self.graph)
                turned = self.graph[site.node].op == "Dense"
                if np.array_equal(stored, value.T if turned else value):
                    if name in names:
                        raise SpecError(f"weights: parameter {name} is used by several layers, or equals another one")
                    names[name] = site
                    self.turned.update({name} if turned else ())
        if len(set(names.values())) < len(names):
            raise SpecError("weights: two parameters of the module are equal, so their layers cannot be told apart")
        for name, site in list(names.items()):
            beside = f"{name.rpartition('.')[0]}.bias".removeprefix(".")
            bias = Site(site.node, "bias")
            if beside in parameters and np.array_equal(bias.value(self.graph), parameters[beside]):
                names[beside] = bias
        self._unplaced = [name for name in parameters if name not in names]
        return names


def certified_weight_radius(
    network: nn.Module | Graph | str | WeightedNetwork,
    x: Any,
    label: int | None = None,
    *,
    ball: WeightBall | None = None,
    settings: RadiusSettings | None = None,
    device: str = "cpu",
    soundness: Soundness = Soundness.IEEE_FLOAT,
    cancel: Callable[[], bool] | None = None,
) -> WeightCertificate:
    """How far the weights can move, at the fixed input x, before its class can change.

    Args:
        network: a module, a Graph, a file, or a WeightedNetwork made once for many samples.
        x: one sample, any shape that flattens to [N_in] (for a module: its own shape, without the batch).
        label: the class to hold; None: the one the network gives.
        ball: what may move; default: every weight and bias, relative, l-infinity.
        settings: see RadiusSettings. device, soundness: of the proofs. cancel: True stops with what is known.
    Raises:
        SpecError, ShapeError: names, sizes or a ball that do not fit.
    """
    ball, x = ball or WeightBall(), np.asarray(x)
    named = network if isinstance(network, WeightedNetwork) else WeightedNetwork(network, x.shape)
    if x.size != named.graph.input_size:
        raise ShapeError(f"input: expected {named.graph.input_size} features (N_in), got {list(x.shape)}")
    chosen = named.chosen(ball)
    values = [site.value(named.graph) for site in chosen.values()]
    center = np.concatenate([v.reshape(-1) for v in values]).astype(np.float64)
    graph = weight_graph(named.graph, x.reshape(-1).astype(named.graph.dtype), tuple(chosen.values()))
    unit = np.concatenate([np.full(v.size, _unit(v, ball)) for v in values])
    nearness = Nearness(ball.p, None, unit > 0, np.where(unit > 0, unit, 1.0))
    found = certified_radius(
        Classifier(graph, device=device, soundness=soundness), center, label, nearness=nearness, settings=settings,
        cancel=cancel,
    )  # fmt: skip
    worst: dict[str, np.ndarray] = {}
    if found.counterexample is not None:
        at = 0
        for (name, _), value in zip(chosen.items(), values, strict=True):
            moved = found.counterexample.x[at : at + value.size].reshape(value.shape)
            worst[name] = (moved.T if name in named.turned else moved).astype(named.graph.dtype)
            at += value.size
    return WeightCertificate(found, worst)


def _unit(value: np.ndarray, ball: WeightBall) -> float:
    """What a radius of 1 is for one tensor."""
    if not ball.relative:
        return 1.0
    return float(np.linalg.norm(value.reshape(-1).astype(np.float64), ord=ball.p))
