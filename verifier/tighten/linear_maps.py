"""The linear nodes of a graph as scipy.sparse matrices, exact: no coefficient is computed, only placed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
from scipy import sparse

from verifier.graph.ir import Graph, Node

# Nodes that only move numbers: result.flat[i] = inputs.flat[index[i]], 0 where the index is -1.
MOVES = ("Reshape", "Transpose", "Select", "Concat")
AFFINE = ("Dense", "BlockDense", "Conv", "ConvTranspose", "Scale", "Add", "Sub", "ReduceSum")


def move_indices(graph: Graph, node: Node) -> np.ndarray:
    """For a node of `MOVES`: int64 [size], positions in the concatenation of its flat inputs, or -1."""
    shapes = [graph[i].shape for i in node.inputs]
    if node.op == "Select":
        return np.asarray(node.attrs["indices"], dtype=np.int64).reshape(-1)
    starts = np.cumsum([0, *(int(np.prod(s, dtype=np.int64)) for s in shapes)])
    parts = [np.arange(a, b).reshape(s) for a, b, s in zip(starts, starts[1:], shapes, strict=False)]
    if node.op == "Reshape":
        return parts[0].reshape(-1)
    if node.op == "Transpose":
        return parts[0].transpose(node.attrs["perm"]).reshape(-1)
    return np.concatenate(parts, axis=node.attrs["axis"]).reshape(-1)


def affine_map(graph: Graph, node: Node) -> tuple[sparse.csr_matrix, np.ndarray]:
    """(matrix float64 [size, sum of input sizes], offset float64 [size]) of a node of `AFFINE`."""
    return _MAPS[node.op](graph, node)


def _float(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, dtype=np.float64)


def _dense(graph: Graph, node: Node) -> tuple[sparse.csr_matrix, np.ndarray]:
    weight, bias = _float(node.attrs["weight"]), _float(node.attrs["bias"])
    rows = node.size // weight.shape[1]
    return sparse.block_diag([weight.T] * rows, format="csr"), np.tile(bias, rows)


def _block_dense(graph: Graph, node: Node) -> tuple[sparse.csr_matrix, np.ndarray]:
    weight = _float(node.attrs["weight"])
    repeats = node.size // (weight.shape[0] * weight.shape[2])
    blocks = [w.T for w in weight] * repeats
    return sparse.block_diag(blocks, format="csr"), np.zeros(node.size)


def _scale(graph: Graph, node: Node) -> tuple[sparse.csr_matrix, np.ndarray]:
    scale = np.broadcast_to(_float(node.attrs["scale"]), node.shape).reshape(-1)
    shift = np.broadcast_to(_float(node.attrs["shift"]), node.shape).reshape(-1)
    return sparse.diags(scale, format="csr"), shift.copy()


def _add(graph: Graph, node: Node) -> tuple[sparse.csr_matrix, np.ndarray]:
    one = sparse.identity(node.size, format="csr")
    second = one if node.op == "Add" else -one
    return sparse.hstack([one, second], format="csr"), np.zeros(node.size)


def _reduce_sum(graph: Graph, node: Node) -> tuple[sparse.csr_matrix, np.ndarray]:
    groups = reduction_groups(graph, node)
    rows = np.repeat(np.arange(groups.shape[0]), groups.shape[1])
    shape = (node.size, graph[node.inputs[0]].size)
    return sparse.csr_matrix((np.ones(groups.size), (rows, groups.reshape(-1))), shape=shape), np.zeros(node.size)


def reduction_groups(graph: Graph, node: Node) -> np.ndarray:
    """int64 [size, K]: positions in the flat input that a ReduceSum or ReduceMax combines."""
    shape = graph[node.inputs[0]].shape
    axes = sorted(a % len(shape) for a in node.attrs["axes"])
    kept = [i for i in range(len(shape)) if i not in axes]
    positions = np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape)
    return positions.transpose(*kept, *axes).reshape(node.size, -1)


def _conv(graph: Graph, node: Node) -> tuple[sparse.csr_matrix, np.ndarray]:
    shape, a = graph[node.inputs[0]].shape, node.attrs
    weight = _float(a["weight"])
    rows: list[np.ndarray] = []
    cols: list[np.ndarray] = []
    values: list[np.ndarray] = []
    for tap, near, far in _taps(weight.shape[2:], node.shape[2:], shape[2:], a):
        for group in range(a["groups"]):
            per_out, per_in = weight.shape[0] // a["groups"], weight.shape[1]
            outs, ins = group * per_out + np.arange(per_out), group * per_in + np.arange(per_in)
            block = weight[(outs[:, None], np.arange(per_in)[None, :], *tap)]
            _place(block, (outs, near, node.shape), (ins, far, shape), rows, cols, values)
    return _assemble(rows, cols, values, (node.size, int(np.prod(shape)))), _channel_bias(node)


def _conv_transpose(graph: Graph, node: Node) -> tuple[sparse.csr_matrix, np.ndarray]:
    shape, a = graph[node.inputs[0]].shape, node.attrs
    weight = _float(a["weight"])
    rows: list[np.ndarray] = []
    cols: list[np.ndarray] = []
    values: list[np.ndarray] = []
    for tap, near, far in _taps(weight.shape[2:], shape[2:], node.shape[2:], a):
        for group in range(a["groups"]):
            per_in, per_out = weight.shape[0] // a["groups"], weight.shape[1]
            outs, ins = group * per_out + np.arange(per_out), group * per_in + np.arange(per_in)
            block = weight[(ins[:, None], np.arange(per_out)[None, :], *tap)].T
            _place(block, (outs, far, node.shape), (ins, near, shape), rows, cols, values)
    return _assemble(rows, cols, values, (node.size, int(np.prod(shape)))), _channel_bias(node)


def _taps(kernel, near_shape, far_shape, attrs):
    """For every kernel tap: the flat spatial positions (near, far) with far = near*stride + tap*dilation - pad.

    In a convolution near is the output; in a transposed one, near is the input.
    """
    for tap in product(*(range(k) for k in kernel)):
        near_axes, far_axes = [], []
        for i, t in enumerate(tap):
            near = np.arange(near_shape[i])
            far = near * attrs["strides"][i] + t * attrs["dilations"][i] - attrs["pads"][i]
            inside = (far >= 0) & (far < far_shape[i])
            near_axes.append(near[inside])
            far_axes.append(far[inside])
        yield tap, _flat_grid(near_axes, near_shape), _flat_grid(far_axes, far_shape)


def _flat_grid(axes: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    return np.ravel_multi_index(np.meshgrid(*axes, indexing="ij"), shape).reshape(-1)


def _place(block, out_side, in_side, rows, cols, values) -> None:
    """Append block[o, i] at every (sample, channel, position) pair of the two sides."""
    (outs, out_positions, out_shape), (ins, in_positions, in_shape) = out_side, in_side
    out_places, in_places = int(np.prod(out_shape[2:])), int(np.prod(in_shape[2:]))
    sample = np.arange(out_shape[0])[:, None, None, None]
    row = (sample * out_shape[1] + outs[None, :, None, None]) * out_places + out_positions
    col = (sample * in_shape[1] + ins[None, None, :, None]) * in_places + in_positions
    row, col, value = np.broadcast_arrays(row, col, block[None, :, :, None])
    rows.append(row.reshape(-1))
    cols.append(col.reshape(-1))
    values.append(value.reshape(-1))


def _assemble(rows, cols, values, shape) -> sparse.csr_matrix:
    # A tap meets an (output, input) pair at most once, so no two entries are ever added.
    rows, cols, values = (np.concatenate(v) for v in (rows, cols, values))
    kept = values != 0.0
    return sparse.csr_matrix((values[kept], (rows[kept], cols[kept])), shape=shape)


def _channel_bias(node: Node) -> np.ndarray:
    bias = _float(node.attrs["bias"]).reshape(1, -1, *(1,) * (len(node.shape) - 2))
    return np.broadcast_to(bias, node.shape).reshape(-1).copy()


_MAPS: dict[str, Callable[[Graph, Node], tuple[sparse.csr_matrix, np.ndarray]]] = {
    "Dense": _dense,
    "BlockDense": _block_dense,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Scale": _scale,
    "Add": _add,
    "Sub": _add,
    "ReduceSum": _reduce_sum,
}
