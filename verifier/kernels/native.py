"""Access to the compiled module, with an error that says what to do where it was not built."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from verifier.errors import DeviceError


def native() -> ModuleType:
    """The compiled module verifier.kernels._native.

    Raises:
        DeviceError: it was not built for this Python, or does not load here.
    """
    try:
        return import_module("verifier.kernels._native")
    except ImportError as error:
        raise DeviceError(
            f"the compiled kernels (verifier.kernels._native) cannot be loaded: {error}; "
            "build them with `pip install -e . --no-build-isolation`, or use --engine torch"
        ) from error


def kernels_for(device: str) -> bool:
    """Whether the compiled module is there and has kernels for "cpu" or "cuda"."""
    try:
        module = native()
    except DeviceError:
        return False
    return device == "cpu" or (device == "cuda" and bool(module.cuda_architectures))
