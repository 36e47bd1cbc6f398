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
from verifier.proof.bounder import Domain
from verifier.proof.check import Checker
from verifier.proof.format import NeuronRows, Tree
from verifier.proof.growth import LEAST_MARGIN, Growing, NotProved, grown
from verifier.proof.tree import Leaf
from verifier.run import Run
from verifier.spec.groups import Group

#: Steps of the ascent for an unsplit box, for subdomains, for those that cannot be split, for a neuron's own bounds.
ROOT_STEPS, STEPS, LAST_STEPS, NEURON_STEPS = 60, 16, 500, 20


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
        # What cuts the box is not known to the engine where it is None: then its bounds say little of the checker's.
        inputs = group.inputs if group.inputs is not None and engine.splits_on(group.inputs) else None
        self._blind = group.inputs is not inputs
        self._domains = NativeDomains(engine, lower, upper, PaddedClauses.of(group, 0), run.deadline, inputs)
        stager = Stager(engine.graph, rounded=False)
        stager.run()
        bent = [node for node in engine.graph.nodes.values() if node.op in ACTIVATIONS]
        #: Step -> stage of the engine, and that -> the proof's number of its first neuron.
        self._stage = {node.inputs[0]: stager.stage_of[node.name] for node in bent}
        self._first = {stage: checker.program.neurons[name].start for name, stage in self._stage.items()}

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
        """Slopes that bound every unstable neuron, stage by stage, each over what the checker makes of those before."""
        found: dict[str, NeuronRows] = {}
        told = 0

        def tell(domain: Domain) -> None:
            """Give the engine the checker's bounds of the last stage, so that both see the same."""
            nonlocal told
            if found and told < len(found):
                name, told = list(found)[-1], len(found)
                stage = self._stage[name]
                low, high = (ends[name][0] for ends in (domain.lower, domain.upper))
                index = np.arange(len(low))
                self._domains.tighten(stage, index, low, high)
                self._domains.optimise_root(self._run.remaining(), 0, stage + 1)

        def propose(name: str, domain: Domain) -> NeuronRows | None:
            tell(domain)
            rows = self._rows(name, (domain.lower[name][0] < 0) & (domain.upper[name][0] > 0))
            if rows is not None:
                found[name] = rows
            return rows

        lower, upper = self._box
        tell(self._checker.bounder.enclose(lower[None], upper[None], propose, self._checker.inputs_of(self._case)))
        every = list(found.values())
        free = np.unique(np.concatenate([rows.free for rows in every] or [np.zeros(0, np.int32)]))
        wide = [np.zeros((len(rows.slopes), len(free)), np.uint8) for rows in every]
        for row, rows in zip(wide, every, strict=True):
            row[:, np.searchsorted(free, rows.free)] = rows.slopes
        neuron = np.concatenate([rows.neuron for rows in every] or [free])
        side = np.concatenate([rows.side for rows in every] or [free.astype(np.int8)])
        return NeuronRows(self._case, neuron, side, free, np.concatenate(wide or [np.zeros((0, len(free)), np.uint8)]))

    def _rows(self, name: str, unstable: np.ndarray) -> NeuronRows | None:
        """The engine's slopes for neurons of a step that are unstable to the checker, if something bends before."""
        domains, stage = self._domains, self._stage[name]
        index = np.flatnonzero(unstable)
        if not len(index) or not (domains.open_stage < stage).any():
            return None
        inner = domains.on_neurons(stage, np.stack([2 * index, 2 * index + 1]).reshape(-1))
        slopes = []
        for part in _batches(np.arange(2 * len(index)), domains.batch_size):
            slopes.append(inner.bound(inner.initial(part), NEURON_STEPS, self._run.stopped).batch.slopes[:, 0])
        neuron = np.tile(self._first[stage] + index, 2).astype(np.int32)
        side = np.repeat(np.array([1, -1], np.int8), len(index))
        return NeuronRows(self._case, neuron, side, self._numbers().astype(np.int32), np.concatenate(slopes))

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
            stuck = left[some.bounds.batch.stuck[left]]
            if len(stuck):  # nothing is left but to converge
                last = self._longer(some, stuck)
                if not self._held(tree, order, last).all():
                    raise NotProved(f"clause {number}: a subdomain has no neuron left to split")
            for part in _batches(np.setdiff1d(left, stuck), max(1, self._domains.batch_size // 2)):
                waiting.append(self._split(some, part, neurons))
            self._run.tick(sum(len(w.nodes) for w in waiting), float(some.bounds.row_margins.max()))
        return grown(root, self._case, np.array([number]), neurons[order])

    def _longer(self, some: _Open, part: np.ndarray) -> _Open:
        """Some subdomains bounded with many steps."""
        bounds = self._domains.bound(some.bounds.batch.select(part), LAST_STEPS, self._run.stopped)
        return _Open(bounds, [some.nodes[k] for k in part], [some.paths[k] for k in part])

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
        hopeful = np.flatnonzero((margins.max(axis=1) > 0) | self._blind)
        if not len(hopeful):
            return held
        slopes = batch.slopes[hopeful, best[hopeful]][:, order]
        multipliers = [batch.multiplier[k, best[k], : len(some.paths[k])].astype(np.float32) for k in hopeful]
        lower, upper = self._box
        leaves = [
            Leaf(lower, upper, 0, some.paths[k], own, j)
            for j, (k, own) in enumerate(zip(hopeful, multipliers, strict=True))
        ]
        held[hopeful] = self._checker.margins(replace(tree, slopes=slopes), leaves) > LEAST_MARGIN
        for k, row, own in zip(hopeful, slopes, multipliers, strict=True):
            if held[k]:
                some.nodes[k].slopes, some.nodes[k].multipliers = row, own
        return held


def _batches(items: np.ndarray, size: int) -> list[np.ndarray]:
    """Items in parts of at most `size`."""
    return [items[k : k + size] for k in range(0, len(items), max(1, size))]
