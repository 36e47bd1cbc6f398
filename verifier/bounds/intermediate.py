"""Tighter intermediate bounds of a whole box: slopes optimised for every open neuron on its own.

Layer by layer, so that each layer's rows already see the earlier layers' new bounds. This is the
part of alpha-CROWN that activation splitting never repeats, so every subdomain inherits its gain.
Source: Xu et al. 2021, arXiv:2011.13824, section 3.3.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from verifier.bounds.concretize import InputShape
from verifier.bounds.interval import follow
from verifier.bounds.slopes import Ascent, SlopeSpace
from verifier.bounds.torch_engine import Enclosed, LazyPlanes, TorchEngine
from verifier.run import Run

MOST_ITERATIONS = 8


def optimise_intermediate(
    engine: TorchEngine,
    found: Enclosed,
    lower: Tensor,
    upper: Tensor,
    shape: InputShape | None,
    run: Run,
    seconds: float,
) -> int:
    """Tighten `found` in place within about `seconds`; returns the number of neurons that became stable.

    Args:
        lower, upper: the box, [1, N_in].
    """
    network, box = engine.network, found.box
    open_neurons = {n: found.matter(n, engine.open_neurons(n, box)) for n in network.bounded}
    before = sum(len(e) for e in open_neurons.values())
    costs = {n: 2.0 * len(e) * network.row_flops(n) for n, e in open_neurons.items()}
    total = sum(costs.values()) / engine.flops_per_second
    # One iteration carries rows back, and their gradient forward: about three plain passes.
    iterations = int(min(MOST_ITERATIONS, seconds / max(3 * total, 1e-6)))
    if iterations < 3:
        return 0
    end = time.monotonic() + 2 * seconds
    for name in network.bounded:
        neurons = found.matter(name, engine.open_neurons(name, box))
        if len(neurons) == 0 or (shape is None and network.interval_is_exact(name)):
            continue
        open_neurons[name] = neurons
        space = SlopeSpace(network, box, open_neurons, upto=_first_reader(engine, name))
        if space.size == 0:
            continue
        values, parts = [], neurons.split(rows_at_once(engine, space))
        for part in parts:
            if time.monotonic() > end or run.stopped():
                break
            values.append(_ascend(engine, found, space, name, part, (lower, upper, shape), iterations, run.stopped))
        if values:
            engine.tighten(name, box, parts[: len(values)], values)
            follow(network, box, name)
            open_neurons[name] = found.matter(name, engine.open_neurons(name, box))
    found.planes = LazyPlanes(network, box)
    return before - sum(len(found.matter(n, engine.open_neurons(n, box))) for n in network.bounded)


def _first_reader(engine: TorchEngine, name: str) -> str:
    """The first relaxed node after `name`: no parameter from there on can matter to it."""
    order = [n.name for n in engine.network.graph.nodes.values()]
    later = set(order[order.index(name) + 1 :])
    return next(n for n in engine.network.relaxed if n in later)


def rows_at_once(engine: TorchEngine, space: SlopeSpace) -> int:
    """Neurons bounded at once, each with its own parameters of the space, within the memory ceiling."""
    nodes = [engine.network.graph[s.name].size for s in space.segments]
    per_row = 16 * sum(nodes) * torch.finfo(engine.dtype).bits // 8
    return max(1, engine.memory_bytes // (2 * per_row))


def _ascend(
    engine: TorchEngine,
    found: Enclosed,
    space: SlopeSpace,
    name: str,
    part: Tensor,
    domain: tuple[Tensor, Tensor, InputShape | None],
    iterations: int,
    stopped: Callable[[], bool],
) -> Tensor:
    start = {name: engine.unit_rows(name, part, 1)}
    ascent = Ascent(engine.network, space, start, found.box, *domain, upto=_first_reader(engine, name))
    free = space.start(found.box).expand(1, 2 * len(part), -1)
    free, _ = ascent.run(free, None, iterations, lambda value: stopped())
    with torch.no_grad():
        fixed = space.fixed_planes(found.box, ascent.upto)
        value, *_ = ascent.evaluate(free, None, fixed, rigorous=True)
    return value
