"""A graph prepared for bounding: lowered, its constants as tensors, its nonlinear inputs listed."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from verifier.errors import UnsupportedOperator
from verifier.graph.ir import Graph, Node
from verifier.ops.base import NodeTensors
from verifier.ops.elementwise import ELEMENTWISE
from verifier.ops.linear import LINEAR
from verifier.ops.lowering import lower
from verifier.outcome import Soundness

#: Nodes that add up or move what a relaxed node gives, without changing any sign.
_SUMS = ("ReduceSum", "Reshape", "Transpose")
#: How much larger than the sum a relaxed node must be, and the most numbers of the matrices across it.
_EXPANSION, _LARGEST_SHORTCUT = 4, 1 << 24

#: Linear nodes that only move data.
MOVES = ("Reshape", "Transpose", "Select")


class Network:
    """The lowered graph on one device, in one dtype.

    Attributes:
        graph: linear, elementwise and Mul nodes only.
        order: nodes in evaluation order, Input nodes left out.
        relaxed: names of the elementwise and Mul nodes, in order.
        partitions: relaxed nodes whose last axis sums to one.
        bounded: names of the nodes whose bounds decide relaxations ("pre-activations"), in order:
            what relaxed nodes read, followed back through nodes that only move data.
        moved: what a relaxed node reads through moves -> (bounded node, its flat index per element).
        own_unit, deployed_unit: unit round-off of the engine, and of the deployed program
            (0 when only real arithmetic is asked for).
    """

    def __init__(self, graph: Graph, dtype: torch.dtype, device: torch.device, soundness: Soundness):
        self.source = graph
        self.graph = lower(graph)
        self.dtype, self.device = dtype, device
        self.own_unit = torch.finfo(dtype).eps / 2
        self.tiny = torch.finfo(dtype).tiny
        deployed = 2.0**-24 if graph.dtype == "float32" else 2.0**-53
        self.deployed_unit = deployed if soundness is Soundness.IEEE_FLOAT else 0.0
        #: the largest number of the deployed program, inf when only real arithmetic is asked for
        self.largest = np.inf if not self.deployed_unit else float(np.finfo(graph.dtype).max)
        self.order: tuple[Node, ...] = tuple(n for n in self.graph.nodes.values() if n.op != "Input")
        self.at = {n.name: NodeTensors(self.graph, n, dtype, device) for n in self.graph.nodes.values()}
        for node in self.order:
            if node.op not in LINEAR and node.op not in ELEMENTWISE and node.op != "Mul":
                raise UnsupportedOperator(node.op, node.name, "no bound engine has a rule for it")
        self.relaxed = tuple(n.name for n in self.order if n.op not in LINEAR)
        self.partitions = frozenset(n.name for n in self.order if n.attrs.get("sums_to_one"))
        read = {i for name in self.relaxed for i in self.graph[name].inputs}
        self.moved: dict[str, tuple[str, Tensor]] = {}
        for name in read:
            origin, index = self._origin(name)
            if origin != name:
                self.moved[name] = (origin, index)
        kept = {self.moved[name][0] if name in self.moved else name for name in read}
        self.bounded = tuple(name for name in self.graph.nodes if name in kept)
        self.readers = self._readers()
        self.consumers = self.graph.consumers()

    @property
    def widest(self) -> int:
        """Scalars of the largest node."""
        return max(n.size for n in self.graph.nodes.values())

    def split_inputs(self, flat: Tensor) -> dict[str, Tensor]:
        """[B, N_in] -> {input name: [B, *shape]}."""
        parts = flat.split([self.graph[n].size for n in self.graph.inputs], dim=-1)
        return {n: p.reshape(-1, *self.graph[n].shape) for n, p in zip(self.graph.inputs, parts, strict=True)}

    def join_outputs(self, values: dict[str, Tensor]) -> Tensor:
        """{name: [B, *shape]} -> [B, N_out]."""
        lead = max(values[n].shape[0] for n in self.graph.outputs)
        flat = [values[n].reshape(-1, self.graph[n].size).expand(lead, -1) for n in self.graph.outputs]
        return torch.cat(flat, dim=1)

    def split_rows(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows over the flat outputs [B, S, N_out] -> {output name: [B, S, *shape]} (summed where repeated)."""
        parts = rows.split([self.graph[n].size for n in self.graph.outputs], dim=-1)
        found: dict[str, Tensor] = {}
        for name, part in zip(self.graph.outputs, parts, strict=True):
            shaped = part.reshape(*part.shape[:2], *self.graph[name].shape)
            found[name] = found[name] + shaped if name in found else shaped
        return found

    def evaluate(self, flat: Tensor, *, surrogate: bool = False) -> Tensor:
        """Outputs [B, N_out] at points [B, N_in], differentiable; `surrogate` gradients help attacks over jumps."""
        return self.join_outputs(self.values(flat, surrogate=surrogate))

    def values(self, flat: Tensor, *, surrogate: bool = False) -> dict[str, Tensor]:
        """The values of all nodes [B, *shape] at points [B, N_in]; see `evaluate`."""
        values = self.split_inputs(flat)
        for node in self.order:
            inputs = [values[i] for i in node.inputs]
            if surrogate and node.op in ELEMENTWISE:
                values[node.name] = ELEMENTWISE[node.op].surrogate(inputs[0], node)
            else:
                values[node.name] = self.node_value(node, inputs)
        return values

    def node_value(self, node: Node, inputs: list[Tensor]) -> Tensor:
        """One node's value from its inputs' values."""
        if node.op in LINEAR:
            return LINEAR[node.op].value(self.at[node.name], inputs)
        if node.op == "Mul":
            return inputs[0] * inputs[1]
        return ELEMENTWISE[node.op].value(inputs[0], node)

    def _origin(self, name: str) -> tuple[str, Tensor]:
        """The node that `name` only moves data of, and the flat index there of each element."""
        node = self.graph[name]
        index = torch.arange(node.size, device=self.device)
        while node.op in MOVES:
            if node.op == "Select" and node.attrs["indices"].min(initial=0) < 0:
                break
            (source,) = node.inputs
            shape = self.graph[source].shape
            flat = torch.arange(self.graph[source].size, device=self.device).reshape(1, *shape)
            index = LINEAR[node.op].value(self.at[node.name], [flat]).reshape(-1)[index]
            name, node = source, self.graph[source]
        return name, index

    def _readers(self) -> dict[str, list[tuple[str, Tensor | None]]]:
        """Bounded node -> (relaxed node, flat index of the bounded node each of its elements reads)."""
        found: dict[str, list[tuple[str, Tensor | None]]] = {name: [] for name in self.bounded}
        for name in self.relaxed:
            for source in self.graph[name].inputs:
                origin, index = self.moved.get(source, (source, None))
                found[origin].append((name, index))
        return found

    @cached_property
    def shortcuts(self) -> dict[str, frozenset[str]]:
        """Small nodes that sum over one large relaxed node, and the smaller nodes that this one is made of."""
        return {top: stop for top, (stop, _) in self._spans.items()}

    @cached_property
    def crossed(self) -> frozenset[str]:
        """The nodes that shortcuts cross, their tops included."""
        return frozenset().union(*(inside for _, inside in self._spans.values()))

    @cached_property
    def _spans(self) -> dict[str, tuple[frozenset[str], frozenset[str]]]:
        """Top of a shortcut -> the nodes where it stops, and those inside it.

        Attention is the case in mind: a matrix product of two variables, or the sum in a softmax,
        expands its operands many times over before it sums them up again.
        """
        found = {}
        for name in self.relaxed:
            inside, top = {name}, name
            while len(self.consumers[top]) == 1 and self.graph[self.consumers[top][0]].op in _SUMS:
                top = self.consumers[top][0]
                inside.add(top)
            size = self.graph[top].size
            if self.graph[name].size < _EXPANSION * size or top in self.graph.outputs:
                continue
            stop: set[str] = set()
            for node in reversed(tuple(self.graph.nodes.values())):
                if node.name in inside or not inside.intersection(self.consumers[node.name]):
                    continue
                linear = node.op in LINEAR and node.inputs and node.size > 2 * size
                (inside if linear and inside.issuperset(self.consumers[node.name]) else stop).add(node.name)
            if size * sum(self.graph[n].size for n in stop) <= _LARGEST_SHORTCUT:
                found[top] = (frozenset(stop), frozenset(inside))
        return found

    def interval_suffices(self, name: str) -> bool:
        """True when a backward pass cannot beat the node's interval: an elementwise function of a bounded node."""
        return self.graph[name].op in ELEMENTWISE

    def interval_is_exact(self, name: str) -> bool:
        """True when one affine map at most lies between the inputs and `name`, so intervals are exact."""
        affine, node = 0, self.graph[name]
        while node.op != "Input":
            if len(node.inputs) != 1 or node.op not in LINEAR:
                return False
            affine += LINEAR[node.op].terms(self.at[node.name]) > 0
            node = self.graph[node.inputs[0]]
        return affine <= 1

    @property
    def convolves(self) -> bool:
        """True when convolutions make up most of the work."""
        work = {node.name: _transpose_flops(node, self.graph) for node in self.order}
        return sum(work[node.name] for node in self.order if node.op == "Conv") > 0.5 * sum(work.values())

    def row_flops(self, name: str, without: frozenset[str] = frozenset()) -> float:
        """Floating-point operations to carry one coefficient row from node `name` back to the inputs.

        Args:
            without: nodes that cost nothing.
        """
        needed, total = {name}, 0.0
        for node in reversed(self.order):
            if node.name in needed:
                needed.update(node.inputs)
                total += 0.0 if node.name in without else _transpose_flops(node, self.graph)
        return total


def _transpose_flops(node: Node, graph: Graph) -> float:
    weight = node.attrs.get("weight")
    if weight is None:
        return 40.0 * node.size  # a few passes over memory cost as much as this many products
    if node.op == "Dense":
        return 2.0 * node.size * weight.shape[0]
    if node.op == "ConvTranspose":
        return 2.0 * graph[node.inputs[0]].size * math.prod(weight.shape[1:])
    return 2.0 * node.size * np.prod(weight.shape[1:])
