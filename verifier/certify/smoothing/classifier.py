"""Anything that classifies: torch modules, ONNX Runtime sessions, Python callables, denoisers before them."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from verifier.certify.smoothing.noise import NumpySource, Source, TorchSource
from verifier.errors import DeviceError, ShapeError, SpecError

NO_CLASS = -1


class Batched(ABC):
    """A function of batches [B, ...] with the kind of array (numpy or torch) it wants."""

    @abstractmethod
    def apply(self, batch: Any) -> Any:
        """The function's raw result for a batch of either kind."""

    @abstractmethod
    def source(self, seed: int, dtype: np.dtype) -> Source:
        """A seeded source of arrays of this function's kind and device."""

    def labels(self, batch: Any) -> np.ndarray:
        """Class of every row, int64 [B]; NO_CLASS where a score is NaN, so NaN never wins a vote."""
        return _labels_of(self.apply(batch))


class NumpyCallable(Batched):
    """A Python callable on numpy arrays."""

    def __init__(self, function: Any):
        self._function = function

    def apply(self, batch):
        return self._function(_as_numpy(batch))

    def source(self, seed, dtype):
        return NumpySource(seed, dtype)


class OnnxSession(Batched):
    """An ONNX Runtime session with one input; sessions of a fixed batch size are fed in pieces."""

    def __init__(self, session: Any):
        inputs = session.get_inputs()
        if len(inputs) != 1:
            raise SpecError(f"ONNX session: expected one input, got {[i.name for i in inputs]}")
        self._session, self._name, self._shape = session, inputs[0].name, inputs[0].shape
        self._dtype = np.float64 if "double" in inputs[0].type else np.float32

    def apply(self, batch):
        batch = np.ascontiguousarray(_as_numpy(batch), dtype=self._dtype)
        fixed = self._shape[0] if self._shape and isinstance(self._shape[0], int) else None
        if fixed is None or fixed == len(batch):
            return self._session.run(None, {self._name: batch})[0]
        padded = np.concatenate([batch, np.repeat(batch[-1:], -len(batch) % fixed, axis=0)])
        starts = range(0, len(padded), fixed)
        parts = [self._session.run(None, {self._name: padded[i : i + fixed]})[0] for i in starts]
        return np.concatenate(parts)[: len(batch)]

    def source(self, seed, dtype):
        return NumpySource(seed, np.dtype(self._dtype))


class TorchModule(Batched):
    """A torch module in evaluation mode, run without gradients on its own device."""

    def __init__(self, module: Any, device: Any = None):
        import torch

        if any(m.training for m in module.modules()):
            raise SpecError("torch module: got training mode, expected evaluation mode; call model.eval()")
        self._torch, self._module = torch, module
        tensors = [*module.parameters(), *module.buffers()]
        found = tensors[0].device if tensors else torch.device("cpu")
        if device is not None and tensors and torch.device(device).type != found.type:
            raise DeviceError(f"torch module: lives on {found}, asked for {device}; use model.to({device!r})")
        self.device = torch.device(device) if device is not None and not tensors else found
        self.dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)

    def apply(self, batch):
        batch = self._torch.as_tensor(batch, dtype=self.dtype, device=self.device)
        with self._torch.inference_mode():
            return self._module(batch)

    def source(self, seed, dtype):
        return TorchSource(seed, self.dtype, self.device)


class Denoised(Batched):
    """A denoiser before a classifier: the classifier alone need not stand the noise.

    The composition is what is smoothed, so the certificate needs nothing from the denoiser.

    Source: Salman et al. 2020, arXiv:2003.01908.
    """

    def __init__(self, denoiser: Batched, classifier: Batched):
        self._denoiser, self._classifier = denoiser, classifier

    def apply(self, batch):
        clean = self._denoiser.apply(batch)
        if tuple(clean.shape) != tuple(batch.shape):
            raise ShapeError(f"denoiser: expected shape {tuple(batch.shape)}, got {tuple(clean.shape)}")
        return self._classifier.apply(clean)

    def source(self, seed, dtype):
        return self._denoiser.source(seed, dtype)


def batched(function: Any, device: Any = None) -> Batched:
    """Wrap a torch module, an ONNX Runtime session or a callable on numpy batches.

    Raises:
        SpecError: none of the three, or a module in training mode.
        DeviceError: a torch module that is not on the requested device.
    """
    if isinstance(function, Batched):
        return function
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(function, torch.nn.Module):
        return TorchModule(function, device)
    if hasattr(function, "get_inputs") and hasattr(function, "run"):
        return OnnxSession(function)
    if callable(function):
        return NumpyCallable(function)
    kind = type(function).__name__
    raise SpecError(f"classifier: expected a torch module, an ONNX Runtime session or a callable, got {kind}")


def denoised(denoiser: Any, classifier: Any, device: Any = None) -> Batched:
    """`classifier` applied to `denoiser`'s output, ready to be smoothed; each may be of any kind."""
    return Denoised(batched(denoiser, device), batched(classifier, device))


def _as_numpy(batch: Any) -> np.ndarray:
    return batch if isinstance(batch, np.ndarray) else batch.detach().cpu().numpy()


def _labels_of(result: Any) -> np.ndarray:
    """Labels [B] from integer labels [B], or from scores [B, classes] by their maximum."""
    scores = result if isinstance(result, np.ndarray) else None
    if scores is None and hasattr(result, "detach"):
        if result.ndim == 2 and result.is_floating_point():
            labels = result.argmax(dim=1)
            labels[result.isnan().any(dim=1)] = NO_CLASS
            return labels.cpu().numpy().astype(np.int64)
        scores = result.detach().cpu().numpy()
    scores = np.asarray(result) if scores is None else scores
    if scores.ndim == 1 and scores.dtype.kind in "iu":
        return scores.astype(np.int64)
    if scores.ndim == 2 and scores.dtype.kind == "f":
        labels = scores.argmax(axis=1).astype(np.int64)
        labels[np.isnan(scores).any(axis=1)] = NO_CLASS
        return labels
    got = f"{scores.dtype} {scores.shape}"
    raise ShapeError(f"classifier: expected integer labels [B] or scores [B, classes], got {got}")
