"""One search by several trees, each on a thread of its own, that hand each other subdomains.

A closer look at one subdomain is a chain of short steps, which threads inside a step cannot speed up; looks at
different subdomains can run side by side, on engines of their own over the same root.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass

import numpy as np

from verifier.attack.falsify import Falsifier
from verifier.bounds.engine import DomainBatch
from verifier.run import Run
from verifier.search.input_split import SplitResult
from verifier.search.subdomain_tree import Tree

#: Trees at most: each holds engines of its own. The rest of the threads work inside their steps.
MOST_TREES = 4
#: Seconds after which a thread that computes in Python hands over to one that comes out of a kernel.
SWITCH_S = 5e-4
#: Seconds of search after which a tree looks whether others wait for work; between reports of progress.
SLICE_S, REPORT_S = 0.1, 0.2


class SharedFalsifier:
    """A falsifier that several threads may use, one at a time; the parts that trees ask for."""

    def __init__(self, falsifier: Falsifier):
        self._falsifier, self._lock = falsifier, threading.Lock()

    def try_points(self, box: np.ndarray, points: np.ndarray) -> object | None:
        """See Falsifier."""
        with self._lock:
            return self._falsifier.try_points(box, points)

    def again(self, run: Run) -> object | None:
        """See Falsifier."""
        with self._lock:
            return self._falsifier.again(run)


@dataclass
class _State:
    """What a tree last told: open subdomains and the lowest margin."""

    open: int
    worst: float


class Team:
    """Trees that search together until nothing is open anywhere, one of them has a result, or the run stops.

    Args:
        trees: of the same root, each with a run of its own (`Run.limited`); the first ones may hold subdomains.
        run: the run of them all, for the clock and for progress.
    """

    def __init__(self, trees: list[Tree], run: Run):
        self._trees, self._run = trees, run
        self._changed = threading.Condition()
        self._waiting = 0  # trees without work
        self._given: list[DomainBatch] = []  # subdomains on their way from one tree to another
        self._over = False
        self._result: SplitResult | None = None
        self._error: BaseException | None = None
        self._states = [_State(len(tree), tree.worst) for tree in trees]

    def search(self) -> SplitResult | None:
        """As Tree.search; the subdomains that stay open are counted in the result where time ended the search."""
        usual = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        try:
            self._run_threads()
        finally:
            sys.setswitchinterval(usual)
        if self._error is not None:
            raise self._error
        return self._result or SplitResult(None, sum(map(len, self._trees)) + sum(map(len, self._given)))

    def _run_threads(self) -> None:
        """Let the trees search, and add up what they do."""
        threads = [threading.Thread(target=self._work, args=(k,), daemon=True) for k in range(len(self._trees))]
        before = self._run.visited
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            with self._changed:
                self._changed.wait(REPORT_S)
            self._report(before)
        for thread in threads:
            thread.join()
        self._report(before)
        for tree in self._trees:
            for stage, seconds in tree.run.seconds.items():
                self._run.seconds[stage] = self._run.seconds.get(stage, 0.0) + seconds / len(self._trees)

    def _report(self, before: int) -> None:
        """Tell the run what the trees have done, `before` subdomains apart."""
        self._run.visited = before + sum(tree.run.visited for tree in self._trees)
        self._run.bound_after = min(state.worst for state in self._states)
        self._run.tick(sum(state.open for state in self._states), self._run.bound_after)

    def _work(self, number: int) -> None:
        """One tree's thread."""
        tree = self._trees[number]
        try:
            while not self._over and not tree.run.stopped():
                result = tree.search(time.monotonic() + SLICE_S)
                self._states[number] = _State(len(tree), tree.worst)
                if result is not None and (result.witness is not None or result.exhausted):
                    self._end(result)
                elif result is not None:
                    if not self._wait(tree):
                        return
                elif self._waiting > len(self._given):
                    self._give(tree)
        except BaseException as error:  # it must reach the caller's thread
            self._error = error
            self._end(None)

    def _end(self, result: SplitResult | None) -> None:
        with self._changed:
            self._over = True
            self._result = self._result or result
            self._changed.notify_all()

    def _give(self, tree: Tree) -> None:
        """Put some of a tree's subdomains where a waiting one finds them."""
        given = tree.give()
        if given is not None:
            with self._changed:
                self._given.append(given)
                self._changed.notify_all()

    def _wait(self, tree: Tree) -> bool:
        """Wait for subdomains from another tree; False where the search is over."""
        with self._changed:
            self._waiting += 1
            while not self._given and not self._over and not tree.run.stopped():
                if self._waiting == len(self._trees):
                    self._over = True
                    self._changed.notify_all()
                    return False
                self._changed.wait(SLICE_S)
            if self._over or not self._given:
                return False
            self._waiting -= 1
            tree.receive(self._given.pop())
            return True
