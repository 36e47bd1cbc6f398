"""Grows a tree for each clause of a case by splitting neurons, over tightened bounds of the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from verifier.bounds.clauses import PaddedClauses
from verifier.bounds.engine import DomainBounds
from verifier.bounds.native_domains import NativeDomains
from verifier.bounds.native_engine import NativeEngine
from verifier.kernels.stages import ACTIVATIONS, Stager
from verifier.proof.check import Checker
from verifier.proof.format import NeuronRows, Tree
from verifier.proof.growth import Growing, NotProved, grown
from verifier.proof.tree import Leaf
from verifier.run import Run
from verifier.spec.groups import Group

#: Steps of the ascent for an unsplit box, for subdomains and for a neuron's own bounds.
ROOT_STEPS, STEPS, NEURON_STEPS = 60, 16, 20


@dataclass(frozen=True)
class _Open:
    """Subdomains that were bounded: where they stand in the tree, and their splits (neuron, sign) from the top."""

    bounds: DomainBounds
    nodes: list[Growing]
    paths: list[tuple[tuple[int, int], ...]]


class NeuronProver:
    """Proves one box of a group.

    Raises:
        NotProved: by its methods, when the time was over or a subdomain has nothing left to split.
    """

    def __init__(self, checker: Checker, engine: NativeEngine, group: Group, run: Run):
        self._checker, self._run, self._case = checker, run, int(group.case[0])
        lower, upper = group.lower[0], group.upper[0]
        self._box = lower, upper
        self._domains = NativeDomains(engine, lower, upper, PaddedClauses.of(group, 0), run.deadline)
        stager = Stager(engine.graph, rounded=False)
        stager.run()
        first = checker.program.first_neuron
        bent = [node for node in engine.graph.nodes.values() if node.op in ACTIVATIONS]
        #: Stage of the engine -> the proof's number of its first neuron.
        self._first = {stager.stage_of[node.name]: first[node.inputs[0]] for node in bent}

    def parts(self) -> Iterator[Tree | NeuronRows]:
        """Bounds of neurons where they are needed, then a tree for each clause."""
        clauses = self._checker.clauses_of(self._case)
        rows = self._tighten()
        self._checker.use(rows)
        yield rows
        for number in clauses.tolist():
            yield self._tree(number)

    def _numbers(self) -> np.ndarray:
        """The proof's numbers of the engine's open neurons, int [K]."""
        starts = np.array([self._first[s] for s in self._domains.open_stage.tolist()], dtype=np.int64)
        return starts + self._domains.open_index

    def _tighten(self) -> NeuronRows:
        """Bounds of every open neuron with slopes of its own, stage after stage, each with the bounds before it."""
        domains, stages = self._domains, sorted(set(self._domains.open_stage.tolist()))
        found = []
        for stage in stages[1:]:  # nothing bends before the first
            index = domains.open_index[domains.open_stage == stage]
            if not len(index):
                continue
            inner = domains.on_neurons(stage, np.stack([2 * index, 2 * index + 1]).reshape(-1))
            values: list[np.ndarray] = []
            slopes: list[np.ndarray] = []
            for part in _batches(np.arange(2 * len(index)), domains.batch_size):
                bounds = inner.bound(inner.initial(part), NEURON_STEPS, self._run.stopped)
                values.append(bounds.row_margins[:, 0])
                slopes.append(bounds.batch.slopes[:, 0])
            found.append((self._first[stage] + index, self._numbers(), np.concatenate(slopes)))
            low, high = (ends[index] for ends in domains.stage_bounds(stage))
            below, above = np.concatenate(values).reshape(2, -1)
            domains.tighten(stage, index, np.maximum(low, below), np.minimum(high, -above))
            domains.optimise_root(self._run.remaining(), 0, stage + 1)
        free = np.unique(np.concatenate([own for _, own, _ in found] or [np.zeros(0, np.int64)]))
        rows = [np.zeros((len(optimal), len(free)), np.uint8) for *_, optimal in found]
        for row, (_, own, optimal) in zip(rows, found, strict=True):
            row[:, np.searchsorted(free, own)] = optimal
        neurons = np.concatenate([np.tile(own, 2) for own, *_ in found] or [free])
        sides = np.concatenate([np.repeat([1, -1], len(own)) for own, *_ in found] or [free])
        given = np.concatenate(rows or [np.zeros((0, len(free)), np.uint8)])
        return NeuronRows(self._case, neurons.astype(np.int32), sides.astype(np.int8), free.astype(np.int32), given)

    def _tree(self, number: int) -> Tree:
        """The tree of one clause."""
        neurons = self._numbers()
        order, root = np.argsort(neurons), Growing()
        tree = grown(root, self._case, np.array([number]), neurons[order])
        first = self._domains.bound(self._domains.initial(np.array([number])), ROOT_STEPS, self._run.stopped)
        waiting = [_Open(first, [root], [()])]
        while waiting:
            if self._run.stopped():
                count = sum(len(w.nodes) for w in waiting)
                raise NotProved(f"clause {number}: {count} subdomains were left when the time was over")
            some = waiting.pop()
            left = np.flatnonzero(~self._held(tree, order, some))
            self._run.visited += len(some.nodes)
            for part in _batches(left, max(1, self._domains.batch_size // 2)):
                if some.bounds.batch.select(part).stuck.any():
                    raise NotProved(f"clause {number}: a subdomain has no neuron left to split")
                waiting.append(self._split(some, part, neurons))
            self._run.tick(sum(len(w.nodes) for w in waiting), float(some.bounds.row_margins.max()))
        return grown(root, self._case, np.array([number]), neurons[order])

    def _split(self, some: _Open, part: np.ndarray, neurons: np.ndarray) -> _Open:
        """The children of some subdomains, bounded: those above zero, then those below."""
        both = self._domains.branch(some.bounds.batch.select(part))
        nodes: tuple[list[Growing], list[Growing]] = ([], [])
        paths: tuple[list[tuple[tuple[int, int], ...]], list[tuple[tuple[int, int], ...]]] = ([], [])
        for j, k in enumerate(part.tolist()):
            neuron = int(neurons[both.split[j, len(some.paths[k])]])
            for side, (child, sign) in enumerate(zip(some.nodes[k].split_neuron(neuron), (1, -1), strict=True)):
                nodes[side].append(child)
                paths[side].append((*some.paths[k], (neuron, sign)))
        bounds = self._domains.bound(both, STEPS, self._run.stopped)
        return _Open(bounds, nodes[0] + nodes[1], paths[0] + paths[1])

    def _held(self, tree: Tree, order: np.ndarray, some: _Open) -> np.ndarray:
        """Which subdomains are leaves [B]; they are given their slopes and multipliers."""
        batch, margins = some.bounds.batch, some.bounds.row_margins
        best, held = margins.argmax(axis=1), np.zeros(len(some.nodes), dtype=bool)
        hopeful = np.flatnonzero(margins.max(axis=1) > 0)
        if not len(hopeful):
            return held
        slopes = batch.slopes[hopeful, best[hopeful]][:, order]
        multipliers = [batch.multiplier[k, best[k], : len(some.paths[k])].astype(np.float32) for k in hopeful]
        lower, upper = self._box
        leaves = [
            Leaf(lower, upper, 0, some.paths[k], own, j)
            for j, (k, own) in enumerate(zip(hopeful, multipliers, strict=True))
        ]
        held[hopeful] = self._checker.margins(replace(tree, slopes=slopes), leaves) > 0
        for k, row, own in zip(hopeful, slopes, multipliers, strict=True):
            if held[k]:
                some.nodes[k].slopes, some.nodes[k].multipliers = row, own
        return held


def _batches(items: np.ndarray, size: int) -> list[np.ndarray]:
    """Items in parts of at most `size`."""
    return [items[k : k + size] for k in range(0, len(items), max(1, size))]
