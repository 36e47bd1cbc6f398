"""Tighter intermediate bounds of a whole box by branch and bound on single neurons.

Every open neuron's two bounds are small verification problems over the stages before it; splitting
their worst subdomain again and again raises the minimum that all leaves share. What the published
verifiers buy from a MILP solver (Tjeng et al. 2019, arXiv:1711.07356) comes here from the same kernel.
Property: sound; each bound is the lowest of rigorous bounds over leaves that cover the box.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from verifier.bounds.native_domains import NativeDomains

#: Steps for each subdomain: many poor bounds of small parts beat few good ones of large parts.
ITERATIONS = 4
#: Rounds for one stage: a target's leaves are one more than its rounds.
MOST_ROUNDS = 200
#: A stage whose open neurons' ranges shrink less than this in all is not worth its time.
LEAST_GAIN = 0.1
#: Share of its time after which a stage must have gained the same share of that.
PROBE_SHARE = 0.2


def refine_stages(domains: NativeDomains, seconds: float, stopped: Callable[[], bool]) -> bool:
    """Tighten the root stage by stage within about `seconds`; True where some stage gained."""
    end = time.monotonic() + seconds
    stages = [int(s) for s in np.unique(domains.open_stage)][1:]  # the first open stage is exact
    gained = False
    for k, stage in enumerate(stages):
        now = time.monotonic()
        if stopped() or now >= end:
            break
        share = (end - now) / (len(stages) - k)
        if not _refine_stage(domains, stage, now + 0.7 * share, stopped):
            continue  # after the first part of its share
        gained = True
        domains.optimise_root(share, first=stage + 1)
    return gained


def _refine_stage(domains: NativeDomains, stage: int, end: float, stopped: Callable[[], bool]) -> bool:
    """Raise the bounds of one stage's open neurons until `end`; False where they hardly move."""
    neurons = domains.open_index[domains.open_stage == stage]
    if len(neurons) == 0:
        return False
    low, high = (b[neurons] for b in domains.stage_bounds(stage))
    best = _raise_minima(domains, stage, neurons, low, high, end, stopped)
    # A side that was proved positive makes its neuron stable; leaves' bounds of the others count as they are.
    domains.tighten(stage, neurons, np.maximum(low, best[0]), np.minimum(high, -best[1]))
    return _gain(low, high, best) > LEAST_GAIN


def _gain(low: np.ndarray, high: np.ndarray, best: np.ndarray) -> float:
    """Share of the neurons' ranges that lower bounds of z and of -z [2, n] take away; all of it where one is stable."""
    new_low, new_high = np.maximum(low, best[0]), np.minimum(high, -best[1])
    left = np.where((new_low < 0) & (new_high > 0), new_high - new_low, 0.0).sum()
    return 1.0 - float(left / (high - low).sum())


def _raise_minima(
    domains: NativeDomains,
    stage: int,
    neurons: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    end: float,
    stopped: Callable[[], bool],
) -> np.ndarray:
    """Lower bounds of z and of -z over the box, [2, n], by splitting each target's worst leaf in turn.

    Stops early where the first part of the time hardly moved what is known, low and high [n].
    """
    probe = time.monotonic() + PROBE_SHARE * (end - time.monotonic())
    codes = np.stack([2 * neurons, 2 * neurons + 1]).reshape(-1)
    targets = domains.on_neurons(stage, codes)
    leaves = _bounded(targets, targets.initial(np.arange(len(codes))), end, stopped)
    done = np.full(len(codes), np.inf)  # lowest bound of the leaves that are not split any further
    for _ in range(MOST_ROUNDS):
        worst = np.minimum(done, _lowest(leaves.margin, leaves.clause, len(codes)))
        stable = (worst > 0).reshape(2, -1).any(axis=0)
        if time.monotonic() > probe:
            if _gain(low, high, np.maximum(worst.reshape(2, -1), [low, -high])) < PROBE_SHARE * LEAST_GAIN:
                break
            probe = np.inf
        # Only a target's worst leaf matters, and none where a leaf that cannot be split is worse.
        active = ~np.concatenate([stable, stable]) & (worst < done)
        chosen = np.flatnonzero((leaves.margin <= worst[leaves.clause]) & active[leaves.clause])
        if len(chosen) == 0 or stopped() or time.monotonic() > end:
            break
        stuck = leaves.stuck[chosen]
        np.minimum.at(done, leaves.clause[chosen[stuck]], leaves.margin[chosen[stuck]])
        rest = np.ones(len(leaves), dtype=bool)
        rest[chosen] = False
        parts = [leaves.select(rest)]
        split = leaves.select(chosen[~stuck])
        if len(split):
            parts.append(_bounded(targets, split, end, stopped, branch=True))
        leaves = targets.join(parts)
    return np.minimum(done, _lowest(leaves.margin, leaves.clause, len(codes))).reshape(2, -1)


def _bounded(
    targets: NativeDomains, batch: Any, end: float, stopped: Callable[[], bool], *, branch: bool = False
) -> Any:
    """The batch, or its subdomains' children, bounded part by part; untouched from `end` on."""
    parts, begin = [], 0
    while begin < len(batch):
        step = max(1, targets.batch_size // 2) if branch else targets.batch_size
        part = batch.select(np.arange(begin, min(len(batch), begin + step)))
        begin += step
        if stopped() or time.monotonic() > end:
            parts.append(part)
            continue
        if branch:  # trying several neurons costs more than a poorer split
            part = targets.split(part, part.candidates[:, 0])
        parts.append(targets.bound(part, ITERATIONS, stopped).batch)
    return targets.join(parts)


def _lowest(margin: np.ndarray, clause: np.ndarray, count: int) -> np.ndarray:
    lowest = np.full(count, np.inf)
    np.minimum.at(lowest, clause, margin)
    return lowest
