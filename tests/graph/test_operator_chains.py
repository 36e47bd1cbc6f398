"""Operators that only make sense in company: shape arithmetic, constants, conditions, casts."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.graph.onnx_models import run_onnx, variable, whole_model
from verifier.graph.evaluate import evaluate
from verifier.graph.onnx.importer import import_onnx
from verifier.graph.passes import simplify


class Chain:
    """A model under construction: `chain.Op(inputs..., attr=...)` appends a node and returns its output's name."""

    def __init__(self) -> None:
        self.nodes: list = []
        self.initializers: list = []

    def const(self, value: object, dtype: str = "int64") -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.array(value, dtype=dtype), name))
        return name

    def node(self, op: str, *inputs: str, outputs: int = 1, **attrs: object) -> str:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attrs))
        return names[0]


def shape_arithmetic(c: Chain) -> str:
    """What torch exports for x.view(x.size(0), -1): Shape, Gather, Unsqueeze, Concat, Reshape."""
    batch = c.node("Gather", c.node("Shape", "x"), c.const(0), axis=0)
    target = c.node("Concat", c.node("Unsqueeze", batch, c.const([0])), c.const([-1]), axis=0)
    return c.node("Reshape", "x", target)


def shape_slice_and_size(c: Chain) -> str:
    tail = c.node("Slice", c.node("Shape", "x"), c.const([1]), c.const([9]))
    total = c.node("Reshape", c.node("ReduceProd", tail, keepdims=0), c.const([1]))
    size = c.node("Div", c.node("Size", "x"), c.const(12))
    return c.node("Reshape", "x", c.node("Concat", c.node("Reshape", size, c.const([1])), total, axis=0))


def shape_start_end(c: Chain) -> str:
    return c.node("Reshape", "x", c.node("Concat", c.node("Shape", "x", start=1), c.const([1]), axis=0))


def constant_of_shape(c: Chain) -> str:
    fill = helper.make_tensor("v", TensorProto.FLOAT, [1], [0.75])
    filled = c.node("ConstantOfShape", c.node("Shape", "x"), value=fill)
    return c.node("Mul", "x", c.node("Add", filled, c.node("ConstantOfShape", c.const([4]))))


def ranges(c: Chain) -> str:
    steps = c.node("Cast", c.node("Range", c.const(0), c.const(8), c.const(2)), to=TensorProto.FLOAT)
    return c.node("Add", "x", steps)


def one_hot_and_eye(c: Chain) -> str:
    hot = c.node("OneHot", c.const([2, 0]), c.const(4), c.const([0.0, 1.0], "float32"))
    eye = c.node("EyeLike", c.const(np.zeros((4, 4)), "float32"), k=1)
    return c.node("Add", c.node("MatMul", hot, eye), c.node("ReduceSum", "x", c.const([1]), keepdims=0))


def expand_like(c: Chain) -> str:
    return c.node("Add", "x", c.node("Expand", c.const([[0.5]], "float32"), c.node("Shape", "x")))


def equal_where(c: Chain) -> str:
    """Expand as torch exports it: Equal and Where choose the target's dimensions."""
    wanted = c.const([-1, 3, -1])
    minus = c.node(
        "Mul", c.node("ConstantOfShape", c.const([3]), value=helper.make_tensor("v", 7, [1], [1])), c.const(-1)
    )
    ones = c.node("ConstantOfShape", c.const([3]), value=helper.make_tensor("v", 7, [1], [1]))
    return c.node("Expand", "x", c.node("Where", c.node("Equal", wanted, minus), ones, wanted))


def non_zero_gather(c: Chain) -> str:
    where = c.node("Squeeze", c.node("NonZero", c.const([0, 1, 0, 1])), c.const([0]))
    return c.node("Gather", "x", where, axis=2)


def variable_conditions(c: Chain) -> str:
    """and, or, not over comparisons of the input, then a choice between two functions of it."""
    above, below = c.node("Greater", "x", c.const(-0.4, "float32")), c.node("Less", "x", c.const(0.6, "float32"))
    both, neither = c.node("And", above, below), c.node("Not", c.node("Or", above, below))
    return c.node("Where", c.node("Or", both, neither), c.node("Neg", "x"), c.node("Mul", "x", "x"))


def constant_logic(c: Chain) -> str:
    left, right = c.const([True, True, False, False], "bool"), c.const([True, False, True, False], "bool")
    mixed = c.node("Xor", c.node("And", left, right), c.node("Or", c.node("Not", left), right))
    return c.node("Where", mixed, "x", c.const(0.25, "float32"))


def casts(c: Chain) -> str:
    step = c.node("Cast", c.node("GreaterOrEqual", "x", c.const(0.1, "float32")), to=TensorProto.FLOAT)
    same = c.node("CastLike", c.const([1, 2, 3, 4]), "x")
    return c.node("Mul", c.node("Add", step, same), "x")


def mod_constant(c: Chain) -> str:
    return c.node("Gather", "x", c.node("Mod", c.const([7, 5]), c.const(4)), axis=2)


def split_and_rejoin(c: Chain) -> str:
    first = c.node("Split", "x", outputs=2, axis=2, num_outputs=2)
    return c.node("Concat", first.replace("_0", "_1"), first, axis=-1)


def constants_as_nodes(c: Chain) -> str:
    total = c.node("Add", "x", c.node("Constant", value_float=0.5))
    total = c.node("Mul", total, c.node("Constant", value_floats=[1.0, 2.0, 3.0, 4.0]))
    shape = c.node("Concat", c.node("Constant", value_ints=[1, 2]), c.const([6]), axis=0)
    return c.node("Reshape", total, shape)


def scatter_in_place(c: Chain) -> str:
    """x[..., 1] = relu(x[..., 1]) as exporters write it."""
    column = c.node("Relu", c.node("Gather", "x", c.const(1), axis=2))
    index = c.const([[[0, i, 1]] for i in range(3)]).replace("c", "c")
    updates = c.node("Reshape", column, c.const([3, 1]))
    return c.node("ScatterND", "x", index, updates)


def predicted_class_is(c: Chain) -> str:
    """1 where the class with the largest score is 2: a property stated inside the model."""
    scores = c.node("Reshape", "x", c.const([1, 12]))
    winner = c.node("ArgMax", scores, axis=1, keepdims=1)
    return c.node("Cast", c.node("Equal", winner, c.const(2)), to=TensorProto.FLOAT)


BUILDERS = [
    shape_arithmetic, shape_slice_and_size, shape_start_end, constant_of_shape, ranges, one_hot_and_eye, expand_like,
    equal_where, non_zero_gather, variable_conditions, constant_logic, casts, mod_constant, split_and_rejoin,
    constants_as_nodes, scatter_in_place, predicted_class_is,
]  # fmt: skip


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_chain_agrees_with_onnx_runtime(build) -> None:
    chain = Chain()
    result = build(chain)
    model = whole_model(chain.nodes, [variable("x", 1, 3, 4)], [result], chain.initializers)
    graph = simplify(import_onnx(model.SerializeToString(), source=build.__name__))
    rng = np.random.default_rng(5)
    for _ in range(20):
        x = rng.uniform(-1.5, 1.5, size=(1, 3, 4)).astype(np.float32)
        expected = run_onnx(model, {"x": x})
        np.testing.assert_allclose(evaluate(graph, x.reshape(-1))[0], expected, rtol=0, atol=2e-6)


def operators_of_chains() -> set[str]:
    """Operators that the chains use."""
    found = set()
    for build in BUILDERS:
        chain = Chain()
        build(chain)
        found |= {node.op_type for node in chain.nodes}
    return found
