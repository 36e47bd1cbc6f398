"""What was compiled and what runs here; `verifier info --build` and every report print it."""

from __future__ import annotations

from typing import Any

from verifier.kernels.native import native


def build_info() -> dict[str, Any]:
    """Facts about the compiled module.

    Returns:
        version of the package; compiler; simd_levels compiled in, best first; simd_level in use;
        threads available; cuda_architectures compiled for ("" without CUDA); cuda_devices by name.
    Raises:
        DeviceError: the module was not built.
    """
    from verifier import __version__

    module = native()
    return {
        "version": __version__,
        "compiler": module.compiler,
        "simd_levels": list(module.compiled_simd_levels()),
        "simd_level": module.simd_level(),
        "threads": module.available_threads(),
        "cuda_architectures": module.cuda_architectures,
        "cuda_devices": [module.cuda_device_name(i) for i in range(module.cuda_device_count())],
    }
