"""Bounds of neurons where a clause can still hold: what no counterexample reaches need not be enclosed.

A point is a counterexample of a clause only where c_k @ y <= t_k for all its rows k, so that there
z >= z + sum_k m_k (c_k @ y - t_k) for all multipliers m >= 0. The right side is bounded below over the
whole box, its multipliers climbing together with every relaxation's parameters. The nearer the clause
is to being refuted, the less is left of the box, and the tighter such bounds are.
Source: Kotha et al. 2023, arXiv:2302.01404 (INVPROP).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from verifier.bounds.clause_rows import ClauseRows
from verifier.bounds.domains import DomainBatch, DomainEngine
from verifier.bounds.engine import DomainBounds
from verifier.bounds.intermediate import rows_at_once
from verifier.bounds.interval import Enclosure, follow
from verifier.bounds.network import Network
from verifier.bounds.torch_engine import Enclosed, LazyPlanes

#: Neurons bounded together, and how fast their multipliers climb.
_TOGETHER, _RATE = 32, 0.25
#: The neurons that make up this share of the loss are bounded, this many at most.
LOSS_SHARE, MOST_WORST = 0.7, 256


def copied(network: Network, found: Enclosed) -> Enclosed:
    """The same bounds, to be tightened apart."""
    box = Enclosure(dict(found.box.lower), dict(found.box.upper), dict(found.box.slack))
    return Enclosed(found.sensitivity, box, LazyPlanes(network, box), None, found.wanted)


def is_empty(box: Enclosure) -> bool:
    """True when some bounds contradict each other: nothing they hold for exists."""
    return any(bool((box.lower[name] > box.upper[name]).any()) for name in box.lower)


def cut_off(
    domains: DomainEngine,
    found: Enclosed,
    one: DomainBatch,
    iterations: int,
    stopped: Callable[[], bool],
) -> None:
    """Tighten in place the neurons that cost a box most, to bounds that hold where a clause does.

    Args:
        domains: an engine whose bounds `found` are.
        one: the unsplit box, for one clause; its parameters are where the ascents start.
    """
    network, box = domains.network, found.box
    clause = int(one.clause[0])
    losses = domains.losses(one)[0]
    spread = max(float(losses.sum()), 1e-30)
    rows = ClauseRows(network, domains.clause_rows[clause][None], domains.limits[clause].double(), spread)
    whole = domains.ascent(one)
    assert whole.splits is None, "an unsplit box is expected"
    together = min(_TOGETHER, max(1, rows_at_once(domains.engine, domains.space) // 2))
    chosen = worst_neurons(domains, losses)
    for name in network.bounded:
        if name not in chosen or name in network.graph.outputs:  # sums of rows would have to be paid for there
            continue
        for part in chosen[name].split(together):
            if stopped():
                return
            count = 2 * len(part)
            width = (box.upper[name] - box.lower[name]).flatten(1)[:, part]
            scaled = replace(rows, scale=width.repeat(1, 2).unsqueeze(2) / spread)
            ascent = replace(
                whole,
                start={name: domains.engine.unit_rows(name, part, 1)},
                box=box,
                clause=scaled,
            )
            beta = one.beta.new_ones(1, count, rows.rows.shape[1])
            free = one.free[:, :1].expand(1, count, -1)
            free, best = ascent.run(free, beta, iterations, lambda _: stopped(), beta_rate=_RATE)
            with torch.no_grad():
                value, *_ = ascent.evaluate(free, best, domains.space.fixed_planes(box), rigorous=True)
            domains.engine.tighten(name, box, [part], [value])
        follow(network, box, name)


def worst_neurons(domains: DomainEngine, losses: Tensor) -> dict[str, Tensor]:
    """The neurons whose bounds cost most, by losses [K]: bounded node -> flat neurons."""
    network = domains.network
    ordered, order = losses.sort(descending=True)
    enough = int((ordered.cumsum(0) < LOSS_SHARE * ordered.sum()).sum()) + 1
    worst = order[: min(enough, MOST_WORST)]
    chosen: dict[str, Tensor] = {}
    for name, part in domains.slices.items():
        neurons = domains.open[name][worst[(worst >= part.start) & (worst < part.stop)] - part.start]
        if len(neurons) and network.interval_suffices(name):  # what an elementwise node reads is bounded instead
            source = network.graph[name].inputs[0]
            name, index = network.moved.get(source, (source, None))
            neurons = neurons if index is None else index[neurons]
        if len(neurons) and not network.interval_suffices(name):
            both = [chosen[name], neurons] if name in chosen else [neurons]
            chosen[name] = torch.cat(both).unique()
    return chosen


def look(
    domains: DomainEngine, found: Enclosed, one: DomainBatch, effort: tuple[int, int], stopped: Callable[[], bool]
) -> tuple[DomainEngine, DomainBounds]:
    """`cut_off`, then bound the box; also returns the engine with the bounds that `found` now has.

    Args:
        effort: steps for each neuron, and for the box.
    """
    cut_off(domains, found, one, effort[0], stopped)
    inner = domains.within(found)
    if is_empty(found.box):
        row_margins = np.full((1, domains.limits.shape[1]), np.inf)
        return inner, DomainBounds(one, row_margins, domains.lower.double().cpu().numpy(), np.ones(1, dtype=bool))
    one = replace(one, low=inner.gather(found.box.lower), high=inner.gather(found.box.upper))
    return inner, inner.bound(one, effort[1], stopped)
