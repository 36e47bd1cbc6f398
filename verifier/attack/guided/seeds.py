"""Points to attack from: where the bounds of the most promising open subdomains are smallest.

A subdomain is promising where its lower bound is lowest. Both searches are best first and yield, round
after round, the minimisers of the bounds just computed; they end when every clause is refuted everywhere.
Source: Zhang et al. 2022, "A Branch and Bound Framework for Stronger Adversarial Attacks of ReLU
Networks" (ICML); splits of neurons: Wang et al. 2021, arXiv:2103.06624.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from verifier.bounds.engine import BoxEngine
from verifier.bounds.roots import root_domains
from verifier.run import Run
from verifier.spec.groups import Group

#: (points [P, N_in], clause of each [P]), the most promising first
Seeds = tuple[np.ndarray, np.ndarray]

#: Boxes with at most this many inputs of nonzero width are split on inputs, others on neurons.
FEW_INPUTS = 12
#: Ascent steps for the bounds of the whole box and of subdomains.
ROOT_ITERATIONS, CHILD_ITERATIONS = 60, 12


def seeds(engine: BoxEngine, group: Group, run: Run, count: int) -> Iterator[Seeds]:
    """Rounds of at most `count` seeds in a group's only box, until nothing is open or the run stops."""
    few = np.count_nonzero(group.widths) <= FEW_INPUTS
    return _of_boxes(engine, group, run, count) if few else _of_neurons(engine, group, run, count)


def _of_neurons(engine: BoxEngine, group: Group, run: Run, count: int) -> Iterator[Seeds]:
    domains, clauses = root_domains(engine, group, 0, run)
    if not len(clauses):
        return
    bounds = domains.bound(domains.initial(clauses), ROOT_ITERATIONS, run.stopped)
    waiting = bounds.batch.select(np.zeros(len(clauses), dtype=bool))
    while True:
        left = np.flatnonzero(~bounds.closed)
        promising = left[bounds.row_margins[left].max(axis=1).argsort()[:count]]
        if len(promising):
            yield bounds.minimiser[promising], bounds.batch.clauses[promising]
        # where nothing can be split the bound is exact up to convergence, and its minimiser was a seed
        found = bounds.batch.select(left)
        waiting = domains.join([waiting, found.select(~found.stuck)])
        if not len(waiting) or run.stopped():
            return
        order = waiting.margins.argsort()
        half = max(1, count // 2)
        best, waiting = waiting.select(order[:half]), waiting.select(order[half:])
        bounds = domains.bound(domains.branch(best), CHILD_ITERATIONS, run.stopped)


def _of_boxes(engine: BoxEngine, group: Group, run: Run, count: int) -> Iterator[Seeds]:
    lower, upper = group.lower, group.upper
    waiting: list[Any] = [lower[:0], upper[:0], np.zeros(0), np.zeros(0, dtype=np.int64)]
    while True:
        bounds = engine.bound_boxes(lower, upper, group.rows.coeffs)
        margins = bounds.lower - group.limits
        open_clauses = np.where(group.rows.proved(margins), np.inf, group.rows.clause_margins(margins))
        clause, worst = open_clauses.argmin(axis=1), open_clauses.min(axis=1)
        rows = np.where(group.rows.clause == clause[:, None], margins, -np.inf).argmax(axis=1)
        coeffs = bounds.coeffs[np.arange(len(lower)), rows]
        promising = worst.argsort()[:count]
        promising = promising[worst[promising] < np.inf]
        if len(promising):
            points = np.where(coeffs >= 0, lower, upper)
            yield points[promising], clause[promising]
        axis = ((np.abs(coeffs) + 0.1 * bounds.sensitivity + 1e-12) * (upper - lower)).argmax(axis=1)
        left = worst < np.inf
        found = (lower[left], upper[left], worst[left], axis[left])
        waiting = [np.concatenate(pair) for pair in zip(waiting, found, strict=True)]
        if not len(waiting[0]) or run.stopped():
            return
        order = waiting[2].argsort()
        half = max(1, count // 2)
        low, high, _, axis = (part[order[:half]] for part in waiting)
        waiting = [part[order[half:]] for part in waiting]
        lower, upper = _halved(low, high, axis)


def _halved(lower: np.ndarray, upper: np.ndarray, axis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both halves of every box [P, N_in] across its axis [P]: [2 P, N_in] ends."""
    rows = np.arange(len(axis))
    middle = 0.5 * (lower[rows, axis] + upper[rows, axis])
    low, high = np.concatenate([lower, lower]), np.concatenate([upper, upper])
    high[rows, axis] = middle
    low[len(axis) + rows, axis] = middle
    return low, high
