"""Arrays as the kernels see them: NumPy or torch, CPU or CUDA, by address. torch is never imported here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from verifier.errors import DeviceError, ShapeError
from verifier.kernels.native import native

Array = Any  # np.ndarray or torch.Tensor

_DTYPES = {"float32": "float32", "float64": "float64", "torch.float32": "float32", "torch.float64": "float64"}


class Call:
    """One kernel launch: checks its arrays against each other and collects their addresses.

    All arrays of a call share the library, the device and, unless said otherwise, the dtype of the
    first one. Inputs that are not contiguous are copied; results that are updated in place must be.

    Args:
        kernel: name in the compiled module, without the dtype's suffix.
        lead: the array that decides; float32 or float64, NumPy, or torch on the CPU or a GPU.
        threads: CPU threads; None for all that the process may use.
    Raises:
        ShapeError: an unknown dtype.
        DeviceError: a GPU array in a build without CUDA.
    """

    def __init__(self, kernel: str, lead: Array, threads: int | None = None):
        self.kernel, self.lead = kernel, lead
        self.dtype = _DTYPES.get(str(lead.dtype), "")
        if not self.dtype:
            raise ShapeError(f"{kernel}: expected float32 or float64 arrays, got {lead.dtype}")
        self.is_numpy = isinstance(lead, np.ndarray)
        self.cuda = not self.is_numpy and lead.device.type == "cuda"
        self.module = native()
        if self.cuda and not self.module.cuda_architectures:
            raise DeviceError(
                f"{kernel}: the arrays are on a GPU, but verifier was built without CUDA; rebuild with VERIFIER_CUDA=ON"
            )
        self.threads = self.module.available_threads() if threads is None else threads
        self.job: dict[str, Any] = {}
        self._alive: list[Array] = []

    def read(self, name: str, array: Array, shape: Sequence[int], dtype: str | None = None) -> None:
        """An input of exactly this shape.

        Raises:
            ShapeError: shape, dtype, library or device differ from what the call needs.
        """
        self.job[name] = self.address(name, array, shape, dtype)

    def address(self, name: str, array: Array, shape: Sequence[int], dtype: str | None = None) -> int:
        """As `read`, for jobs whose inputs are not a flat list: the address alone."""
        self._check(name, array, shape, dtype or self.dtype)
        return self._keep(np.ascontiguousarray(array) if self.is_numpy else array.detach().contiguous())

    def update(self, name: str, array: Array, shape: Sequence[int], dtype: str | None = None) -> None:
        """An array that the kernel changes in place.

        Raises:
            ShapeError: as `read`, or the array is not contiguous.
        """
        self._check(name, array, shape, dtype or self.dtype)
        contiguous = array.flags.c_contiguous if self.is_numpy else array.is_contiguous()
        if not contiguous:
            raise ShapeError(f"{self.kernel}: {name} is updated in place and must be contiguous")
        self.job[name] = self._keep(array)

    def create(self, name: str, shape: Sequence[int], dtype: str | None = None, *, zero: bool = True) -> Array:
        """A new array for a result: zeros, or whatever was there for kernels that write every element."""
        wanted = dtype or self.dtype
        if self.is_numpy:
            made: Array = (np.zeros if zero else np.empty)(tuple(shape), dtype=wanted)
        else:
            make = self.lead.new_zeros if zero else self.lead.new_empty
            made = make(tuple(shape), dtype=self._torch_dtype(wanted))
        self.job[name] = self._keep(made)
        return made

    def absent(self, *names: str) -> None:
        """Optional arrays that are not given."""
        for name in names:
            self.job[name] = 0

    def launch(self, **settings: Any) -> None:
        """Run the kernel: on the CPU at once, on a GPU in the current stream."""
        where = self.threads
        if self.cuda:
            import torch  # the arrays are torch's, so it is loaded

            with torch.cuda.device(self.lead.device):
                where = torch.cuda.current_stream().cuda_stream
                self._run(where, settings)
            return
        self._run(where, settings)

    def _run(self, where: int, settings: dict[str, Any]) -> None:
        getattr(self.module, f"{self.kernel}_{self.dtype}")(self.cuda, where, self.job | settings)

    def _torch_dtype(self, name: str) -> Any:
        import torch

        return torch.float32 if name == "float32" else torch.float64

    def _check(self, name: str, array: Array, shape: Sequence[int], dtype: str) -> None:
        same = isinstance(array, np.ndarray) == self.is_numpy and (self.is_numpy or array.device == self.lead.device)
        if not same:
            raise ShapeError(f"{self.kernel}: {name} must be from the same library and device as the first array")
        if tuple(array.shape) != tuple(shape):
            raise ShapeError(f"{self.kernel}: {name}: expected {list(shape)}, got {list(array.shape)}")
        if _DTYPES.get(str(array.dtype)) != dtype:
            raise ShapeError(f"{self.kernel}: {name}: expected {dtype}, got {array.dtype}")

    def _keep(self, array: Array) -> int:
        self._alive.append(array)
        return array.ctypes.data if self.is_numpy else array.data_ptr()
