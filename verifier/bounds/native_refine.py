"""Tighter intermediate bounds of a whole box by branch and bound on single neurons.

Every open neuron's two bounds are small verification problems over the stages before it; splitting
their worst subdomain again and again raises the minimum that all leaves share. What the published
verifiers buy from a MILP solver (Tjeng et al. 2019, arXiv:1711.07356) comes here from the same kernel.
Property: sound; each bound is the lowest of rigorous bounds over leaves that cover the box.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from verifier.bounds.native_domains import NativeBatch, NativeDomains

#: Steps for each subdomain: many poor bounds of small parts beat few good ones of large parts.
ITERATIONS = 4
#: Rounds for one stage in one call: a target's leaves are one more than its rounds.
MOST_ROUNDS = 200
#: A stage whose open neurons' ranges shrink less than this in all is not worth its time.
LEAST_GAIN = 0.05
#: Share of its time after which a stage must have gained the same share of that.
PROBE_SHARE = 0.2
#: Rounds from which a stage that hardly moved says that it will not; with fewer, that its time was short.
TELLING_ROUNDS = 4
#: Share of a stage's time for splitting; the rest renews the bounds of the stages after it.
SPLIT_SHARE = 0.7
#: A stage whose leaves take more memory starts from the whole box the next time.
KEPT_BYTES = 1 << 27


@dataclass(frozen=True)
class Targets:
    """Bounds of +z and -z of some neurons of one stage, and the leaves that prove them.

    Attributes:
        neurons: [n]; target t < n is +z of neurons[t], n + t is -z of it.
        leaves: subdomains that cover the box for every target, which is their `clause`; but those in `done`.
        done: [2 n], lowest bound of the leaves that cannot be split any further, inf where there are none.
        numbering: open_stage and open_index of the domains that the leaves' splits refer to.
    """

    neurons: np.ndarray
    leaves: NativeBatch
    done: np.ndarray
    numbering: tuple[np.ndarray, np.ndarray]

    @property
    def lowest(self) -> np.ndarray:
        """Lower bounds of z and of -z over the box, [2, n]."""
        found = self.done.copy()
        np.minimum.at(found, self.leaves.clause, self.leaves.margin)
        return found.reshape(2, -1)


class Refinement:
    """Tightens a root stage by stage; a later call goes on where the last one stopped."""

    def __init__(self) -> None:
        self._kept: dict[int, Targets] = {}

    def run(self, domains: NativeDomains, seconds: float, stopped: Callable[[], bool]) -> bool:
        """Spend about `seconds`; True where some stage gained, or had too little time to tell."""
        end = time.monotonic() + seconds
        stages = [int(s) for s in np.unique(domains.open_stage)][1:]  # the first open stage is exact
        hopeful = False
        for k, stage in enumerate(stages):
            now = time.monotonic()
            if stopped() or now >= end:
                break
            share = (end - now) / (len(stages) - k)
            moved, rounds = self._refine_stage(domains, stage, now + SPLIT_SHARE * share, stopped)
            hopeful |= moved or rounds < TELLING_ROUNDS
            if moved:  # else after the first part of its share
                domains.optimise_root(share, first=stage + 1)
        return hopeful

    def _refine_stage(
        self, domains: NativeDomains, stage: int, end: float, stopped: Callable[[], bool]
    ) -> tuple[bool, int]:
        """Raise the bounds of one stage's open neurons until `end`; whether they moved, and after how many rounds."""
        neurons = domains.open_index[domains.open_stage == stage]
        if len(neurons) == 0:
            return False, MOST_ROUNDS
        low, high = (b[neurons] for b in domains.stage_bounds(stage))
        inner = domains.on_neurons(stage, np.stack([2 * neurons, 2 * neurons + 1]).reshape(-1))
        targets = _resumed(inner, self._kept.pop(stage, None), neurons, end, stopped)
        targets, rounds = _raise_minima(inner, targets, low, high, end, stopped)
        if 0 < targets.leaves.slopes.size <= KEPT_BYTES:  # none where time was over before the first bound
            self._kept[stage] = targets
        best = targets.lowest
        # A side that was proved positive makes its neuron stable; leaves' bounds of the others count as they are.
        domains.tighten(stage, neurons, np.maximum(low, best[0]), np.minimum(high, -best[1]))
        return _gain(low, high, best) > LEAST_GAIN, rounds


def _resumed(
    inner: NativeDomains, kept: Targets | None, neurons: np.ndarray, end: float, stopped: Callable[[], bool]
) -> Targets:
    """The targets of neurons that are still open, with the leaves they had, or from the whole box."""
    numbering = (inner.open_stage, inner.open_index)
    still = np.zeros(0, dtype=bool) if kept is None else np.isin(kept.neurons, neurons)
    if kept is None or not np.array_equal(kept.neurons[still], neurons):
        count = 2 * len(neurons)
        leaves = _bounded(inner, inner.initial(np.arange(count)), end, stopped)
        return Targets(neurons, leaves, np.full(count, np.inf), numbering)
    left = np.tile(still, 2)
    number = np.where(left, np.cumsum(left) - 1, -1)
    leaves = kept.leaves.select(number[kept.leaves.clause] >= 0)
    leaves = replace(leaves, clause=number[leaves.clause].astype(np.int32))
    was_stuck = leaves.stuck
    leaves = inner.renumber(leaves, *kept.numbering)
    # Where all candidates became stable there may be others.
    lost = leaves.stuck & ~was_stuck
    if lost.any():
        leaves = inner.join([leaves.select(~lost), _bounded(inner, leaves.select(lost), end, stopped)])
    return Targets(neurons, leaves, kept.done[left], numbering)


def _gain(low: np.ndarray, high: np.ndarray, best: np.ndarray) -> float:
    """Share of the neurons' ranges that lower bounds of z and of -z [2, n] take away; all of it where one is stable."""
    new_low, new_high = np.maximum(low, best[0]), np.minimum(high, -best[1])
    left = np.where((new_low < 0) & (new_high > 0), new_high - new_low, 0.0).sum()
    return 1.0 - float(left / (high - low).sum())


def _raise_minima(
    inner: NativeDomains,
    targets: Targets,
    low: np.ndarray,
    high: np.ndarray,
    end: float,
    stopped: Callable[[], bool],
) -> tuple[Targets, int]:
    """Split each target's worst leaf, round after round; returns their number too, MOST_ROUNDS where nothing was left.

    Stops early where the first part of the time hardly moved what is known, low and high [n].
    """
    probe = time.monotonic() + PROBE_SHARE * (end - time.monotonic())
    for rounds in range(MOST_ROUNDS):
        best = targets.lowest
        if time.monotonic() > probe and rounds >= TELLING_ROUNDS:
            if _gain(low, high, np.maximum(best, [low, -high])) < PROBE_SHARE * LEAST_GAIN:
                break
            probe = np.inf
        # Only a target's worst leaf matters, and none where a leaf that cannot be split is worse.
        worst, leaves = best.reshape(-1), targets.leaves
        active = np.tile((best <= 0).all(axis=0), 2) & (worst < targets.done)
        chosen = np.flatnonzero((leaves.margin <= worst[leaves.clause]) & active[leaves.clause])
        if len(chosen) == 0:
            return targets, MOST_ROUNDS
        if stopped() or time.monotonic() > end:
            break
        stuck = leaves.stuck[chosen]
        done = targets.done.copy()
        np.minimum.at(done, leaves.clause[chosen[stuck]], leaves.margin[chosen[stuck]])
        rest = np.ones(len(leaves), dtype=bool)
        rest[chosen] = False
        parts = [leaves.select(rest)]
        split = leaves.select(chosen[~stuck])
        if len(split):
            parts.append(_bounded(inner, split, end, stopped, branch=True))
        targets = replace(targets, leaves=inner.join(parts), done=done)
    return targets, rounds


def _bounded(
    inner: NativeDomains, batch: NativeBatch, end: float, stopped: Callable[[], bool], *, branch: bool = False
) -> NativeBatch:
    """The batch, or its subdomains' children, bounded part by part; untouched from `end` on."""
    parts, begin = [], 0
    while begin < len(batch):
        step = max(1, inner.batch_size // 2) if branch else inner.batch_size
        part = batch.select(np.arange(begin, min(len(batch), begin + step)))
        begin += step
        if stopped() or time.monotonic() > end:
            parts.append(part)
            continue
        if branch:  # trying several neurons costs more than a poorer split
            part = inner.split(part, part.candidates[:, 0])
        parts.append(inner.bound(part, ITERATIONS, stopped).batch)
    return inner.join(parts)
