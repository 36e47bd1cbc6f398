"""ONNX victims: a file seen through the project's own graph, or a running session."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verifier.bounds.network import Network
from verifier.errors import NetworkError, ShapeError
from verifier.graph.ir import Graph
from verifier.graph.load import load_network
from verifier.outcome import Soundness

_DTYPES = {"tensor(float)": torch.float32, "tensor(double)": torch.float64}


class GraphModule(torch.nn.Module):
    """A network file as a differentiable torch module on batches of any shape that flattens to its inputs.

    A final softmax is left out (it keeps the order of the classes, and its gradient vanishes where it
    saturates), and staircases let a surrogate gradient through.

    Attributes:
        network: the lowered graph; features: N, the length of its input; ends_in_softmax: whether one was left out.
    """

    def __init__(self, graph: Graph):
        super().__init__()
        inner = tuple(graph[o].inputs[0] if graph[o].op == "Softmax" else o for o in graph.outputs)
        self.ends_in_softmax = inner != graph.outputs
        if self.ends_in_softmax:
            graph = replace(graph, outputs=inner).pruned()
        dtype = torch.float64 if graph.dtype == "float64" else torch.float32
        self.network = Network(graph, dtype, torch.device("cpu"), Soundness.REAL_ARITHMETIC)
        self.features = graph.input_size
        # what tells a Model which dtype inputs have
        self.register_buffer("zero", torch.zeros((), dtype=dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Scores [R, K] for inputs [R, ...]; ShapeError where the numbers of features differ."""
        return self.network.evaluate(as_features(x, self.features, self.network.graph), surrogate=True)


def as_features(x: Tensor, count: int, graph: Graph) -> Tensor:
    """Inputs [R, ...] as rows of features [R, count] of a graph; ShapeError where their numbers differ."""
    flat = x.flatten(1)
    if flat.shape[1] != count:
        raise ShapeError(
            f"network input: expected {count} features, got {list(x.shape[1:])} "
            f"({flat.shape[1]}), from {graph.source or 'the graph'}; give data of that size"
        )
    return flat


def graph_module(path: str | Path) -> GraphModule:
    """The network file at `path` as a differentiable torch module on batches [R, *S]."""
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
