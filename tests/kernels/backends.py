"""One test body for every device: arrays go to the device and come back as NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from verifier.kernels.native import native


def gpu_ready() -> bool:
    """True where the build has CUDA kernels and a GPU runs them."""
    return bool(native().cuda_architectures) and torch.cuda.is_available()


class Backend:
    """A place kernels run: "numpy", "torch" (CPU tensors) or "cuda"."""

    def __init__(self, name: str):
        self.name = name

    def to(self, array: Any) -> Any:
        """The array on this backend; None and numbers pass."""
        if not isinstance(array, np.ndarray) or self.name == "numpy":
            return array
        tensor = torch.from_numpy(np.array(array))
        return tensor.cuda() if self.name == "cuda" else tensor

    @staticmethod
    def back(array: Any) -> np.ndarray:
        """The array as NumPy."""
        return array if isinstance(array, np.ndarray) else array.cpu().numpy()


BACKENDS = [
    "numpy",
    "torch",
    pytest.param("cuda", marks=pytest.mark.skipif(not gpu_ready(), reason="no GPU, or built without CUDA")),
]
