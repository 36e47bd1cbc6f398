"""Worker processes and their deadlines: whatever happens to a process, its instance gets a row."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from verifier.batch.instances import Instance
from verifier.batch.results import Row
from verifier.errors import VerifierError

#: Seconds past its limit after which a process is killed.
OVERRUN_S = 10.0
#: Seconds a process may take to start and import.
START_S = 120.0

WORKER_COMMAND = (sys.executable, "-m", "verifier.batch.worker")


@dataclass(frozen=True)
class SweepSettings:
    """How to run a list.

    Attributes:
        workers: processes at a time.
        threads: CPU threads of each.
        timeout_cap_s: upper limit on every instance's own limit; None for none.
        analysis: further fields of verifier.settings.Settings (device, soundness, effort, ...).
        command: the worker program; tests replace it.
    """

    workers: int = 1
    threads: int = 1
    timeout_cap_s: float | None = None
    analysis: dict[str, Any] | None = None
    command: Sequence[str] = WORKER_COMMAND

    def limit_s(self, instance: Instance) -> float | None:
        """The time limit in force for an instance, seconds."""
        limits = [t for t in (instance.timeout_s, self.timeout_cap_s) if t is not None]
        return min(limits, default=None)


@dataclass(frozen=True)
class Result:
    """A row, and the report it came from where there is one (plain JSON values)."""

    row: Row
    report: dict[str, Any] | None = None


class WorkerLost(Exception):
    """The process ended by itself; the message says how."""


class Worker:
    """One process; started on the first request and again after it was lost or killed."""

    def __init__(self, settings: SweepSettings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (see close)

    def solve(self, instance: Instance) -> Result:
        """Answer one instance; every failure becomes an `error` or `timeout` row.

        Raises:
            VerifierError: the worker program does not start at all.
        """
        limit_s = self._settings.limit_s(instance)
        self.start()
        begin = time.monotonic()
        try:
            settings = {**(self._settings.analysis or {}), "timeout_s": limit_s, "threads": self._settings.threads}
            self._send({"network": instance.network, "spec": instance.spec, "settings": settings})
            message = self._receive(None if limit_s is None else limit_s + OVERRUN_S)
        except queue.Empty:
            self.stop()
            message = {"verdict": "timeout", "reason": f"stopped {OVERRUN_S:g} s after its time limit"}
        except WorkerLost as lost:
            message = {"verdict": "error", "reason": str(lost)}
        except VerifierError as error:  # a malformed list of networks
            message = {"verdict": "error", "reason": str(error)}
        elapsed = time.monotonic() - begin
        if message.get("last"):
            self.stop()
        row = Row(
            instance.onnx, instance.vnnlib, limit_s, message["verdict"], elapsed, instance.expected, message["reason"]
        )
        return Result(row, message.get("report"))

    def start(self) -> None:
        """Start the process unless it runs.

        Raises:
            VerifierError: it ends, or says nothing, before it is ready.
        """
        if self._process is not None:
            return
        threads = str(self._settings.threads)
        pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        self._log.seek(0)
        self._log.truncate()
        self._process = subprocess.Popen(
            self._settings.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            text=True, encoding="utf-8", env={**os.environ, **dict.fromkeys(pools, threads)},
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then decides
        )  # fmt: skip
        self._answers = queue.SimpleQueue()
        threading.Thread(target=_read, args=(self._process, self._answers), daemon=True).start()
        try:
            self._receive(START_S)
        except (WorkerLost, queue.Empty) as error:
            self.stop()
            raise VerifierError(f"a worker process did not start: {error or 'no answer'}") from None

    def stop(self) -> None:
        """Kill the process, if any, and wait until it is gone."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:
                continue  # a request left in the buffer of a pipe that nobody reads any more

    def close(self) -> None:
        """Stop, and give the log file back."""
        self.stop()
        self._log.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._lost() from None

    def _receive(self, limit_s: float | None) -> dict[str, Any]:
        message = self._answers.get(timeout=limit_s)
        if message is None:
            raise self._lost()
        return message

    def _lost(self) -> WorkerLost:
        """How the process ended: by which signal or code, and the last line it wrote."""
        assert self._process is not None
        code = self._process.wait()
        how = f"ended with code {code}"
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
            how = f"was ended by {name}"
            if -code == signal.SIGKILL:
                how += ", probably for lack of memory"
        self._log.seek(0)
        last = next((line.strip() for line in reversed(self._log.read().splitlines()) if line.strip()), "")
        self.stop()
        return WorkerLost(f"the process {how}" + (f": {last[:200]}" if last else ""))


def _read(process: subprocess.Popen[str], answers: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    """Pass messages on; None says that there will be no more."""
    assert process.stdout is not None
    try:
        for line in process.stdout:
            answers.put(json.loads(line))
    except ValueError:
        pass  # the pipe was closed under us, or a line cut off by a kill: both mean the end
    answers.put(None)


def sweep(instances: Sequence[Instance], settings: SweepSettings) -> Generator[Result, None, None]:
    """Results in the order the instances end. Closing the iterator stops every process.

    Raises:
        VerifierError: the worker program does not start.
    """
    waiting: queue.SimpleQueue[Instance] = queue.SimpleQueue()
    for instance in instances:
        waiting.put(instance)
    results: queue.SimpleQueue[Result | BaseException] = queue.SimpleQueue()
    workers = [Worker(settings) for _ in range(min(settings.workers, len(instances)))]
    stopping = threading.Event()

    def work(worker: Worker) -> None:
        try:
            while not stopping.is_set():
                results.put(worker.solve(waiting.get_nowait()))
        except queue.Empty:
            return
        except BaseException as error:
            results.put(error)

    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
    try:
        for thread in threads:
            thread.start()
        for _ in instances:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        stopping.set()
        for worker in workers:
            worker.stop()
        for thread in threads:
            thread.join(timeout=5)
        for worker in workers:
            worker.close()
