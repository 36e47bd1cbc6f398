"""Checked wrappers over the compiled module; importing this package imports neither torch nor the module."""

from verifier.kernels.build import build_info

__all__ = ["build_info"]
