"""Networks and forged proofs for the checker's tests."""

from __future__ import annotations

import numpy as np

from verifier.graph.ir import Graph, GraphBuilder
from verifier.outcome import Soundness
from verifier.proof.format import Proof, Tree
from verifier.spec.problem import Case, Clause, Problem, lp_ball
from verifier.spec.query import query_of


def mixed_net(seed: int = 0, middle: str = "LeakyRelu") -> Graph:
    """Convolutions, a sum around one, relus and another function, moves and dense layers: 16 inputs, 3 outputs."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32) / np.sqrt(np.prod(shape[1:]))

    same = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "groups": 1}
    builder = GraphBuilder()
    builder.add("Input", (), (1, 1, 4, 4), "x")
    builder.add("Conv", ("x",), (1, 2, 4, 4), "c0", weight=normal(2, 1, 3, 3), bias=normal(2, 1)[:, 0], **same)
    builder.add("Relu", ("c0",), (1, 2, 4, 4), "r0")
    builder.add("Conv", ("r0",), (1, 2, 4, 4), "c1", weight=normal(2, 2, 3, 3), bias=normal(2, 1)[:, 0], **same)
    builder.add("Add", ("c0", "c1"), (1, 2, 4, 4), "sum")
    if middle == "ReduceMax":  # over windows that overlap
        windows = np.array([[(k + 3 * j) % 32 for j in range(4)] for k in range(32)])
        builder.add("Select", ("sum",), (1, 32, 4), "windows", indices=windows[None])
        builder.add("ReduceMax", ("windows",), (1, 32), "largest", axes=(2,), keepdims=False)
        builder.add("Reshape", ("largest",), (1, 2, 4, 4), "r1")
    else:
        builder.add(middle, ("sum",), (1, 2, 4, 4), "r1", **({"alpha": 0.1} if middle == "LeakyRelu" else {}))
    builder.add("Transpose", ("r1",), (1, 4, 4, 2), "moved", perm=(0, 2, 3, 1))
    builder.add("Reshape", ("moved",), (1, 32), "flat")
    builder.add("Dense", ("flat",), (1, 8), "d0", weight=normal(32, 8), bias=normal(8, 1)[:, 0])
    builder.add("Relu", ("d0",), (1, 8), "r2")
    builder.add("Dense", ("r2",), (1, 3), "y", weight=normal(8, 3), bias=normal(3, 1)[:, 0])
    return builder.finish(("x",), ("y",))


def asking(graph: Graph, radius: float, limit: float, rows=((1.0, -1.0, 0.0),)):
    """A query: some input within `radius` of the middle has rows @ y <= limit, each row a clause."""
    inputs = lp_ball(np.full(graph.input_size, 0.5), radius)
    clauses = tuple(Clause(np.array([row]), np.array([limit]), np.array([False])) for row in rows)
    return query_of(graph, Problem((Case(inputs, clauses),), graph.output_size))


def leaf(clauses=(0,), case=0) -> Tree:
    """A tree that is a leaf with default slopes."""
    one, none = np.zeros(1), np.zeros(0)
    return Tree(
        case,
        np.array(clauses, np.int32),
        one.astype(np.uint8),
        one.astype(np.int32),
        one,
        leaf=np.array([-1], np.int32),
        multipliers=none.astype(np.float32),
    )


def proof_of(*trees: Tree, rows=()) -> Proof:
    """A proof with these trees, of files that do not exist."""
    return Proof(("",), "", Soundness.IEEE_FLOAT, trees, tuple(rows))
