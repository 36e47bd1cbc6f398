"""l2 balls around the values of every node, carried forward by spectral norms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from verifier.spec.problem import Ball
from verifier.tighten.eigenvalues import smallest_eigenvalue_bound
from verifier.tighten.intervals import Maps
from verifier.tighten.linear_maps import AFFINE, MOVES
from verifier.tighten.rounding import WIDEN, dot_error, gamma, row_terms, with_data

#: Activations that move two points no further apart.
_CONTRACTING = ("Relu", "Abs", "Clip", "Tanh", "Sigmoid", "Atan", "Softsign", "Erf")
#: Lipschitz constants above 1; Erf's slope is 2 / sqrt(pi).
_LIPSCHITZ = {"Erf": 1.1284}
#: Gram matrices beyond this size are not formed; the cheap norm bound serves.
_LARGEST = 1500


@dataclass(frozen=True)
class NodeBall:
    """{v : ||v - center||_2 <= radius} holds the node's values; center float64 [size]."""

    center: np.ndarray
    radius: float


def node_balls(maps: Maps, ball: Ball) -> dict[str, NodeBall]:
    """A ball around every node's values, for inputs in an l2 `ball`; nodes it cannot carry on are left out.

    z = M h + b + e gives ||z - c_z|| <= ||M||_2 ||h - c_h|| + ||e|| + round-off, with c_z = fl(M c_h + b).

    Property: sound, the `rounding_error` of `maps` included.
    """
    graph = maps.graph
    center = np.asarray(ball.center, dtype=np.float64)
    scale = 1.0 if ball.scale is None else float(np.max(ball.scale))
    starts = dict(zip(graph.inputs, np.cumsum([0, *(graph[i].size for i in graph.inputs)]), strict=False))
    found: dict[str, NodeBall] = {}
    for name, node in graph.nodes.items():
        if node.op == "Input":
            found[name] = NodeBall(center[starts[name] : starts[name] + node.size], ball.radius * scale * WIDEN)
            continue
        if node.op == "Constant":
            found[name] = NodeBall(np.asarray(node.attrs["value"], dtype=np.float64).reshape(-1), 0.0)
            continue
        if any(i not in found for i in node.inputs):
            continue
        source = np.concatenate([found[i].center for i in node.inputs])
        radius = float(np.sqrt(sum(found[i].radius ** 2 for i in node.inputs))) * WIDEN
        error = float(np.linalg.norm(maps.error_of(name))) * WIDEN
        if node.op in MOVES:
            index = maps.move[name]
            repeats = int(np.bincount(index[index >= 0], minlength=1).max(initial=1))
            at = np.where(index < 0, 0.0, source[index])
            found[name] = NodeBall(at, radius * float(np.sqrt(repeats)) * WIDEN + error)
        elif node.op in AFFINE:
            matrix, offset = maps.affine[name]
            at = matrix @ source + offset
            size = with_data(matrix, np.abs(matrix.data)) @ np.abs(source) + np.abs(offset)
            own = float(np.linalg.norm(dot_error(size, row_terms(matrix) + 2)))
            found[name] = NodeBall(at, (spectral_norm_bound(matrix) * radius + own) * WIDEN + error)
        elif node.op in _CONTRACTING:
            at = maps.curve[name].value(source[:, None])[:, 0]
            own = 2.0**-46 * float(np.linalg.norm(1.0 + np.abs(at)))
            found[name] = NodeBall(at, radius * _LIPSCHITZ.get(node.op, 1.0) + own + error)
    return found


def spectral_norm_bound(matrix: sparse.csr_matrix) -> float:
    """At least the largest singular value: sqrt(||M||_1 ||M||_inf), or from a proved eigenvalue where affordable."""
    size = with_data(matrix, np.abs(matrix.data))
    rows, columns = size @ np.ones(matrix.shape[1]), size.T @ np.ones(matrix.shape[0])
    terms = max(matrix.shape) + 4
    cheap = float(np.sqrt(rows.max(initial=0.0) * columns.max(initial=0.0))) * (1.0 + gamma(terms)) * WIDEN
    if min(matrix.shape) == 0 or min(matrix.shape) > _LARGEST:
        return cheap
    dense = matrix.toarray() if matrix.shape[0] <= matrix.shape[1] else matrix.toarray().T
    gram = dense @ dense.T
    gram = 0.5 * (gram + gram.T)
    # Repeated entries were added up, and every product rounded: n + 4 roundings of each term cover both.
    magnitude = np.abs(dense) @ np.abs(dense).T
    doubt = float(np.linalg.norm(magnitude)) * gamma(dense.shape[1] + 8) * 2.0
    largest = -smallest_eigenvalue_bound(-gram) + doubt
    return min(cheap, float(np.sqrt(max(largest, 0.0))) * WIDEN)
