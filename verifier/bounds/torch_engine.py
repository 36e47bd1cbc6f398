"""The general engine: every operator, CPU or GPU, differentiable; the oracle for the native one."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from verifier.bounds.backward import LinearForm, Planes, Shortcut, backward, relax
from verifier.bounds.concretize import InputShape, concretize
from verifier.bounds.crossing import shortcut_across
from verifier.bounds.engine import BoxBounds
from verifier.bounds.interval import Enclosure, propagate
from verifier.bounds.joint_products import JointProducts, pays
from verifier.bounds.network import Network
from verifier.bounds.patches import is_local, patch_bounds, patch_flops, tiles
from verifier.bounds.rounding import cast_down, cast_up
from verifier.bounds.whole_network import WholeNetwork
from verifier.errors import DeviceError
from verifier.graph.ir import Graph
from verifier.kernels.native import kernels_for
from verifier.ops.elementwise import ELEMENTWISE
from verifier.outcome import Soundness
from verifier.spec.problem import InputSet


def _without_final_softmax(graph: Graph) -> Graph:
    """The graph with the inputs of softmax nodes as its outputs where the softmax is the last node."""
    outputs = tuple(graph[o].inputs[0] if graph[o].op == "Softmax" else o for o in graph.outputs)
    return graph if outputs == graph.outputs else replace(graph, outputs=outputs).pruned()


#: Passes predicted to take longer than PROBE_SECONDS are tried on PROBE neurons first; the rest follow
#: where those came out narrower by twice the share of the remaining time that they would take, and by
#: GAIN_PER_SHARE times that share or LEAST_GAIN more, whichever is less: what costs little may gain little.
PROBE_SECONDS, PROBE, LEAST_GAIN, GAIN_PER_SHARE = 0.3, 16, 0.15, 10.0
#: Share of the time left that trying them may take; and how many passes of the outputs' rows time is kept for.
PROBE_SHARE, OUTPUT_PASSES = 0.1, 3

#: What a part of a pass may take, and its neurons at least: what they cost shows only then.
PART_SECONDS, FEWEST = 1.0, 4

#: Sides of the tiles of positions that are bounded together, operations that starting one costs, and the
#: share of a whole row's operations below which a row cropped to its patch is worth it.
TILES, TILE_FLOPS, PATCH_SHARE = (1, 2, 4, 8), 5e6, 0.5


class LazyPlanes(Mapping[str, Planes]):
    """Default planes of the relaxed nodes, made when first met.

    Args:
        domain: the boxes, lower, upper [B, N_in], if products are to be bounded jointly.
    """

    def __init__(self, network: Network, box: Enclosure, domain: tuple[Tensor, Tensor] | None = None):
        self._network, self._box = network, box
        self._made: dict[str, Planes] = {}
        self._joint = None if domain is None else JointProducts(network, box, self, domain)

    def __getitem__(self, name: str) -> Planes:
        if name not in self._made:
            if self._network.graph[name].op not in ELEMENTWISE and self._network.graph[name].op != "Mul":
                raise KeyError(name)
            jointly = None if self._joint is None else self._joint.relax(name)
            self._made[name] = jointly or relax(self._network, self._box, name)
        return self._made[name]

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._network.relaxed)

    def __len__(self) -> int:
        return len(self._network.relaxed)


class LazyShortcuts(Mapping[str, Shortcut]):
    """Shortcuts of one box under the default planes, made once enough rows have passed to pay for them."""

    def __init__(self, network: Network, box: Enclosure, planes: Mapping[str, Planes]):
        self._network, self._box, self._planes = network, box, planes
        self._parts = network.shortcuts
        self._made: dict[str, Shortcut] = {}
        self._rows = 0

    def expect(self, rows: int) -> None:
        """Announce rows that are about to pass."""
        self._rows += rows

    def __getitem__(self, name: str) -> Shortcut:
        if name not in self._made:
            if name not in self._parts or self._rows < self._network.graph[name].size:
                raise KeyError(name)
            self._made[name] = shortcut_across(self._network, self._box, self._planes, name, self._parts[name])
        return self._made[name]

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


@dataclass
class Enclosed:
    """Bounds of every node on some boxes, the planes they give, and the last layer's input sensitivity.

    Attributes:
        wanted: node -> bool [size], the neurons that matter to what is asked; None for all.
        rows: rows of the outputs that are to be bounded afterwards, for which refining leaves time.
    """

    sensitivity: Tensor
    box: Enclosure = field(default_factory=Enclosure)
    planes: LazyPlanes | dict[str, Planes] = field(default_factory=dict)
    shortcuts: LazyShortcuts | None = None
    wanted: Mapping[str, Tensor] | None = None
    rows: int = 0

    def matter(self, name: str, neurons: Tensor) -> Tensor:
        """Those of the flat neurons of a node that matter."""
        if self.wanted is None:
            return neurons
        return neurons[self.wanted[name][neurons]] if name in self.wanted else neurons[:0]


class TorchEngine:
    """BoxEngine over torch; also the parts that domains.py builds activation splitting on.

    Args:
        device: "cpu" or "cuda"; a missing device is an error, never a fallback.
        memory_bytes: ceiling for one batch of coefficients; None for half a GiB, on a GPU an eighth of what is free.
        deadline: time.monotonic() value after which intermediate bounds are no longer refined
            (the interval bounds they would tighten remain valid).
        whole: bound boxes of small dense networks in one launch of the whole-network kernel; None on a GPU only.
    """

    name = "torch"

    def __init__(
        self,
        graph: Graph,
        *,
        device: str = "cpu",
        soundness: Soundness = Soundness.IEEE_FLOAT,
        dtype: torch.dtype | None = None,
        memory_bytes: int | None = None,
        deadline: float = np.inf,
        whole: bool | None = None,
    ):
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise DeviceError(f"device: expected a CUDA GPU for '{device}', found none; use --device cpu")
        # Small networks spend their time in call overhead, so float64 costs nothing there.
        deployed = torch.float64 if graph.parameter_count < 20_000 or graph.dtype == "float64" else torch.float32
        if dtype is None:
            dtype = deployed
        self.graph = graph
        self.soundness = soundness
        self.device = torch.device(device)
        self.network = Network(graph, dtype, self.device, soundness)
        self.dtype, self._deployed = dtype, deployed
        on_gpu = self.device.type == "cuda"
        if whole is None:
            whole = on_gpu and kernels_for("cuda")
        self.whole = WholeNetwork.of(graph, soundness, self.device) if whole else None
        if memory_bytes is None:
            memory_bytes = torch.cuda.mem_get_info(self.device)[0] // 8 if on_gpu else 1 << 29
        self.memory_bytes = memory_bytes
        self.deadline = deadline
        #: what to count on until it is measured; of the passes of an ascent, which take no shortcuts, at most
        self.flops_per_second, self.ascent_flops_per_second = (1e12, 1e12) if on_gpu else (1e10, 5e9)
        #: the same for rows that take shortcuts, whose own operations are not counted
        self.short_flops_per_second = self.flops_per_second

    @cached_property
    def model(self) -> Network:
        """What points are evaluated with: where bounds need float64 for their rounding, points do not, and convolutions
        in it are slow."""
        if self.dtype is self._deployed:
            return self.network
        return Network(self.graph, self._deployed, self.device, self.soundness)

    @cached_property
    def guide(self) -> Network:
        """What attacks follow the gradient of."""
        logits = _without_final_softmax(self.graph)
        return self.model if logits is self.graph else Network(logits, self._deployed, self.device, self.soundness)

    @torch.no_grad()
    def rounding_share(self, lower: np.ndarray, upper: np.ndarray, rows: np.ndarray) -> float:
        """What this engine's own rounding takes from bounds of rows at the middle of a box, per reach of the box there.

        The reach is that of the tangent: sum |gradient| * half-width. Large values ask for a wider dtype, which
        the deployed program's rounding, the same in every dtype, does not.

        Args:
            lower, upper: [N_in].
        """
        network = copy.copy(self.network)
        network.deployed_unit, network.largest = 0.0, np.inf
        middle = self.tensor(0.5 * (lower + upper)).unsqueeze(0)
        radius = torch.as_tensor(0.5 * (upper - lower), dtype=torch.float64, device=self.device)
        box = propagate(network, middle, middle)
        start = network.split_rows(self.tensor(rows).unsqueeze(0))
        form = backward(network, start, box, LazyPlanes(network, box))
        reach = form.coeffs.double().abs() @ radius
        share = torch.where(reach > 0, form.error / reach, 0.0)  # a flat tangent tells nothing
        return float(torch.nan_to_num(share, nan=0.0, posinf=0.0).max())

    def tensor(self, x: np.ndarray, dtype: torch.dtype | None = None) -> Tensor:
        """Nearest values on the engine's device, in its dtype or in this one."""
        return torch.as_tensor(np.ascontiguousarray(x), dtype=torch.float64).to(dtype or self.dtype).to(self.device)

    def boxes(self, lower: np.ndarray, upper: np.ndarray) -> tuple[Tensor, Tensor]:
        """Box ends in the engine's dtype, rounded outward, [B, N_in]."""
        return cast_down(lower, self.dtype, self.device), cast_up(upper, self.dtype, self.device)

    def splits_on(self, inputs: InputSet) -> bool:
        """See BoxEngine."""
        return True

    def evaluate(self, points: np.ndarray) -> np.ndarray:
        """Outputs [B, N_out] at points [B, N_in]."""
        with torch.no_grad():
            parts = [self.model.evaluate(p) for p in self.tensor(points, self.model.dtype).split(self.point_batch())]
        return torch.cat(parts).double().cpu().numpy()

    def gradient(self, points: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Direction [B, N_in] in which weights[b] @ y(x) grows at points[b]: its gradient.

        Jumps let a surrogate gradient through, and a final softmax is left out: it keeps the order of
        its inputs, but its own gradient vanishes where it saturates.
        """
        results = []
        step = self.point_batch()
        x_parts, w_parts = (self.tensor(t, self.guide.dtype).split(step) for t in (points, weights))
        for x, w in zip(x_parts, w_parts, strict=True):
            x = x.detach().requires_grad_(True)
            with torch.enable_grad():
                total = (self.guide.evaluate(x, surrogate=True) * w).sum()
                # Outputs may be constants: a softmax of one number is.
                (g,) = torch.autograd.grad(total, x) if total.requires_grad else (torch.zeros_like(x),)
            results.append(torch.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0))
        return torch.cat(results).double().cpu().numpy()

    def point_batch(self) -> int:
        """Points evaluated at once within the memory ceiling."""
        total = sum(n.size for n in self.network.graph.nodes.values())
        return max(1, self.memory_bytes // (8 * total * 4))

    def row_batch(self, boxes: int = 1) -> int:
        """Coefficient rows carried at once, for each of `boxes` boxes, within the memory ceiling."""
        width = torch.finfo(self.dtype).bits // 8
        return max(1, self.memory_bytes // (boxes * self.network.widest * width * 6))

    @torch.no_grad()
    def enclose(
        self,
        lower: Tensor,
        upper: Tensor,
        shape: InputShape | None = None,
        known: Enclosure | None = None,
        *,
        refined: bool = True,
        wanted: Mapping[str, Tensor] | None = None,
        rows: int = 0,
    ) -> Enclosed:
        """Bounds of every node over boxes [B, N_in]: intervals, then CROWN for what they leave open.

        Args:
            known: bounds to start from, of the same boxes or larger ones.
            refined: off leaves the intervals.
            wanted: node -> bool [size], the neurons that matter (`cone_of`); None for all.
            rows: rows of the outputs that are to be bounded afterwards.
        """
        found = Enclosed(torch.zeros_like(lower), wanted=wanted, rows=rows)
        domain = (lower, upper) if pays(self.network, lower, upper) else None

        def refine(name: str, box: Enclosure) -> None:
            if found.box is not box:
                found.box, found.planes = box, LazyPlanes(self.network, box, domain)
                if lower.shape[0] == 1:
                    found.shortcuts = LazyShortcuts(self.network, box, found.planes)
            self._refine(name, found, lower, upper, shape)

        found.box = propagate(self.network, lower, upper, refine if refined else None, known)
        if not found.planes:
            found.planes = LazyPlanes(self.network, found.box)
        return found

    def open_neurons(self, name: str, box: Enclosure) -> Tensor:
        """Flat indices of the neurons of `name` that some nonlinear reader is not exact on."""
        low, high = box.lower[name], box.upper[name]
        mask = torch.zeros_like(low, dtype=torch.bool).flatten(1)
        for reader, index in self.network.readers[name]:
            node = self.network.graph[reader]
            if node.op == "Mul":
                mask |= (low < high).flatten(1)
            elif index is None:
                mask |= ~ELEMENTWISE[node.op].exact_on(low, high, node).flatten(1)
            else:
                ends = [t.flatten(1)[:, index].reshape(-1, *node.shape) for t in (low, high)]
                bent = ~ELEMENTWISE[node.op].exact_on(ends[0], ends[1], node).flatten(1)
                mask[:, index[bent.any(0)]] = True  # an element may be read more than once
        return mask.any(0).nonzero().squeeze(1)

    @property
    def row_seconds(self) -> float:
        """Predicted seconds to bound one row of the outputs."""
        return max(1.0, *map(self.network.row_flops, self.network.graph.outputs)) / self.flops_per_second

    def timed_rows(
        self, rows: Tensor, found: Enclosed, lower: Tensor, upper: Tensor, shape: InputShape | None
    ) -> Tensor:
        """`bound_rows` of rows [S, N_out] over one box, on the CPU; a slower rate than was counted on is remembered."""
        predicted, begin = self.row_seconds * len(rows), time.monotonic()
        value = self.bound_rows(rows.unsqueeze(0), found, lower, upper, shape)[0].cpu()
        spent = time.monotonic() - begin
        if spent > max(predicted, PART_SECONDS):
            self.flops_per_second *= predicted / spent
        return value

    def _time_left(self, found: Enclosed) -> float:
        """Seconds left for refining, besides OUTPUT_PASSES of the output rows to come."""
        return self.deadline - time.monotonic() - OUTPUT_PASSES * found.rows * self.row_seconds

    def _refine(self, name: str, found: Enclosed, lower: Tensor, upper: Tensor, shape: InputShape | None) -> None:
        box = found.box
        if self.network.interval_suffices(name) or (shape is None and self.network.interval_is_exact(name)):
            return
        neurons = found.matter(name, self.open_neurons(name, box))
        if len(neurons) == 0 or self._refine_patches(name, neurons, found, shape):
            return
        b = lower.shape[0]
        crossed = self.network.crossed if b == 1 else frozenset()  # one box's rows take shortcuts
        rate = self.short_flops_per_second if crossed else self.flops_per_second
        seconds_each = 2.0 * b * self.network.row_flops(name, without=crossed) / rate
        width = (box.upper[name] - box.lower[name]).flatten(1).amax(0)[neurons]
        neurons = neurons[width.argsort(descending=True)]
        found.sensitivity = torch.zeros_like(lower)

        def pass_back(part: Tensor) -> Tensor:
            if found.shortcuts is not None:
                found.shortcuts.expect(2 * len(part))
            start = {name: self.unit_rows(name, part, b)}
            form = backward(self.network, start, box, found.planes, shortcuts=found.shortcuts)
            found.sensitivity += form.coeffs.abs().sum(1)
            return concretize(form, lower, upper, shape)[0]

        if seconds_each * len(neurons) > PROBE_SECONDS and len(neurons) > 4 * PROBE:
            # A few neurons tell whether the rest are worth their time.
            left = self._time_left(found)
            if seconds_each * PROBE > PROBE_SHARE * left:
                return
            probe = neurons[:: -(-len(neurons) // PROBE)]
            before = (box.upper[name] - box.lower[name]).flatten(1)[:, probe]
            self.tighten(name, box, [probe], [pass_back(probe)])
            after = (box.upper[name] - box.lower[name]).flatten(1)[:, probe]
            share = seconds_each * len(neurons) / left
            least = min(LEAST_GAIN, GAIN_PER_SHARE * share) + 2 * share
            if not bool(after.sum() < (1 - least) * before.sum()):
                return
        # The widest first, as many as a quarter of the time that is left can hold.
        begin = time.monotonic()
        end = begin + 0.25 * self._time_left(found)
        parts, values = [], []
        most, each = max(1, self.row_batch(b) // 2), seconds_each
        while len(neurons) and time.monotonic() + FEWEST * each < end:
            count = int(np.clip(PART_SECONDS / each, FEWEST, most))
            part, neurons = neurons[:count], neurons[count:]
            started = time.monotonic()
            parts.append(part)
            values.append(pass_back(part))
            each = max(each, (time.monotonic() - started) / len(part))
        if not parts:
            return
        self.tighten(name, box, parts, values)
        spent = time.monotonic() - begin
        rate = _measured(rate, seconds_each * sum(len(part) for part in parts), spent)
        if crossed:
            self.short_flops_per_second = rate
        else:
            self.flops_per_second = rate

    def _refine_patches(self, name: str, neurons: Tensor, found: Enclosed, shape: InputShape | None) -> bool:
        """Bound neurons of one box by the patches they see, where that is much cheaper and there is time."""
        network = self.network
        if shape is not None or found.box.lower[name].shape[0] > 1 or not is_local(network, name):
            return False
        each = {side: 2.0 * patch_flops(network, name, side) for side in TILES}
        side = min(TILES, key=lambda s: each[s] + TILE_FLOPS / s**2)
        seconds = each[side] * len(neurons) / self.flops_per_second
        if each[side] > PATCH_SHARE * 2 * network.row_flops(name):
            return False
        left = self._time_left(found)
        if seconds > 0.5 * left:
            return False
        begin = time.monotonic()
        end = begin + 0.5 * left
        limit = max(1, self.row_batch() // 2)
        parts = [part for tile in tiles(network.graph[name].shape, neurons, side) for part in tile.split(limit)]
        values: list[Tensor] = []
        for part in parts:
            if time.monotonic() > end:
                break
            values.append(patch_bounds(network, found.box, found.planes, name, part))
        done = parts[: len(values)]
        self.tighten(name, found.box, done, values)
        spent = time.monotonic() - begin
        share = sum(len(part) for part in done) / len(neurons)
        self.flops_per_second = _measured(self.flops_per_second, share * seconds, spent)
        return True

    def unit_rows(self, name: str, neurons: Tensor, boxes: int) -> Tensor:
        """Rows +e_i, then -e_i, for flat neurons i of a node: [boxes, 2 * len(neurons), *shape]."""
        node, count = self.network.graph[name], len(neurons)
        rows = torch.zeros(1, 2 * count, node.size, dtype=self.dtype, device=self.device)
        at = torch.arange(count, device=self.device)
        rows[0, at, neurons] = 1.0
        rows[0, at + count, neurons] = -1.0
        return rows.expand(boxes, -1, -1).reshape(boxes, -1, *node.shape)

    def tighten(self, name: str, box: Enclosure, parts: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Intersect a node's bounds with rigorous values of its `unit_rows`, part by part."""
        node, b = self.network.graph[name], values[0].shape[0]
        low = torch.full((b, node.size), -torch.inf, dtype=self.dtype, device=self.device)
        high = -low
        for part, value in zip(parts, values, strict=True):
            low[:, part] = cast_down(value[:, : len(part)], self.dtype, self.device)
            high[:, part] = cast_up(-value[:, len(part) :], self.dtype, self.device)
        box.tighten(name, low.reshape(b, *node.shape), high.reshape(b, *node.shape))

    @torch.no_grad()
    def bound_rows(
        self, rows: Tensor, found: Enclosed, lower: Tensor, upper: Tensor, shape: InputShape | None = None
    ) -> tuple[Tensor, LinearForm]:
        """Rigorous lower bounds float64 [B, S] of rows [B or 1, S, N_out] with the default planes."""
        b = lower.shape[0]
        start = self.network.split_rows(rows.expand(b, -1, -1))
        form = backward(self.network, start, found.box, found.planes)
        value, _ = concretize(form, lower, upper, shape)
        return value, form

    def box_batch(self, row_count: int, pairs: int = 0) -> int:
        """Boxes bounded at once within the memory ceiling, every layer and `pairs` more numbers a row included."""
        width = torch.finfo(self.dtype).bits // 8
        rows = max(row_count, 2 * max((self.network.graph[n].size for n in self.network.bounded), default=1))
        return max(1, self.memory_bytes // (rows * (self.network.widest + pairs) * width * 6))

    def bound_boxes(self, lower: np.ndarray, upper: np.ndarray, rows: np.ndarray, *, refine: bool = True) -> BoxBounds:
        """See BoxEngine. Boxes go in batches that fit the memory ceiling."""
        if self.whole is not None:
            return self.whole.bound_boxes(lower, upper, rows, self.memory_bytes, refine=refine)
        parts = []
        joint = pays(self.network, torch.as_tensor(lower), torch.as_tensor(upper))
        step = self.box_batch(rows.shape[0], lower.shape[1] ** 2 if joint else 0)
        weights = self.tensor(rows).unsqueeze(0)
        for i in range(0, len(lower), step):
            low, high = self.boxes(lower[i : i + step], upper[i : i + step])
            found = self.enclose(low, high, refined=refine)
            value, form = self.bound_rows(weights, found, low, high)
            parts.append((value, form.coeffs.double(), form.offset - form.error, found.sensitivity.double()))
        if not parts:
            return BoxBounds.none(rows.shape[0], lower.shape[1])
        columns = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
        return BoxBounds(*columns, curved=joint and refine)


def _measured(rate: float, expected_s: float, spent_s: float) -> float:
    """A throughput after work that should have taken `expected_s` at it; it falls by half at most."""
    if spent_s <= 0.05:  # shorter passes measure call overhead, not throughput
        return rate
    return max(0.5 * rate, rate * expected_s / spent_s)
