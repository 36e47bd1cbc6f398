"""Time limits counted from the import of the command line: in a process that had lived longer than
the limit the watchdog fired at once and ended the whole process (a test worker, say)."""

import subprocess
import sys


def test_a_call_of_main_has_the_whole_limit():
    code = (
        "import sys, time, verifier.api, verifier.cli.main as m\n"
        "from verifier.outcome import *\n"
        "from verifier.report.model import Report\n"
        "m.STARTED -= 1000\n"
        "def slow(network, spec, settings, cancel):\n"
        "    assert settings.timeout_s > 25, settings\n"
        "    time.sleep(0.3)\n"
        "    return Report(Verdict.UNKNOWN, Soundness.IEEE_FLOAT, StopReason.NO_PROGRESS)\n"
        "verifier.api.verify = slow\n"
        "code = m.main(['verify', 'n', 's', '--timeout', '30'])\n"
        "print('still here', code)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "unknown\nstill here 0\n"), ended.stderr
