"""ONNX victims: a file seen through the project's own graph, or a running session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verifier.errors import NetworkError, ShapeError

_DTYPES = {"tensor(float)": torch.float32, "tensor(double)": torch.float64}


def graph_module(path: str | Path) -> torch.nn.Module:
    """The ONNX file at `path` as a differentiable torch module on batches [R, *S]."""
    from verifier.bounds.torch_graph import GraphModule
    from verifier.graph.load import load_network

    return GraphModule(load_network(path))


class SessionForward:
    """Calls an ONNX Runtime session on a batch, whatever batch size its file fixes.

    A file exported for batch size n is fed n rows at a time, the last block padded with copies
    of its last row.
    """

    def __init__(self, session: Any):
        inputs = session.get_inputs()
        if len(inputs) != 1:
            raise NetworkError(f"victim session: expected one input, got {[i.name for i in inputs]}")
        self.session, self.name = session, inputs[0].name
        if inputs[0].type not in _DTYPES:
            raise NetworkError(
                f"victim session: input type {inputs[0].type} is not supported; expected float or double"
            )
        self.dtype = _DTYPES[inputs[0].type]
        self.shape = inputs[0].shape
        self.batch = self.shape[0] if self.shape and isinstance(self.shape[0], int) else None

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.detach().cpu().numpy()
        fixed = self.shape[1:]
        if all(isinstance(d, int) for d in fixed) and rows.shape[1:] != tuple(fixed):
            if int(np.prod(rows.shape[1:])) != int(np.prod(fixed)):
                raise ShapeError(f"victim session: expected inputs {list(fixed)}, got {list(rows.shape[1:])}")
            rows = rows.reshape(rows.shape[0], *fixed)
        if self.batch is None:
            return torch.from_numpy(np.array(self.session.run(None, {self.name: rows})[0]))
        blocks = [self._block(rows[i : i + self.batch], self.batch) for i in range(0, rows.shape[0], self.batch)]
        return torch.from_numpy(np.concatenate(blocks))

    def _block(self, rows: np.ndarray, size: int) -> np.ndarray:
        short = size - rows.shape[0]
        full = np.concatenate([rows, np.repeat(rows[-1:], short, axis=0)]) if short else rows
        out = np.asarray(self.session.run(None, {self.name: full})[0])
        return out.reshape(size, -1)[: rows.shape[0]]
