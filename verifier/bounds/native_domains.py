"""Activation splitting in C++: subdomains of one box, given by splits of relu neurons.

Requires: a NativeEngine. Neurons of sigmoid and tanh keep the root's lines and are never split.
Method: beta-CROWN (Wang et al. 2021, arXiv:2103.06624) with the gradient in closed form (METHODS
section 1), blocks of rows sharing the weights; the split whose worse child is best among the most
promising ones (De Palma et al. 2021, arXiv:2104.06718).
Property: sound at the engine's level; complete up to the convergence of the multipliers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from verifier.bounds.clauses import PaddedClauses
from verifier.bounds.engine import DomainBounds
from verifier.bounds.native_engine import NativeEngine
from verifier.bounds.native_refine import Refinement
from verifier.bounds.sum_limits import limit_sums
from verifier.graph.ir import Graph
from verifier.kernels.native import native
from verifier.kernels.stages import ACTIVATIONS, Stager
from verifier.run import Run
from verifier.spec.groups import Group
from verifier.spec.problem import InputSet

#: Share of the remaining time that the neurons' bounds with default slopes may take.
ROOT_SHARE = 0.25
#: Share of the remaining time that optimising intermediate bounds may take, and its steps for each neuron.
INTERMEDIATE_SHARE = 0.15
INTERMEDIATE_ITERATIONS = 20
#: Steps for a subdomain's own bound before and after its neurons are bounded with it.
CLAUSE_ITERATIONS = 20
#: Neurons bounded with it: those that make up this share of what all relaxations cost the subdomain's bound.
CUT_OFF_SHARE = 0.8
#: First steps of the ascent where it goes on from a parent's, as a share of what they are from the start.
WARM_PACE = 0.5
#: Wall-clock seconds that one call should take, so that the clock is noticed; rows of the first call, and most.
CALL_SECONDS = 0.2
FIRST_ROWS, MOST_ROWS = 64, 1024


@dataclass(frozen=True)
class NativeBatch:
    """B subdomains; shape letters as in engine.py, K open neurons of the root, D splits at most.

    Attributes:
        slopes: uint8 [B, S, K], lower slopes in 1/255 of their range; K = 0 once forgotten.
        split: int32 [B, D], neurons split, -1 for none; sign: int8 [B, D], sign * z >= 0 was imposed.
        multiplier: float32 [B, S, D].
        clause: int32 [B]; margin: float64 [B]; candidates: int32 [B, C], best first, -1 for none.
    """

    slopes: np.ndarray
    split: np.ndarray
    sign: np.ndarray
    multiplier: np.ndarray
    clause: np.ndarray
    margin: np.ndarray
    candidates: np.ndarray

    def __len__(self) -> int:
        return len(self.clause)

    @property
    def margins(self) -> np.ndarray:
        """See engine.DomainBatch."""
        return self.margin

    @property
    def clauses(self) -> np.ndarray:
        """See engine.DomainBatch."""
        return self.clause

    @property
    def stuck(self) -> np.ndarray:
        """See engine.DomainBatch."""
        return self.candidates[:, 0] < 0

    @property
    def nbytes(self) -> int:
        """See engine.DomainBatch."""
        return sum(getattr(self, f.name).nbytes for f in fields(self))

    def select(self, index: np.ndarray) -> NativeBatch:
        """See engine.DomainBatch."""
        return NativeBatch(*(getattr(self, f.name)[index] for f in fields(self)))


class NativeDomains:
    """See engine.DomainEngine.

    Args:
        deadline: time.monotonic() value that no step should run far beyond.
        inputs: see NativeEngine.domains.
    """

    def __init__(
        self,
        engine: NativeEngine,
        lower: np.ndarray,
        upper: np.ndarray,
        clauses: PaddedClauses,
        deadline: float = np.inf,
        inputs: InputSet | None = None,
    ):
        module = native()
        self.clauses = clauses
        self._deadline = deadline
        self._long_sums = engine.long_sums
        self._make = lambda threads: engine.domains(lower, upper, 0.0, threads, inputs=inputs)
        self.threads = engine.threads
        self.core = engine.domains(lower, upper, ROOT_SHARE * self._remaining(), inputs=inputs)
        self.capacity = module.split_candidates
        self._refinement = Refinement()
        self._count_open()
        c, s = clauses.limits.shape
        self._target: dict[str, Any] = {"stage": 0, "rows": clauses.rows.reshape(c * s, -1)}
        self._spec = np.arange(c * s, dtype=np.int32)
        self.batch_size = max(1, FIRST_ROWS // s)

    def _remaining(self) -> float:
        """Seconds until the deadline, at most 1e6."""
        return float(np.clip(self._deadline - time.monotonic(), 0.0, 1e6))

    def _count_open(self) -> None:
        self.open_stage = np.asarray(self.core.open_stage, dtype=np.int32)
        self.open_index = np.asarray(self.core.open_index, dtype=np.int32)
        self.width = len(self.open_stage)
        self._root_slopes: np.ndarray | None = None

    def stage_bounds(self, stage: int) -> tuple[np.ndarray, np.ndarray]:
        """The root's bounds of z of a stage [N], counted from 1."""
        return self.core.stage_bounds(stage)

    def node_bounds(self, graph: Graph) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, np.ndarray]]:
        """What the root knows of the nodes of the engine's graph, by name, flat.

        Returns:
            bounds of what activations read, (lower, upper); the largest |value| of every node that a linear one reads.
        """
        stager = Stager(graph, rounded=False)
        stager.run()
        bounds = {
            node.inputs[0]: self.core.stage_bounds(stager.stage_of[node.name])
            for node in graph.nodes.values()
            if node.op in ACTIVATIONS
        }
        ends = {name: self.core.post_bounds(stage) for name, stage in stager.stage_of.items()}
        # A node that only its activation reads shares its stage.
        return bounds, {n: np.maximum(*map(np.abs, bounds.get(n, e))) for n, e in ends.items()}

    def tighten(self, stage: int, neurons: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> None:
        """Intersect the root's bounds of neurons of a stage; they take effect at the next `optimise_root`."""
        self.core.tighten(stage, neurons, lower, upper)

    def limit_sums(self) -> None:
        """Look closer at the deployed program's rounding; takes effect at the next `optimise_root`."""
        if not self.core.failed:
            limit_sums(self.core, self._long_sums)

    def optimise_root(self, seconds: float, iterations: int = INTERMEDIATE_ITERATIONS, first: int = 0) -> int:
        """Optimise the slopes of every open neuron's own bounds within about `seconds`, from stage `first` on.

        Returns the number of neurons that became stable. Batches made before are void.
        """
        before = self.width
        self.core.optimise_root(seconds, iterations, first)
        self._count_open()
        return before - self.width

    def initial(self, clauses: np.ndarray) -> NativeBatch:
        """See engine.DomainEngine."""
        b, s = len(clauses), self.clauses.limits.shape[1]
        return NativeBatch(
            np.zeros((b, s, 0), np.uint8),
            np.full((b, 1), -1, np.int32),
            np.zeros((b, 1), np.int8),
            np.zeros((b, s, 1), np.float32),
            np.asarray(clauses, dtype=np.int32),
            np.full(b, -np.inf),
            np.full((b, self.capacity), -1, np.int32),
        )

    def _call(self, batch: NativeBatch, subdomain: np.ndarray, job: dict[str, Any]) -> dict[str, np.ndarray]:
        """Bound the S rows of each listed subdomain [P] of the batch; rows of one subdomain are adjacent."""
        b, s = len(batch), self.clauses.limits.shape[1]
        d = batch.split.shape[1]
        clause = batch.clause[subdomain]
        spec = (clause[:, None] * s + np.arange(s, dtype=np.int32)).reshape(-1)
        slope_row = (subdomain[:, None] * s + np.arange(s)).reshape(-1).astype(np.int32)
        return self.core.bound(
            {
                "spec": self._spec[spec],
                "limit": self.clauses.limits.reshape(-1)[spec],
                "slope_row": slope_row,
                "domain": np.repeat(subdomain, s).astype(np.int32),
                "slopes": None if self.width and batch.slopes.shape[2] == 0 else batch.slopes.reshape(b * s, -1),
                "split": batch.split,
                "sign": batch.sign,
                "multiplier": batch.multiplier.reshape(b * s, d),
                "pace": 1.0,
                "extra": None,
                "extra_sign": None,
                "seconds": 0.3 * self._remaining(),
            }
            | self._target
            | job
        )

    def bound(self, batch: NativeBatch, iterations: int, stopped: Callable[[], bool]) -> DomainBounds:
        """See engine.DomainEngine."""
        b, s = len(batch), self.clauses.limits.shape[1]
        batch = self._remember(batch)
        job: dict[str, Any] = {
            "iterations": iterations if iterations > 1 else 0,
            "rigorous": True,
            "outputs": True,
        }
        if (batch.split >= 0).any():  # parameters of the parents' are near the optimum already
            job["pace"] = WARM_PACE
        begin = time.monotonic()
        found = self._call(batch, np.arange(b), job)
        self._pace(b, time.monotonic() - begin)
        limits = self.clauses.limits[batch.clause]
        margins = found["value"].reshape(b, s) - limits
        rows, best = np.arange(b), margins.argmax(axis=1)
        done = replace(
            batch,
            slopes=found["slopes"].reshape(b, s, self.width),
            multiplier=found["multiplier"].reshape(b, s, -1),
            margin=np.maximum(batch.margin, margins[rows, best]),
            candidates=found["candidates"].reshape(b, s, -1)[rows, best],
        )
        if not (batch.split >= 0).any():
            self._keep_root(done)
        minimiser = found["minimiser"].reshape(b, s, -1)[rows, best]
        return DomainBounds(done, margins, minimiser, self.clauses.closed(batch.clause, margins))

    def _pace(self, done: int, seconds: float) -> None:
        """Choose how many subdomains the next call bounds, from how long `done` of them took."""
        if 2 * done >= self.batch_size and seconds > 0:
            wanted = int(np.clip(CALL_SECONDS * done / seconds, self.batch_size / 2, 2 * self.batch_size))
            self.batch_size = int(np.clip(wanted, 1, max(1, MOST_ROWS // self.clauses.limits.shape[1])))

    def on_neurons(self, stage: int, codes: np.ndarray) -> NativeDomains:
        """The same root with clauses z_i > 0 (code 2 i) and z_i < 0 (code 2 i + 1) for neurons of a stage."""
        found = copy(self)
        count = len(codes)
        found.clauses = PaddedClauses(np.zeros((count, 1, 0)), np.zeros((count, 1)), np.zeros((count, 1), dtype=bool))
        found._target, found._spec = {"stage": stage}, np.asarray(codes, dtype=np.int32)
        found._root_slopes = None
        return found

    def refine(self, seconds: float, stopped: Callable[[], bool]) -> bool:
        """See engine.DomainEngine: neurons' own bounds by branch and bound, stage by stage."""
        return self._refinement.run(self, seconds, stopped)

    def focus(self, spare: NativeDomains | None) -> NativeDomains | None:
        """See engine.DomainEngine."""
        if self.core.failed:
            return None
        return self._copied(self._make(self.threads) if spare is None else spare.core)

    def alone(self, threads: int) -> NativeDomains:
        """See engine.DomainEngine."""
        found = self._copied(self._make(threads))
        found.threads = threads
        return found

    def use_threads(self, threads: int) -> None:
        """See engine.DomainEngine."""
        self.threads = threads
        self.core.use_threads(threads)

    def _copied(self, core: Any) -> NativeDomains:
        found = copy(self)
        found.core = core
        core.adopt(self.core)
        found._count_open()
        return found

    def cut_off(self, batch: NativeBatch, iterations: int, stopped: Callable[[], bool]) -> DomainBounds:
        """See engine.FocusedEngine; Kotha et al. 2023, arXiv:2302.01404, round after round."""
        bounds = self.bound(batch, CLAUSE_ITERATIONS, stopped)
        if bounds.closed[0] or stopped():
            return bounds
        batch, clause, s = bounds.batch, int(batch.clause[0]), int(bounds.row_margins[0].argmax())
        used = batch.split[0] >= 0
        before = self.open_stage, self.open_index
        empty = self.core.cut_off(
            self.clauses.rows[clause, s],
            float(self.clauses.limits[clause, s]),
            batch.slopes[0, s].tolist(),
            batch.split[0, used].tolist(),
            batch.sign[0, used].tolist(),
            iterations,
            CUT_OFF_SHARE,
            0.3 * self._remaining(),
        )
        self._count_open()
        if empty:
            return replace(bounds, closed=np.ones(1, dtype=bool))
        return self.bound(self.renumber(batch, *before), CLAUSE_ITERATIONS, stopped)

    def renumber(self, batch: NativeBatch, stage: np.ndarray, index: np.ndarray) -> NativeBatch:
        """The same subdomains after some of the neurons (stage, index), numbered as in them, became stable."""
        if self.width == len(stage):
            return batch  # none became stable
        before, now = (s.astype(np.int64) << 32 | i for s, i in ((stage, index), (self.open_stage, self.open_index)))
        left = np.isin(before, now)
        assert np.array_equal(before[left], now), "open neurons are in the order of their stages, and none is new"
        number = np.append(np.where(left, np.cumsum(left) - 1, -1), -1)
        kept = np.flatnonzero(number[:-1] >= 0)
        split = number[batch.split].astype(np.int32)  # -1 stays -1; what is stable now no longer needs its split
        order = np.argsort(split < 0, axis=1, kind="stable")
        candidates = number[batch.candidates].astype(np.int32)
        slopes = batch.slopes
        if slopes.shape[2]:
            slopes = np.zeros((*batch.slopes.shape[:2], self.width), np.uint8)
            slopes[:, :, number[kept]] = batch.slopes[:, :, kept]
        return replace(
            batch,
            slopes=slopes,
            split=np.take_along_axis(split, order, axis=1),
            sign=np.take_along_axis(np.where(split >= 0, batch.sign, 0).astype(np.int8), order, axis=1),
            multiplier=np.take_along_axis(batch.multiplier, order[:, None, :], axis=2),
            candidates=np.take_along_axis(candidates, np.argsort(candidates < 0, axis=1, kind="stable"), axis=1),
        )

    def branch(self, batch: NativeBatch) -> NativeBatch:
        """See engine.DomainEngine."""
        batch = self._remember(batch)
        b, s = len(batch), self.clauses.limits.shape[1]
        owner, place = np.nonzero(batch.candidates >= 0)
        pairs = len(owner)
        neuron = np.repeat(batch.candidates[owner, place], s).astype(np.int32)
        job = {
            "iterations": 0,
            "rigorous": False,
            "outputs": False,
            "extra": np.concatenate([neuron, neuron]),
            "extra_sign": np.repeat(np.array([1, -1], np.int8), pairs * s),
        }
        value = self._call(batch, np.concatenate([owner, owner]), job)["value"]
        limits = self.clauses.limits[batch.clause[owner]]
        margins = (value.reshape(2, pairs, s) - limits).max(axis=2)
        score = np.full(batch.candidates.shape, -np.inf)
        score[owner, place] = margins.min(axis=0) + 0.01 * np.minimum(margins.max(axis=0), 1e6)
        chosen = batch.candidates[np.arange(b), score.argmax(axis=1)]
        return self.split(batch, chosen)

    def split(self, batch: NativeBatch, neurons: np.ndarray) -> NativeBatch:
        """Two children of every subdomain, z >= 0 first and then z <= 0; neurons [B] are open and unsplit."""
        b = len(batch)
        free = (batch.split >= 0).sum(axis=1)  # splits fill the columns from the left
        if int(free.max(initial=0)) >= batch.split.shape[1]:
            batch = _wider(batch, batch.split.shape[1] + 8)
        both = batch.select(np.concatenate([np.arange(b), np.arange(b)]))
        rows, at = np.arange(2 * b), np.concatenate([free, free])
        both.split[rows, at] = np.concatenate([neurons, neurons])
        both.sign[rows, at] = np.repeat(np.array([1, -1], np.int8), b)
        both.multiplier[rows, :, at] = 0.0
        return both

    def join(self, parts: Sequence[NativeBatch]) -> NativeBatch:
        """See engine.DomainEngine."""
        wide = max(p.split.shape[1] for p in parts)
        if len({p.slopes.shape[2] for p in parts}) > 1:
            parts = [self._remember(p) for p in parts]
        same = [_wider(p, wide) for p in parts]
        return NativeBatch(*(np.concatenate([getattr(p, f.name) for p in same]) for f in fields(NativeBatch)))

    def forget(self, batch: NativeBatch) -> NativeBatch:
        """See engine.DomainEngine; slopes go back to their clause's at the root."""
        return replace(batch, slopes=np.zeros((*batch.slopes.shape[:2], 0), np.uint8))

    def _keep_root(self, batch: NativeBatch) -> None:
        """Use these unsplit subdomains' slopes for their clauses wherever slopes were forgotten."""
        if self._root_slopes is None:
            c, s = self.clauses.limits.shape
            self._root_slopes = np.full((c, s, self.width), 128, np.uint8)
        self._root_slopes[batch.clause] = batch.slopes

    def _remember(self, batch: NativeBatch) -> NativeBatch:
        if batch.slopes.shape[2] == self.width or self._root_slopes is None:
            return batch
        return replace(batch, slopes=self._root_slopes[batch.clause])


def _wider(batch: NativeBatch, wide: int) -> NativeBatch:
    """The same batch with room for `wide` splits."""
    more = wide - batch.split.shape[1]
    if more == 0:
        return batch
    return replace(
        batch,
        split=np.pad(batch.split, ((0, 0), (0, more)), constant_values=-1),
        sign=np.pad(batch.sign, ((0, 0), (0, more))),
        multiplier=np.pad(batch.multiplier, ((0, 0), (0, 0), (0, more))),
    )


def root_domains(engine: NativeEngine, group: Group, index: int, run: Run) -> tuple[NativeDomains, np.ndarray]:
    """Bounds of box `index` with default slopes, then better ones; the clauses they leave open."""
    clauses = PaddedClauses.of(group, index)
    with run.stage("intermediate bounds"):
        domains = NativeDomains(engine, group.lower[index], group.upper[index], clauses, run.deadline, group.inputs)
    every = np.arange(len(clauses.limits))

    def open_clauses(note: str) -> np.ndarray:
        bounds = domains.bound(domains.initial(every), 0, run.stopped)
        left = np.flatnonzero(~bounds.closed)
        run.bound_after = float(bounds.batch.margin.min())
        run.say("bounds", f"{note}: {len(left)} of {len(every)} clauses open, worst margin {run.bound_after:.6g}")
        return left

    left = open_clauses(f"default slopes, {domains.width} neurons open")
    run.bound_before = run.bound_after
    run.visited += 1
    if len(left):
        with run.stage("rounding"):
            domains.limit_sums()
        with run.stage("intermediate slopes"):
            stable = domains.optimise_root(INTERMEDIATE_SHARE * min(run.remaining(), 300.0))
        left = open_clauses(f"{stable} more neurons stable")
    return domains, left
