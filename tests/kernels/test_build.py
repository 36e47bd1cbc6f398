"""What the build says about itself."""

from __future__ import annotations

import subprocess
import sys

from verifier.kernels import build_info


def test_build_info_names_what_runs() -> None:
    info = build_info()
    assert info["simd_level"] in info["simd_levels"] and info["simd_levels"][-1] == "baseline"
    assert info["threads"] >= 1 and info["compiler"]
    assert isinstance(info["cuda_architectures"], str) and isinstance(info["cuda_devices"], list)
    assert info["cuda_architectures"] or not info["cuda_devices"]


def test_build_info_does_not_import_torch() -> None:
    code = "import sys; from verifier.kernels import build_info; build_info(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
