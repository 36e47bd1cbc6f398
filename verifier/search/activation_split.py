"""Decide a box by splitting neurons: bound it, search the tree of subdomains, tighten what they share.

Source: Wang et al. 2021, arXiv:2103.06624 (beta-CROWN); Shi et al. 2025, arXiv:2405.21063 (any nonlinearity).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from verifier.attack.falsify import Falsifier
from verifier.bounds.engine import BoxEngine, DomainEngine
from verifier.bounds.roots import root_domains
from verifier.run import Run
from verifier.search.input_split import SplitResult
from verifier.search.programs import decide_by_programs
from verifier.search.subdomain_tree import Tree
from verifier.search.team import MOST_TREES, SharedFalsifier, Team
from verifier.spec.groups import Group

#: Seconds of plain splitting before subdomains are looked at more closely, and their share of the remaining time.
PLAIN_S, PLAIN_SHARE = 1.0, 0.3
#: The search pauses to tighten what all subdomains share: seconds of the first pause, the factor from one to the next,
#: which goes on where it stopped, and the share of the remaining time that one may take. The time limit says nothing
#: about what an instance needs, so pauses start short.
FIRST_REFINE_S, GROWTH, REFINE_SHARE = 2.0, 2.5, 0.3
#: Search before a pause, as a share of it; little after an early pause that moved the worst margin by RACING_MOVE.
TRIAL_SHARE, RACING_MOVE, RACING_SHARE = 0.4, 0.5, 0.1
#: A pause of so many seconds that moves the worst margin by a smaller share is the last; after REFINEMENTS of them, one
#: that does not move it by GOOD_MOVE.
TELLING_S, LEAST_MOVE, REFINEMENTS, GOOD_MOVE = 10.0, 0.02, 6, 0.2
#: Share of the time left that programs may lose when no pause gains any more.
LAST_SHARE = 0.3


def split_activations(
    engine: BoxEngine, group: Group, index: int, falsifier: Falsifier, run: Run, *, search: bool = True
) -> SplitResult:
    """Decide box `index` of a group by splitting neurons; without `search`, by its bounds alone.

    Returns as soon as a counterexample is confirmed, every clause is refuted everywhere, or the run stops.
    """
    domains, clauses = root_domains(engine, group, index, run)
    if len(clauses) == 0:
        return SplitResult(None, 0)
    # What plain splitting closes at once needs nothing else.
    tree = Tree(domains, falsifier, index, run, looks=False)
    result = tree.open(clauses)
    if not search:
        return result or SplitResult(None, len(tree))
    result = result or tree.search(time.monotonic() + min(PLAIN_S, PLAIN_SHARE * run.horizon()))
    if result is not None and not result.exhausted:
        return result
    # A tree that is exhausted has let go of subdomains; with tighter bounds they may close, or need fewer splits.
    started_over = result is not None
    left = clauses if started_over else tree.clauses
    programs = partial(decide_by_programs, engine, domains, group, index, falsifier, run)
    result, clauses = programs(left, min(FIRST_REFINE_S, REFINE_SHARE * run.horizon()))
    if result is not None:
        return result
    looking = Tree(domains, falsifier, index, run)
    if looking.can_look or started_over or len(clauses) < len(left):
        tree = looking
        result = tree.open(clauses)
    if result is None:
        again = programs if engine.name == "native" else None  # of another engine's, programs know only the root
        result, tree = _search_with_pauses(domains, tree, clauses, falsifier, index, run, again)
    trees = [tree]
    if result is None and tree.threads > 1:
        trees = tree.side_by_side(min(tree.threads, MOST_TREES), SharedFalsifier(falsifier))
        result = Team(trees, run).search()
    result = result or tree.search() or SplitResult(None, len(tree))
    looks = sum(t.looks for t in trees)
    if looks:
        run.say("cut off", f"{looks} closer looks closed {sum(t.closed_by_looks for t in trees)} subdomains")
    return result


def _search_with_pauses(
    domains: DomainEngine,
    tree: Tree,
    clauses: np.ndarray,
    falsifier: Falsifier,
    index: int,
    run: Run,
    programs: Callable[[np.ndarray, float], tuple[SplitResult | None, np.ndarray]] | None = None,
) -> tuple[SplitResult | None, Tree]:
    """Search, and pause to tighten what all subdomains share while that pays; what was decided, and the last tree.

    Args:
        clauses: those that the tree holds, all open.
        programs: see `decide_by_programs`; asked after every pause, with as much patience as the next pause has time.
    """
    result, margin, racing, pause = None, tree.worst, False, 0
    while True:
        planned = run.horizon()
        seconds = min(FIRST_REFINE_S * GROWTH ** min(pause, REFINEMENTS), REFINE_SHARE * planned)
        if pause >= REFINEMENTS and seconds < TELLING_S:
            break
        result = tree.search(time.monotonic() + (RACING_SHARE if racing else TRIAL_SHARE) * seconds)
        if run.stopped() or (result is not None and not result.exhausted):
            break
        with run.stage("refine neurons"):
            gained = domains.refine(seconds, run.stopped)
        if not gained:
            run.say("refine", "tighter bounds of neurons gain too little")
            break
        clauses = tree.clauses if result is None else clauses
        before, tree = margin, Tree(domains, falsifier, index, run)
        result = tree.open(clauses)
        margin = tree.worst
        if result is None and programs is not None and len(tree):
            result, left = programs(tree.clauses, GROWTH * seconds)
            if result is None and len(left) < len(tree.clauses):
                tree = Tree(domains, falsifier, index, run)
                result = tree.open(left)
        if result is not None:
            break
        racing = pause + 1 < REFINEMENTS and margin > (1 - RACING_MOVE) * before
        least = LEAST_MOVE if pause + 1 < REFINEMENTS else GOOD_MOVE
        if seconds >= TELLING_S and margin < (1 - least) * before:
            run.say("refine", "tighter bounds of neurons no longer move the worst margin")
            break
        pause += planned >= run.remaining()  # one that was cut short out of impatience does not count
    if result is None and programs is not None:
        result, _ = programs(tree.clauses, LAST_SHARE * run.horizon())
    return result, tree
