"""Bounds of neurons where a clause can still hold: what no counterexample reaches need not be enclosed.

A point is a counterexample of a clause only where c_k @ y <= t_k for all its rows k, so that there
z >= z + sum_k m_k (c_k @ y - t_k) for all multipliers m >= 0. The right side is bounded below over the
whole box, its multipliers climbing together with every relaxation's parameters. The nearer the clause
is to being refuted, the less is left of the box, and the tighter such bounds are.
Source: Kotha et al. 2023, arXiv:2302.01404 (INVPROP).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from verifier.bounds.clause_rows import ClauseRows
from verifier.bounds.concretize import InputShape
from verifier.bounds.interval import Enclosure, follow
from verifier.bounds.network import Network
from verifier.bounds.slopes import Ascent, SlopeSpace
from verifier.bounds.torch_engine import Enclosed, LazyPlanes, TorchEngine

#: Neurons bounded together, and how fast their multipliers climb.
_TOGETHER, _RATE = 32, 0.25


def copied(network: Network, found: Enclosed) -> Enclosed:
    """The same bounds, to be tightened apart."""
    box = Enclosure(dict(found.box.lower), dict(found.box.upper), dict(found.box.slack))
    return Enclosed(found.sensitivity, box, LazyPlanes(network, box), None, found.wanted)


def is_empty(box: Enclosure) -> bool:
    """True when some bounds contradict each other: nothing they hold for exists."""
    return any(bool((box.lower[name] > box.upper[name]).any()) for name in box.lower)


def cut_off(
    engine: TorchEngine,
    found: Enclosed,
    space: SlopeSpace,
    free: Tensor,
    clause: ClauseRows,
    chosen: Mapping[str, Tensor],
    domain: tuple[Tensor, Tensor, InputShape | None],
    iterations: int,
    stopped: Callable[[], bool],
) -> None:
    """Tighten some neurons in place, to bounds that hold where the clause does.

    Args:
        space: of every relaxed node; free: parameters to start from, [1, 1, F].
        chosen: bounded node -> flat neurons.
        domain: lower, upper [1, N_in] and what the input set adds to them.
    """
    network, box = engine.network, found.box
    for name in network.bounded:
        if name not in chosen or network.interval_suffices(name):
            continue
        for part in chosen[name].split(_TOGETHER):
            if stopped():
                return
            start = {name: engine.unit_rows(name, part, 1)}
            count = 2 * len(part)
            width = (box.upper[name] - box.lower[name]).flatten(1)[:, part]
            scaled = replace(clause, scale=width.repeat(1, 2).unsqueeze(2) / clause.spread)
            ascent = Ascent(network, space, start, box, *domain, clause=scaled)
            beta = torch.ones(1, count, clause.rows.shape[1], dtype=network.dtype, device=network.device)
            params, beta_best = ascent.run(
                free.expand(1, count, -1), beta, iterations, lambda _: stopped(), beta_rate=_RATE
            )
            with torch.no_grad():
                value, *_ = ascent.evaluate(params, beta_best, space.fixed_planes(box), rigorous=True)
            engine.tighten(name, box, [part], [value])
        follow(network, box, name)
