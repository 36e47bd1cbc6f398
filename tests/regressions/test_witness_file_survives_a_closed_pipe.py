"""`verifier verify ... --witness FILE | head -1` once lost FILE: the verdict was printed before it was written."""

import subprocess
import sys
from pathlib import Path

SPECS = Path(__file__).parent.parent.parent / "specs"


def test_the_witness_is_written_although_nobody_reads_on(tmp_path):
    witness = tmp_path / "witness.txt"
    command = [sys.executable, "-m", "verifier", "verify", SPECS / "onnx" / "fc.onnx"]
    command += [SPECS / "vnnlib" / "fc_large.vnnlib", "--witness", witness, "--json", tmp_path / "report.json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert witness.read_text().startswith("((X_0 ") and (tmp_path / "report.json").exists()
