"""The methods that are bound propagation: intervals, one backward pass, optimised slopes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from verifier.errors import UnsupportedOperator
from verifier.ops.elementwise import ELEMENTWISE
from verifier.tighten.method_result import MethodSettings
from verifier.tighten.propagated import Bounded, Propagated


@dataclass(frozen=True)
class Task:
    """One case: its propagated bounds, rows [S, N_out], settings and the seconds left."""

    state: Propagated
    coeffs: np.ndarray
    settings: MethodSettings
    left_s: float | None


#: Lower bounds [S], seconds of the stages used (counted once per case), and how it ended.
Answer = tuple[np.ndarray, float, tuple[str, ...]]


def interval_pass(task: Task) -> Answer:
    """Interval propagation."""
    return task.state.interval_rows(task.coeffs), 0.0, ()


def backward_pass(stage: str) -> Callable[[Task], Answer]:
    """One backward pass with the planes of a stage, intersected with intervals as its bounds are."""

    def run(task: Task) -> Answer:
        known = stage in task.state.computed
        bounded: Bounded = getattr(task.state, stage)()
        found = task.state.rows(bounded, task.coeffs)
        return np.maximum(found, task.state.interval_rows(task.coeffs)), bounded.seconds if known else 0.0, ()

    return run


def fast_lin(task: Task) -> Answer:
    """Parallel lines, for relu and its like: two rays that meet at zero.

    For l < 0 < u let s = (f(u) - f(l)) / (u - l). As f is convex (or concave), f(z) - s z is largest (smallest)
    at l and u, alike, and smallest (largest) at the kink, where it is 0: the lines are s z and s (z - l) + f(l).
    For relu s = u / (u - l), as published; nothing in the derivation asks for slope 0 on the left.

    Raises:
        UnsupportedOperator: another nonlinearity.
    Source: Weng et al. 2018, arXiv:1804.09699.
    """
    graph = task.state.graph
    for name in task.state.engine.network.relaxed:
        rule = ELEMENTWISE.get(graph[name].op)
        if rule is None or not rule.kink_at_zero:
            hint = "Fast-Lin knows relu, leaky relu and abs only; use cnn-cert or crown"
            raise UnsupportedOperator(graph[name].op, name, hint)
    return backward_pass("parallel")(task)


def alpha(task: Task) -> Answer:
    """Optimised slopes, in intermediate layers too."""
    known = "alpha" in task.state.computed
    bounded = task.state.alpha()
    found = task.state.optimised_rows(bounded, task.coeffs, task.settings.iterations)
    found = np.maximum(found, backward_pass("crown")(task)[0])
    return found, bounded.seconds if known else 0.0, ()
