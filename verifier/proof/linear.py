"""The linear operators of the grammar as matrices over flat values, as `graph/grammar.py` defines them.

No coefficient is computed, only placed. Written apart from what the engines and the linear programs use, so that
a mistake there is one that a check finds.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import sparse

from verifier.errors import UnsupportedOperator
from verifier.graph.ir import Graph, Node

#: float64 [rows, columns]: one array where it is dense.
Matrix: TypeAlias = np.ndarray | sparse.csr_matrix
#: Most coefficients of one operator.
MOST_ENTRIES = 60_000_000


def matrices(graph: Graph, node: Node) -> tuple[Matrix, ...]:
    """One matrix [size, size of the input] for each input of a linear node; its value adds `offset` to their products.

    Raises:
        UnsupportedOperator: not a linear operator, or too large.
    """
    make = _MATRICES.get(node.op)
    if make is None:
        raise UnsupportedOperator(
            node.op, node.name, "proofs cover linear operators, Relu, LeakyRelu, Sigmoid, Tanh and ReduceMax"
        )
    return make(graph, node)


def offset(node: Node) -> np.ndarray:
    """What a linear node adds, float64 [size]."""
    if node.op == "Constant":
        return np.broadcast_to(_float(node.attrs["value"]), node.shape).reshape(-1)
    return per_number(node, node.attrs.get("bias", node.attrs.get("shift", 0.0)))


def per_number(node: Node, values: object) -> np.ndarray:
    """A bias, shift or magnitude for each of a node's numbers, float64 [size]; convolutions give one a channel."""
    values = _float(values)
    if node.op in ("Conv", "ConvTranspose"):
        values = values.reshape(1, -1, *(1,) * (len(node.shape) - 2))
    return np.broadcast_to(values, node.shape).reshape(-1)


def _float(array: object) -> np.ndarray:
    return np.asarray(array, dtype=np.float64)


def _dense(graph: Graph, node: Node) -> tuple[Matrix, ...]:
    weight = _float(node.attrs["weight"])
    places = node.size // weight.shape[1]
    if places == 1:
        return (np.ascontiguousarray(weight.T),)
    return (sparse.kron(sparse.identity(places), weight.T, format="csr"),)


def _block_dense(graph: Graph, node: Node) -> tuple[Matrix, ...]:
    weight = _float(node.attrs["weight"])
    times = node.size // (weight.shape[0] * weight.shape[2])
    return (sparse.block_diag([w.T for w in weight] * times, format="csr"),)


def _scale(graph: Graph, node: Node) -> tuple[Matrix, ...]:
    return (sparse.diags(np.broadcast_to(_float(node.attrs["scale"]), node.shape).reshape(-1), format="csr"),)


def _sum(graph: Graph, node: Node) -> tuple[Matrix, ...]:
    one = sparse.identity(node.size, format="csr")
    return (one, one if node.op == "Add" else -one)


def _moved(graph: Graph, node: Node) -> tuple[Matrix, ...]:
    """Operators that place numbers of their inputs, or 0."""
    sizes = [graph[name].size for name in node.inputs]
    starts = np.concatenate([[0], np.cumsum(sizes)])
    numbers = [start + np.arange(size).reshape(graph[name].shape)
               for name, start, size in zip(node.inputs, starts, sizes, strict=False)]  # fmt: skip
    if node.op == "Concat":
        read = np.concatenate(numbers, axis=node.attrs["axis"])
    elif node.op == "Transpose":
        read = numbers[0].transpose(node.attrs["perm"])
    else:
        read = numbers[0] if node.op == "Reshape" else np.asarray(node.attrs["indices"], dtype=np.int64)
    read = read.reshape(-1)
    rows = np.flatnonzero(read >= 0)
    whole = sparse.csr_matrix((np.ones(len(rows)), (rows, read[rows])), shape=(node.size, starts[-1]))
    return tuple(whole[:, start:stop] for start, stop in pairwise(starts))


def reduced(graph: Graph, node: Node) -> np.ndarray:
    """The numbers that each result of a reduction is made of, int [size, K]."""
    shape = graph[node.inputs[0]].shape
    axes = tuple(a % len(shape) for a in node.attrs["axes"])
    kept = tuple(1 if i in axes else n for i, n in enumerate(shape))
    result = np.broadcast_to(np.arange(node.size).reshape(kept), shape).reshape(-1)
    return np.argsort(result, kind="stable").reshape(node.size, -1)


def _reduce_sum(graph: Graph, node: Node) -> tuple[Matrix, ...]:
    read = reduced(graph, node)
    rows = np.repeat(np.arange(node.size), read.shape[1])
    return (sparse.csr_matrix((np.ones(read.size), (rows, read.reshape(-1))), shape=(node.size, read.size)),)


def _conv(graph: Graph, node: Node) -> tuple[Matrix, ...]:
    return (_convolution(node, graph[node.inputs[0]].shape, node.shape),)


def _conv_transpose(graph: Graph, node: Node) -> tuple[Matrix, ...]:
    """The transpose of the convolution that takes its result to its input."""
    return (_convolution(node, node.shape, graph[node.inputs[0]].shape).T.tocsr(),)


def _convolution(node: Node, source: tuple[int, ...], target: tuple[int, ...]) -> sparse.csr_matrix:
    """The convolution from shape `source` to shape `target`, [n, channels, *places] each, by what a window reads."""
    a, weight = node.attrs, _float(node.attrs["weight"])
    kernel, d = weight.shape[2:], len(source) - 2
    entries = int(np.prod(target, dtype=np.int64)) * int(np.prod(weight.shape[1:], dtype=np.int64))
    if entries > MOST_ENTRIES or min(a["pads"]) < 0:
        raise UnsupportedOperator(node.op, node.name, f"a proof's matrix would have {entries} coefficients")
    pads = [(0, 0), (0, 0), *((a["pads"][i], a["pads"][d + i]) for i in range(d))]
    numbers = np.pad(np.arange(np.prod(source)).reshape(source), pads, constant_values=-1)
    spans = [(k - 1) * step + 1 for k, step in zip(kernel, a["dilations"], strict=True)]
    windows = sliding_window_view(numbers, spans, axis=tuple(range(2, 2 + d)))  # [n, channels, *places, *kernel]
    cut: list[Any] = [slice(None), slice(None)]
    cut += [slice(0, (n - 1) * stride + 1, stride) for n, stride in zip(target[2:], a["strides"], strict=True)]
    cut += [slice(None, None, step) for step in a["dilations"]]
    windows = np.moveaxis(windows[tuple(cut)], 1, 1 + d)  # [n, *places, channels, *kernel]
    results = np.arange(np.prod(target)).reshape(target)
    rows, columns, values = [], [], []
    each_out, each_in = weight.shape[0] // a["groups"], weight.shape[1]
    for g in range(a["groups"]):
        read = windows.take(range(g * each_in, (g + 1) * each_in), axis=1 + d).reshape(-1, weight[0].size)
        for channel in range(g * each_out, (g + 1) * each_out):
            taps = np.broadcast_to(weight[channel].reshape(-1), read.shape)
            used = (read >= 0) & (taps != 0)
            row = np.broadcast_to(results[:, channel].reshape(-1, 1), read.shape)
            rows.append(row[used])
            columns.append(read[used])
            values.append(taps[used])
    parts = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_matrix(parts, shape=(int(np.prod(target)), int(np.prod(source))))


_MATRICES: dict[str, Callable[[Graph, Node], tuple[Matrix, ...]]] = {
    "Constant": lambda graph, node: (),
    "Dense": _dense,
    "BlockDense": _block_dense,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Scale": _scale,
    "Add": _sum,
    "Sub": _sum,
    "ReduceSum": _reduce_sum,
    "Reshape": _moved,
    "Transpose": _moved,
    "Select": _moved,
    "Concat": _moved,
}
