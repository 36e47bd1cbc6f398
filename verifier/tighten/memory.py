"""Peak memory of one step of a process."""

from __future__ import annotations

import resource
import sys


class PeakMemory:
    """Resident bytes a step adds to what the process held when the meter was made.

    On Linux the kernel's high-water mark is reset first; elsewhere it only ever rises, so a step
    that needs less than an earlier one reads as 0.
    """

    def __init__(self) -> None:
        try:
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")
        except OSError:
            pass
        self._before = _status("VmRSS") or _lifetime_peak()

    def bytes(self) -> int:
        """Peak so far, above the start."""
        return max(0, (_status("VmHWM") or _lifetime_peak()) - self._before)


def _status(key: str) -> int:
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith(key + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _lifetime_peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
