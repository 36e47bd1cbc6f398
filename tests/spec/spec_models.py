"""Small networks and property texts shared by the tests of reading, replay and witnesses."""

from __future__ import annotations

import numpy as np

from verifier.graph.ir import Graph, GraphBuilder


def linear_graph(
    weight: list[list[float]] | np.ndarray, bias: list[float] | None = None, dtype: str = "float32"
) -> Graph:
    """y = x @ weight + bias, with shapes (1, N_in) and (1, N_out)."""
    weight = np.asarray(weight, dtype=dtype)
    builder = GraphBuilder()
    x = builder.add("Input", (), (1, weight.shape[0]), "X")
    shift = np.zeros(weight.shape[1], dtype) if bias is None else np.asarray(bias, dtype)
    y = builder.add("Dense", (x,), (1, weight.shape[1]), "Y", weight=weight, bias=shift)
    return builder.finish((x,), (y,), dtype=dtype)


def relu_graph() -> Graph:
    """h = [x0 + 2 x1, x1 - x0], y = relu(h0) + relu(h1)."""
    builder = GraphBuilder()
    x = builder.add("Input", (), (1, 2), "X")
    h = builder.add("Dense", (x,), (1, 2), "h", weight=np.float32([[1, -1], [2, 1]]), bias=np.zeros(2, np.float32))
    r = builder.add("Relu", (h,), (1, 2), "r")
    y = builder.add("Dense", (r,), (1, 1), "y", weight=np.float32([[1], [1]]), bias=np.zeros(1, np.float32))
    return builder.finish((x,), (y,))


def two_tensor_graph() -> Graph:
    """Inputs A (1, 2) and S (), outputs U = A + S (1, 2) and V = A0 * S (1, 1)."""
    builder = GraphBuilder()
    a = builder.add("Input", (), (1, 2), "A")
    s = builder.add("Input", (), (), "S")
    spread = builder.add("Select", (s,), (1, 2), "spread", indices=np.zeros((1, 2), np.int64))
    u = builder.add("Add", (a, spread), (1, 2), "U")
    first = builder.add("Select", (a,), (1, 1), "first", indices=np.zeros((1, 1), np.int64))
    scalar = builder.add("Reshape", (s,), (1, 1), "scalar")
    v = builder.add("Mul", (first, scalar), (1, 1), "V")
    return builder.finish((a, s), (u, v))


def declare(n_inputs: int, n_outputs: int) -> str:
    """Declarations of a VNN-LIB 1.0 file, one a line."""
    names = [f"X_{i}" for i in range(n_inputs)] + [f"Y_{i}" for i in range(n_outputs)]
    return "".join(f"(declare-const {name} Real)\n" for name in names)


def unit_box(n_inputs: int, low: float = -1.0, high: float = 1.0) -> str:
    """Bounds of every input, VNN-LIB 1.0."""
    return "".join(f"(assert (<= X_{i} {high}))\n(assert (>= X_{i} {low}))\n" for i in range(n_inputs))


def onnx_bytes(dtype: str = "float32", *, free_batch: bool = False) -> bytes:
    """An ONNX file of `relu_graph`: input "in" [N, 2], hidden tensor "hid", output "out"."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    element = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}[dtype]
    batch: int | str = "N" if free_batch else 1
    first = numpy_helper.from_array(np.array([[1, -1], [2, 1]], dtype), "w1")
    second = numpy_helper.from_array(np.array([[1], [1]], dtype), "w2")
    nodes = [
        helper.make_node("MatMul", ["in", "w1"], ["hid"]),
        helper.make_node("Relu", ["hid"], ["act"]),
        helper.make_node("MatMul", ["act", "w2"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("in", element, [batch, 2])],
        [helper.make_tensor_value_info("out", element, [batch, 1])],
        [first, second],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()
