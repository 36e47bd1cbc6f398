"""The process that answers instances, one after the other: requests in, answers out, a line each.

A request is a JSON object {"network", "spec", "settings"}; an answer is {"verdict", "reason",
"report"}. The process ends when its requests end, at once even in the middle of an analysis, so
that nothing outlives a killed parent.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

from verifier.errors import VerifierError

Analysis = Callable[[Any, str, dict[str, Any]], dict[str, Any]]


def analyse(network: Any, spec: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Verify one instance and return the report as plain JSON values."""
    from verifier.api import verify
    from verifier.settings import Settings

    return verify(network, spec, Settings(**settings)).to_json()


def answer(request: dict[str, Any], analysis: Analysis) -> tuple[dict[str, Any], bool]:
    """The answer to one request, and whether the process is fit to go on."""
    reset_peak_memory()
    try:
        report = analysis(request["network"], request["spec"], request["settings"])
    except VerifierError as error:
        return {"verdict": "error", "reason": str(error)}, True
    except OSError as error:
        return {"verdict": "error", "reason": f"{error.strerror or error}: '{error.filename}'"}, True
    except MemoryError:
        return {"verdict": "error", "reason": "out of memory"}, False
    except Exception as error:
        return {"verdict": "error", "reason": f"internal error: {type(error).__name__}: {error}"}, False
    reason = report["reason"]
    detail = f" ({reason['detail']})" if reason["detail"] else ""
    report["peak_memory_bytes"] = peak_memory_bytes() or report["peak_memory_bytes"]
    return {"verdict": report["verdict"], "reason": reason["text"] + detail, "report": report}, True


def serve(requests: TextIO, answers: TextIO, analysis: Analysis = analyse) -> None:
    """Answer requests until they end or an analysis fails in a way that may leave damage."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in requests:
            waiting.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    _say(answers, {"ready": True})
    fit = True
    while fit:
        response, fit = answer(json.loads(waiting.get()), analysis)
        _say(answers, {**response, "last": not fit})


def _say(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def reset_peak_memory() -> None:
    """Start the peak of this process's resident memory afresh, where the system lets us."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return  # not Linux, or not permitted: the peak then covers the process's whole life


def peak_memory_bytes() -> int:
    """Peak resident size since the last reset; 0 where the system does not say."""
    try:
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


def prefer_to_be_killed() -> None:
    """Ask the kernel to end this process, not the one that keeps the results, when memory runs out."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("600")
    except OSError:
        return  # not Linux


def main() -> None:
    """Serve on stdin and stdout; whatever a library prints goes to stderr instead."""
    prefer_to_be_killed()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    import verifier.api  # noqa: F401  (paid once, before the first instance's clock starts)

    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
