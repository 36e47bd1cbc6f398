"""A whole data set: one row a sample, in as many processes as wanted, each row out the moment it is known."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from verifier.certify.analyst import Analyst
from verifier.certify.plan import Plan
from verifier.certify.rows import Row
from verifier.errors import VerifierError


def sweep(
    plan: Plan, x: np.ndarray, y: np.ndarray, indices: Sequence[int], workers: int = 1
) -> Generator[Row, None, None]:
    """Rows in the order they are done. Closing the generator (or Ctrl-C) ends every process.

    Args:
        x: flat inputs [n, N_in]; y: labels [n]; indices: rows to analyse.
    Raises:
        VerifierError: the network cannot be analysed at all, or a process died (its sample is named).
    """
    if workers == 1 or len(indices) < 2:
        analyst = Analyst(plan)
        for i in indices:
            yield analyst.row(int(i), x[i], int(y[i]))
        return
    Analyst(plan)  # bad networks and settings fail here, once, rather than in every process
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(indices)), context, _start, (plan, os.getpid()))
    try:
        waiting: dict[Future[Row], int] = {pool.submit(_work, int(i), x[i], int(y[i])): int(i) for i in indices}
        while waiting:
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                index = waiting.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool:
                    raise VerifierError(
                        f"a worker process died, about sample {index}, probably for lack of memory; "
                        "the rows so far are kept: go on with --resume and fewer --workers"
                    ) from None
    finally:
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=False, cancel_futures=True)


_analyst: Analyst | None = None


def _start(plan: Plan, parent: int) -> None:
    global _analyst
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent alone, which then decides
    _analyst = Analyst(plan)


def _work(index: int, x: np.ndarray, label: int) -> Row:
    assert _analyst is not None
    return _analyst.row(index, x, label)
