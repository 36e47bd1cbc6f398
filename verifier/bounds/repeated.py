"""A step that runs again and again on the same tensors: on a GPU, one CUDA graph.

Bounding networks of ordinary size on a GPU means many small kernels, and starting them takes longer than running
them. A graph starts them all at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

#: Runs of a step from which recording it, which costs about one run, pays.
WORTH_RECORDING = 6


class Repeated:
    """A step without arguments or results that changes tensors in place, always the same ones.

    Recording needs a step that never waits for the GPU. One that does is found out by running it, before anything is
    recorded, or at the latest by recording it; whoever calls goes on without a graph then.
    """

    def __init__(self, step: Callable[[], None]):
        self._step = step
        self._graph: torch.cuda.CUDAGraph | None = None
        self._records = True

    def run(self) -> bool:
        """One step. False where the step cannot be recorded; it may then have been done in part, in full, or not."""
        if self._graph is not None:
            self._graph.replay()
        elif self._records:
            self._records = self._runs_without_waiting() and self._record()
        return self._records

    def _runs_without_waiting(self) -> bool:
        """Run the step aside, as recording wants it, which also starts what may not be started while recording."""
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that this mode does not find every such call
            torch.cuda.set_sync_debug_mode("error")
        try:
            with _aside():
                self._step()
        except RuntimeError:
            return False
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        return True

    def _record(self) -> bool:
        graph = torch.cuda.CUDAGraph()
        try:
            # torch.cuda.graph() would collect garbage and empty the allocator's cache first, which takes longer.
            with _aside():
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self._step()
                finally:
                    graph.capture_end()
        except RuntimeError:
            return False
        self._graph = graph
        return True


@contextmanager
def _aside() -> Iterator[None]:
    """A stream of its own, after all that is under way and before all that follows."""
    here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
    aside.wait_stream(here)
    try:
        with torch.cuda.stream(aside):
            yield
    finally:
        here.wait_stream(aside)
