"""What bound propagation knows of one network over one input set: where every optimisation starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verifier.bounds.backward import Planes, backward, relax
from verifier.bounds.concretize import InputShape, concretize
from verifier.bounds.intermediate import optimise_intermediate
from verifier.bounds.interval import Enclosure, propagate
from verifier.bounds.network import Network
from verifier.bounds.slopes import Ascent, SlopeSpace
from verifier.bounds.torch_engine import Enclosed, LazyPlanes, TorchEngine
from verifier.graph.ir import Graph, Node
from verifier.outcome import Soundness
from verifier.run import Run
from verifier.spec.problem import InputSet
from verifier.tighten.curves import CURVED, Curve, curve_of
from verifier.tighten.deployed import EXACT
from verifier.tighten.intervals import Interval
from verifier.tighten.rounding import sum_down

#: (slope below, slope above) of a curve on [lower, upper], arrays [N]; None for the operator's own lines.
SlopeChoice = Callable[[Node, Curve, np.ndarray, np.ndarray], "tuple[np.ndarray, np.ndarray] | None"]
_S_SHAPED = ("Sigmoid", "Tanh", "Atan", "Erf", "Softsign")
#: Share of a time limit that intermediate bounds may take before the rows are bounded.
_INTERMEDIATE_SHARE = 0.3


@dataclass(frozen=True)
class Bounded:
    """Bounds of every node, the planes chosen with them, and the seconds they took.

    Attributes:
        found: the engine's enclosure, B = 1.
        planes: planes of the relaxed nodes for rows over the outputs.
    """

    found: Enclosed
    planes: Mapping[str, Planes]
    seconds: float


class Propagated:
    """One network over one input set; each stage is computed once and its time remembered.

    Args:
        graph: any network the torch engine bounds.
        soundness: IEEE_FLOAT for the deployed program, REAL_ARITHMETIC otherwise.
        time_limit_s: of each stage; None for no limit.
    """

    def __init__(
        self,
        graph: Graph,
        inputs: InputSet,
        *,
        soundness: Soundness = Soundness.IEEE_FLOAT,
        time_limit_s: float | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ):
        self.inputs = inputs
        # float64: the engine's own rounding must not blur a comparison of methods.
        self.engine = TorchEngine(graph, soundness=soundness, dtype=torch.float64)
        self.lower, self.upper = self.engine.boxes(inputs.lower[None], inputs.upper[None])
        self.shape = InputShape.of(inputs, self.engine.device)
        self._limit_s, self._cancelled = time_limit_s, cancelled
        self._stages: dict[str, Bounded] = {}

    @property
    def graph(self) -> Graph:
        """The lowered graph that all bounds refer to: linear, elementwise and product nodes only."""
        return self.engine.network.graph

    @property
    def computed(self) -> frozenset[str]:
        """Stages that are known already."""
        return frozenset(self._stages)

    def interval(self) -> Bounded:
        """Interval propagation (Gowal et al. 2018)."""
        return self._stage("interval", lambda: self._enclose(refined=False, choose=None))

    def parallel(self) -> Bounded:
        """Fast-Lin: both lines of a kinked activation have the chord's slope (Weng et al. 2018)."""
        return self._stage("parallel", lambda: self._enclose(refined=True, choose=parallel_slopes))

    def deeppoly(self) -> Bounded:
        """DeepPoly: least-area relu lines, S-shaped ones with the smaller end slope (Singh et al. 2019)."""
        return self._stage("deeppoly", lambda: self._enclose(refined=True, choose=deeppoly_slopes))

    def crown(self) -> Bounded:
        """CROWN with adaptive lines (Zhang et al. 2018)."""
        return self._stage("crown", lambda: self._enclose(refined=True, choose=None))

    def alpha(self) -> Bounded:
        """alpha-CROWN: intermediate bounds with slopes optimised row by row (Xu et al. 2021)."""
        before = self.crown()

        def optimised() -> tuple[Enclosed, Mapping[str, Planes]]:
            found = Enclosed(before.found.sensitivity, copied(before.found.box))
            found.planes = LazyPlanes(self.engine.network, found.box)
            seconds = 60.0 if self._limit_s is None else _INTERMEDIATE_SHARE * self._limit_s
            run = Run(deadline=time.monotonic() + 2 * seconds, cancelled=self._cancelled)
            optimise_intermediate(self.engine, found, self.lower, self.upper, self.shape, run, seconds)
            return found, found.planes

        bounded = self._stage("alpha", optimised)
        return Bounded(bounded.found, bounded.planes, bounded.seconds + before.seconds)

    def interval_rows(self, coeffs: np.ndarray) -> np.ndarray:
        """Lower bounds [S] of coeffs [S, N_out] @ outputs from the outputs' intervals alone."""
        box = self.interval().found.box
        low, high = (
            torch.cat([side[n].reshape(-1) for n in self.graph.outputs]).numpy() for side in (box.lower, box.upper)
        )
        with np.errstate(invalid="ignore", over="ignore"):
            terms = np.where(coeffs == 0, 0.0, np.where(coeffs > 0, coeffs * low, coeffs * high))
            value = sum_down(terms) - 2.0**-50 * np.abs(terms).sum(axis=1)
        return np.where(np.isfinite(value), value, -np.inf)

    @torch.no_grad()
    def rows(self, bounded: Bounded, coeffs: np.ndarray) -> np.ndarray:
        """Rigorous lower bounds [S] of coeffs @ outputs by one backward pass with the stage's planes."""
        start = self.engine.network.split_rows(self.engine.tensor(coeffs).unsqueeze(0))
        form = backward(self.engine.network, start, bounded.found.box, bounded.planes)
        return concretize(form, self.lower, self.upper, self.shape)[0][0].numpy()

    def optimised_rows(self, bounded: Bounded, coeffs: np.ndarray, iterations: int) -> np.ndarray:
        """Rigorous lower bounds [S], each row's slopes optimised on its own."""
        engine, box = self.engine, bounded.found.box
        neurons = {n: engine.open_neurons(n, box) for n in engine.network.bounded}
        space = SlopeSpace(engine.network, box, neurons)
        if space.size == 0:
            return self.rows(bounded, coeffs)
        stop = np.inf if self._limit_s is None else time.monotonic() + self._limit_s
        per_row = 16 * (space.size + sum(n.size for n in self.graph.nodes.values())) * 8
        step = max(1, engine.memory_bytes // (2 * per_row))
        found = []
        for begin in range(0, len(coeffs), step):
            part = engine.tensor(coeffs[begin : begin + step]).unsqueeze(0)
            start = engine.network.split_rows(part)
            ascent = Ascent(engine.network, space, start, box, self.lower, self.upper, self.shape)
            free = space.start(box).expand(1, part.shape[1], -1)
            free, _ = ascent.run(free, None, iterations, lambda value: self._cancelled() or time.monotonic() > stop)
            with torch.no_grad():
                value, *_ = ascent.evaluate(free, None, space.fixed_planes(box), rigorous=True)
            found.append(value[0].numpy())
        return np.maximum(np.concatenate(found), self.rows(bounded, coeffs))

    def intermediate(self, bounded: Bounded) -> dict[str, Interval]:
        """Node name -> (lower, upper), float64 [size], of every node with finite bounds."""
        box, found = bounded.found.box, {}
        for name in self.graph.nodes:
            low, high = (side[name].reshape(-1).numpy() for side in (box.lower, box.upper))
            if np.all(np.isfinite(low)) and np.all(np.isfinite(high)):
                found[name] = (low, high)
        return found

    def rounding_error(self, bounded: Bounded) -> dict[str, np.ndarray]:
        """Node name -> bound on the deployed program's own error there, float64 [size].

        At REAL_ARITHMETIC what remains is the float64 rounding of arrays that passes fused.
        """
        slack = bounded.found.box.slack
        return {n: slack[n].reshape(-1).numpy() for n in self.graph.nodes if self.graph[n].op not in EXACT}

    def _stage(self, name: str, make: Callable[[], tuple[Enclosed, Mapping[str, Planes]]]) -> Bounded:
        if name not in self._stages:
            start = time.perf_counter()
            found, planes = make()
            self._stages[name] = Bounded(found, planes, time.perf_counter() - start)
        return self._stages[name]

    @torch.no_grad()
    def _enclose(self, *, refined: bool, choose: SlopeChoice | None) -> tuple[Enclosed, Mapping[str, Planes]]:
        network = self.engine.network
        planes: list[Mapping[str, Planes]] = []

        def refine(name: str, box: Enclosure) -> None:
            if not planes:
                planes.append(_planes(network, box, choose))
            if refined:
                self._refine(name, box, planes[0])

        box = propagate(network, self.lower, self.upper, refine)
        chosen = planes[0] if planes else _planes(network, box, choose)
        return Enclosed(torch.zeros_like(self.lower), box), chosen

    def _refine(self, name: str, box: Enclosure, planes: Mapping[str, Planes]) -> None:
        network = self.engine.network
        if network.interval_suffices(name) or (self.shape is None and network.interval_is_exact(name)):
            return
        neurons = self.engine.open_neurons(name, box)
        if len(neurons) == 0:
            return
        parts = neurons.split(max(1, self.engine.row_batch(1) // 2))
        values = []
        for part in parts:
            form = backward(network, {name: self.engine.unit_rows(name, part, 1)}, box, planes)
            values.append(concretize(form, self.lower, self.upper, self.shape)[0])
        self.engine.tighten(name, box, parts, values)


class ChosenPlanes(Mapping[str, Planes]):
    """Planes with slopes of a given choice and offsets rounded outward from the slopes stored.

    Nodes that the choice leaves alone get their operator's own lines.
    """

    def __init__(self, network: Network, box: Enclosure, choose: SlopeChoice):
        self._network, self._box, self._choose = network, box, choose
        self._made: dict[str, Planes] = {}

    def __getitem__(self, name: str) -> Planes:
        if name not in self._made:
            if name not in self._network.relaxed:
                raise KeyError(name)
            self._made[name] = self._chosen(name) or relax(self._network, self._box, name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._network.relaxed)

    def __len__(self) -> int:
        return len(self._network.relaxed)

    def _chosen(self, name: str) -> Planes | None:
        node = self._network.graph[name]
        if node.op not in CURVED:
            return None
        low, high = (side[node.inputs[0]].reshape(-1).numpy() for side in (self._box.lower, self._box.upper))
        if not (np.all(np.isfinite(low)) and np.all(np.isfinite(high))):
            return None
        curve = curve_of(node)
        slopes = self._choose(node, curve, low, high)
        if slopes is None:
            return None
        one = np.ones_like(low)
        below, above = slopes
        offsets = (curve.minimum(-below, one, low, high), -curve.minimum(above, -one, low, high))

        def plane(x: np.ndarray) -> Tensor:
            return torch.as_tensor(x, dtype=self._network.dtype).reshape(1, 1, *node.shape)

        return Planes((plane(below),), plane(offsets[0]), (plane(above),), plane(offsets[1]))


def parallel_slopes(
    node: Node, curve: Curve, lower: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """The chord's slope below and above, for kinked activations."""
    if not curve.piecewise_linear:
        return None
    chord = _chord(curve, lower, upper)
    return chord, chord


def deeppoly_slopes(
    node: Node, curve: Curve, lower: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """DeepPoly's slopes for relu and S-shaped functions."""
    chord = _chord(curve, lower, upper)
    if node.op == "Relu":
        return np.where((lower >= 0) | ((upper > -lower) & (upper > 0)), 1.0, 0.0), chord
    if node.op not in _S_SHAPED:
        return None
    ends = curve.slope(np.stack([lower, upper], axis=1))
    steep = ends.min(axis=1)
    return np.where(lower >= 0, chord, steep), np.where(upper <= 0, chord, steep)


def copied(box: Enclosure) -> Enclosure:
    """An enclosure that can be tightened without touching this one."""
    return Enclosure(dict(box.lower), dict(box.upper), dict(box.slack))


def _planes(network: Network, box: Enclosure, choose: SlopeChoice | None) -> Mapping[str, Planes]:
    return LazyPlanes(network, box) if choose is None else ChosenPlanes(network, box, choose)


def _chord(curve: Curve, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    rise = np.diff(curve.value(np.stack([lower, upper], axis=1)), axis=1)[:, 0]
    width = upper - lower
    return np.divide(rise, width, out=np.zeros_like(width), where=width > 0)
