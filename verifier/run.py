"""The clock, the time line and the counters that every stage of one analysis shares."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

#: called with (domains visited, domains open, worst margin)
Progress = Callable[[int, int, float], None]


@dataclass
class Run:
    """Mutable record of one analysis.

    Attributes:
        deadline: time.monotonic() value at which to stop.
        cancelled: asks whether the user pressed Ctrl-C.
        on_progress: called with (domains visited, domains open, worst margin) now and then.
        patience_s: how long the caller expects to wait, see `horizon`.
    """

    deadline: float = np.inf
    cancelled: Callable[[], bool] = lambda: False
    on_progress: Progress | None = None
    started: float = field(default_factory=time.monotonic)
    patience_s: float = np.inf
    began: float = field(default_factory=time.monotonic)
    visited: int = 0
    open: int = 0
    bound_before: float | None = None
    bound_after: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    events: list[tuple[float, str, str]] = field(default_factory=list)

    @classmethod
    def within(
        cls, timeout_s: float | None, cancel: Callable[[], bool] | None, progress: Progress | None = None
    ) -> Run:
        """A run that starts now and has this many seconds; None for no limit."""
        run = cls(cancelled=cancel or (lambda: False), on_progress=progress)
        if timeout_s is not None:
            run.deadline = run.started + timeout_s
        return run

    def remaining(self) -> float:
        """Seconds left, inf without a limit."""
        return self.deadline - time.monotonic()

    def horizon(self) -> float:
        """Seconds that a search should plan for: those left, but no more than its patience or what it took already.

        With little patience a search tries everything briefly, and each again for longer, whatever its time limit is.
        """
        return min(self.remaining(), max(self.patience_s, time.monotonic() - self.began))

    def stopped(self) -> bool:
        """True when time is up or the user asked to stop."""
        return self.remaining() <= 0 or self.cancelled()

    def say(self, stage: str, text: str) -> None:
        """Add a line to the time line."""
        self.events.append((time.monotonic() - self.started, stage, text))

    def tick(self, open_count: int, worst: float) -> None:
        """Report progress."""
        self.open = open_count
        if self.on_progress is not None:
            self.on_progress(self.visited, open_count, worst)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of a `with` block under `name`."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begin

    def limited(self, seconds: float, patience_s: float = np.inf) -> Run:
        """The same run with an earlier deadline; counters are not shared."""
        deadline = min(self.deadline, time.monotonic() + seconds)
        return Run(deadline, self.cancelled, started=self.started, patience_s=patience_s)
