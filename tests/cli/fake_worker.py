"""A stand-in for `verifier.batch.worker`: obeys the words in the property's name, needs no network."""

import json
import os
import sys
import time

from verifier.batch.worker import serve


def obey(network, spec, settings):
    """What the property's name says: sat, unsat, sleep, crash, kill, noise, raise, exhaust, limit."""
    name = os.path.basename(spec)
    if "sleep" in name:
        time.sleep(30)
    if "crash" in name:
        print("the last words", file=sys.stderr, flush=True)
        os._exit(3)
    if "kill" in name:
        os.kill(os.getpid(), 9)
    if "raise" in name:
        raise RuntimeError("a defect")
    if "exhaust" in name:
        raise MemoryError
    verdict = next((v for v in ("unsat", "sat", "timeout") if v in name), "unknown")
    detail = json.dumps({"pid": os.getpid(), **settings, "network": network}) if "settings" in name else ""
    return {
        "verdict": verdict,
        "reason": {"code": "x", "text": "because", "detail": detail},
        "peak_memory_bytes": 1,
    }


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print("noise on stdout must not reach the protocol")
    serve(sys.stdin, answers, obey)
