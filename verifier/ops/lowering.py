"""Rewrites that leave only linear, elementwise and product nodes, so engines need three rules.

Softmax:   p_i = 1 / (1 + sum_{j != i} exp(x_j - x_i)), whose pieces are convex.
ReduceMax: a tournament of max(a, b) = b + relu(a - b), which splitting of relus makes exact.

Helper nodes do not exist in the deployed program, so they carry `deployed_error` 0 and the last
node carries the allowance for the operator the program really runs.
"""

from __future__ import annotations

import math

import numpy as np

from verifier.graph.ir import Graph, GraphBuilder, Node
from verifier.graph.passes.scalars import without_scalars


def lower(graph: Graph) -> Graph:
    """The same function over linear, elementwise and Mul nodes only, each with at least one axis."""
    graph = without_scalars(graph)
    if not any(node.op in _LOWERINGS for node in graph.nodes.values()):
        return graph
    builder = GraphBuilder()
    for name in graph.inputs:
        builder.nodes[name] = graph[name]
    renamed: dict[str, str] = {name: name for name in graph.inputs}
    for node in graph.nodes.values():
        if node.name in renamed:
            continue
        inputs = tuple(renamed[i] for i in node.inputs)
        rewrite = _LOWERINGS.get(node.op)
        if rewrite is None:
            renamed[node.name] = builder.add(node.op, inputs, node.shape, node.name, **node.attrs)
        else:
            renamed[node.name] = rewrite(builder, node, inputs[0], graph[node.inputs[0]].shape, graph.dtype)
    return builder.finish(
        graph.inputs,
        tuple(renamed[o] for o in graph.outputs),
        input_names=graph.input_names,
        output_names=graph.output_names,
        dtype=graph.dtype,
        source=graph.source,
    )


def _softmax(builder: GraphBuilder, node: Node, x: str, shape: tuple[int, ...], dtype: str) -> str:
    axis = node.attrs["axis"] % len(shape)
    k = shape[axis]
    if k == 1:
        return builder.add("Constant", (), shape, node.name, value=np.ones(shape, dtype=dtype))
    flat = np.moveaxis(np.arange(math.prod(shape)).reshape(shape), axis, -1)  # [..., k]
    others = np.array([[j for j in range(k) if j != i] for i in range(k)])  # [k, k-1]
    rivals = flat[..., others]  # [..., k, k-1]
    own = np.broadcast_to(flat[..., None], rivals.shape)
    a = builder.add("Select", (x,), rivals.shape, f"{node.name}/rival", indices=np.ascontiguousarray(rivals))
    b = builder.add("Select", (x,), rivals.shape, f"{node.name}/own", indices=np.ascontiguousarray(own))
    d = builder.add("Sub", (a, b), rivals.shape, f"{node.name}/difference", deployed_error=0.0)
    e = builder.add("Exp", (d,), rivals.shape, f"{node.name}/exp", deployed_error=0.0)
    total_shape = rivals.shape[:-1]
    s = builder.add(
        "ReduceSum", (e,), total_shape, f"{node.name}/sum", axes=(len(total_shape),), keepdims=False, deployed_error=0.0
    )
    one = np.ones((), dtype=dtype)
    s = builder.add("Scale", (s,), total_shape, f"{node.name}/total", scale=one, shift=one, deployed_error=0.0)
    # Deployed: exp(x_i - m) / sum_j exp(x_j - m). With t_j = m - x_j >= 0 each term e^-t has error
    # (t + 6) u e^-t, and t e^-t <= 0.37, so the quotient's absolute error is below (2k + 16) u.
    unit = 2.0**-24 if dtype == "float32" else 2.0**-53
    allowance = (2 * k + 16) * unit
    p = builder.add("Reciprocal", (s,), total_shape, f"{node.name}/moved", deployed_error=allowance, sums_to_one=True)
    if axis == len(shape) - 1:
        return p
    perm = list(range(len(shape) - 1))
    perm.insert(axis, len(shape) - 1)
    return builder.add("Transpose", (p,), shape, node.name, perm=tuple(perm))


def _reduce_max(builder: GraphBuilder, node: Node, x: str, shape: tuple[int, ...], dtype: str) -> str:
    axes = sorted(a % len(shape) for a in node.attrs["axes"])
    kept = [i for i in range(len(shape)) if i not in axes]
    flat = np.arange(math.prod(shape)).reshape(shape).transpose(*kept, *axes)
    rows = flat.reshape(*(shape[i] for i in kept), -1)  # [..., K]
    current, size = x, rows.shape[-1]
    picks = rows
    while size > 1:
        half = size // 2
        parts = (picks[..., :half], picks[..., half : 2 * half])
        sides = [
            builder.add("Select", (current,), p.shape, f"{node.name}/side", indices=np.ascontiguousarray(p))
            for p in parts
        ]
        d = builder.add("Sub", (sides[0], sides[1]), parts[0].shape, f"{node.name}/difference", deployed_error=0.0)
        r = builder.add("Relu", (d,), parts[0].shape, f"{node.name}/lead")
        m = builder.add("Add", (sides[1], r), parts[0].shape, f"{node.name}/max", deployed_error=0.0)
        if size % 2:
            rest = picks[..., 2 * half :]
            last = builder.add(
                "Select", (current,), rest.shape, f"{node.name}/rest", indices=np.ascontiguousarray(rest)
            )
            m = builder.add("Concat", (m, last), (*rest.shape[:-1], half + 1), f"{node.name}/round", axis=rest.ndim - 1)
        current, size = m, half + size % 2
        picks = np.arange(math.prod(rows.shape[:-1]) * size).reshape(*rows.shape[:-1], size)
    if picks is rows:  # a single element: only the shape changes
        return builder.add("Select", (x,), node.shape, node.name, indices=rows.reshape(node.shape))
    return builder.add("Reshape", (current,), node.shape, node.name)


_LOWERINGS = {"Softmax": _softmax, "ReduceMax": _reduce_max}
