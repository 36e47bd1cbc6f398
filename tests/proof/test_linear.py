"""The checker's own matrices against plain evaluation."""

import numpy as np
import pytest

from tests.tighten.test_linear_maps import AFFINE_CASES, one_node
from verifier.errors import UnsupportedOperator
from verifier.graph.evaluate import evaluate, evaluate_all
from verifier.graph.ir import GraphBuilder
from verifier.proof.linear import matrices, offset
from verifier.proof.program import Program, image, product

RNG = np.random.default_rng(3)


@pytest.mark.parametrize("case", AFFINE_CASES)
def test_matrices_equal_evaluation(case):
    graph = one_node(*AFFINE_CASES[case])
    (matrix,) = matrices(graph, graph["y"])
    x = RNG.normal(size=(4, graph.input_size))
    assert np.allclose(image(matrix, x) + offset(graph["y"]), evaluate(graph, x), rtol=0, atol=1e-12)
    rows = RNG.normal(size=(2, graph.output_size))
    assert np.allclose(product(rows, matrix) @ x.T, rows @ image(matrix, x).T, rtol=0, atol=1e-12)


def test_nodes_with_several_inputs_and_moves():
    builder = GraphBuilder()
    builder.add("Input", (), (2, 3), "x")
    builder.add("Constant", (), (2, 3), "k", value=RNG.normal(size=(2, 3)))
    builder.add("Sub", ("x", "k"), (2, 3), "minus")
    builder.add("Add", ("x", "minus"), (2, 3), "plus")
    builder.add("Transpose", ("plus",), (3, 2), "t", perm=(1, 0))
    builder.add("Reshape", ("t",), (1, 6), "r")
    builder.add("Select", ("r",), (1, 3), "s", indices=np.array([[4, -1, 0]]))
    builder.add("Concat", ("r", "s"), (1, 9), "c", axis=1)
    graph = builder.finish(("x",), ("c",))
    values = {k: v.reshape(1, -1) for k, v in evaluate_all(graph, RNG.normal(size=6)).items()}
    for name in ("k", "minus", "plus", "t", "r", "s", "c"):
        node = graph[name]
        found = offset(node) + sum(image(m, values[i]) for i, m in zip(node.inputs, matrices(graph, node), strict=True))
        assert np.allclose(found, values[name], rtol=0, atol=1e-12), name


def test_only_what_is_covered_is_taken():
    builder = GraphBuilder()
    builder.add("Input", (), (1, 3), "x")
    builder.add("Softmax", ("x",), (1, 3), "y", axis=-1)
    with pytest.raises(UnsupportedOperator, match="proofs cover"):
        Program(builder.finish(("x",), ("y",)), rounded=True)
