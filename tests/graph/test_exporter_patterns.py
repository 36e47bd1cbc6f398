"""Small networks in the forms that exporters write: read, equal to ONNX Runtime, and soundly bounded."""

from __future__ import annotations

import gzip
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.graph.onnx_models import run_onnx
from tests.graph.test_operator_chains import Chain
from verifier.bounds.torch_engine import TorchEngine
from verifier.graph.evaluate import evaluate
from verifier.graph.load import load_network

RNG = np.random.default_rng(0)


class Net(Chain):
    """A chain with weights, declared inputs and an opset."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list = []
        self.opset = 13
        self.floating = "float32"

    def input(self, name: str, shape: list) -> str:
        kind = TensorProto.DOUBLE if self.floating == "float64" else TensorProto.FLOAT
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def w(self, *shape: int, low: float = -1.0, high: float = 1.0) -> str:
        fan = max(1, int(np.prod(shape[1:]))) if len(shape) > 1 else 4
        return self.const(RNG.uniform(low, high, size=shape) / np.sqrt(fan) * (2 if low < 0 else 1), self.floating)

    def gemm(self, x: str, width: int, out: int) -> str:
        return self.node("Gemm", x, self.w(out, width), self.w(out), transB=1)

    def num(self, value: float) -> str:
        return self.const(value, self.floating)

    def batch_norm(self, x: str, channels: int) -> str:
        c = channels
        return self.node(
            "BatchNormalization", x, self.w(c), self.w(c), self.w(c), self.w(c, low=0.5, high=2.0), epsilon=1e-5
        )

    def layer_norm(self, x: str, width: int) -> str:
        """As torch exported it before opset 17."""
        centered = self.node("Sub", x, self.node("ReduceMean", x, axes=[-1], keepdims=1))
        squares = self.node("Pow", centered, self.num(2.0))
        variance = self.node("Add", self.node("ReduceMean", squares, axes=[-1], keepdims=1), self.num(1e-5))
        scaled = self.node("Div", centered, self.node("Sqrt", variance))
        return self.node("Add", self.node("Mul", scaled, self.w(width)), self.w(width))

    def gelu(self, x: str) -> str:
        inner = self.node("Erf", self.node("Div", x, self.num(np.sqrt(2.0))))
        return self.node("Mul", self.node("Mul", x, self.node("Add", inner, self.num(1.0))), self.num(0.5))


def control_network(n: Net) -> str:
    """ACAS-like: [1,1,1,5], subtract the mean, Flatten, MatMul and Add apart."""
    x = n.node("Flatten", n.node("Sub", n.input("input", [1, 1, 1, 5]), n.w(1, 1, 1, 5)))
    for _ in range(2):
        x = n.node("Relu", n.node("Add", n.node("MatMul", x, n.w(5, 5)), n.w(5)))
    return n.node("MatMul", x, n.w(5, 3))


def no_batch_axis(n: Net) -> str:
    """A vector in, weights on the left."""
    h = n.node("Relu", n.node("Add", n.node("MatMul", n.w(6, 4), n.input("x", [4])), n.w(6)))
    return n.node("MatMul", n.w(2, 6), h)


def unknown_batch(n: Net) -> str:
    return n.gemm(n.node("Relu", n.gemm(n.input("x", ["batch", 4]), 4, 6)), 6, 2)


def batch_zero(n: Net) -> str:
    """Some exporters write -1 for the batch axis."""
    return n.gemm(n.node("Sigmoid", n.gemm(n.input("x", [-1, 4]), 4, 6)), 6, 2)


def double_network(n: Net) -> str:
    n.floating = "float64"
    return n.gemm(n.node("Tanh", n.gemm(n.input("x", [1, 4]), 4, 6)), 6, 2)


def double_input_float_network(n: Net) -> str:
    n.inputs.append(helper.make_tensor_value_info("x", TensorProto.DOUBLE, [1, 4]))
    return n.gemm(n.node("Relu", n.gemm(n.node("Cast", "x", to=TensorProto.FLOAT), 4, 6)), 6, 2)


def residual_image_network(n: Net) -> str:
    """Conv, BatchNormalization and shortcuts with a 1x1 convolution, global average, Flatten."""
    x = n.node("Conv", n.input("input.1", [1, 3, 8, 8]), n.w(4, 3, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2])
    x = n.node("Relu", n.batch_norm(x, 4))
    y = n.node("Relu", n.batch_norm(n.node("Conv", x, n.w(4, 4, 3, 3), n.w(4), pads=[1, 1, 1, 1]), 4))
    y = n.batch_norm(n.node("Conv", y, n.w(4, 4, 3, 3), pads=[1, 1, 1, 1]), 4)
    short = n.batch_norm(n.node("Conv", x, n.w(4, 4, 1, 1)), 4)
    x = n.node("Relu", n.node("Add", y, short))
    return n.gemm(n.node("Flatten", n.node("GlobalAveragePool", x)), 4, 3)


def vgg_like(n: Net) -> str:
    x = n.input("x", [1, 3, 8, 8])
    for channels, out in ((3, 4), (4, 6)):
        x = n.node("Relu", n.node("Conv", x, n.w(out, channels, 3, 3), n.w(out), pads=[1, 1, 1, 1]))
        x = n.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = n.node("AveragePool", x, kernel_shape=[1, 1], strides=[1, 1])
    x = n.node("Reshape", x, n.const([-1, 24]))
    x = n.node("Dropout", n.node("Relu", n.gemm(x, 24, 8)))
    return n.gemm(x, 8, 3)


def generator_and_discriminator(n: Net) -> str:
    """Gemm, Reshape, ConvTranspose, Upsample, Tanh, then convolutions and Sigmoid."""
    n.opset = 11
    x = n.node("Reshape", n.gemm(n.input("z", [1, 5]), 5, 16), n.const([-1, 4, 2, 2]))
    x = n.node("Relu", n.batch_norm(n.node("ConvTranspose", x, n.w(4, 3, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1]), 3))
    x = n.node("Resize", x, n.const([], "float32"), n.const([1, 1, 2, 2], "float32"), mode="nearest",
               coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
    x = n.node("Tanh", n.node("Conv", x, n.w(1, 3, 3, 3), n.w(1), pads=[1, 1, 1, 1]))
    x = n.node("LeakyRelu", n.node("Conv", x, n.w(2, 1, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1]), alpha=0.2)
    return n.node("Sigmoid", n.gemm(n.node("Flatten", x), 32, 1))


def vision_transformer(n: Net) -> str:
    """Patches by a convolution, a class token through Expand, positions, attention by hand, LayerNorm in pieces."""
    x = n.node("Conv", n.input("x", [1, 1, 4, 8]), n.w(4, 1, 4, 4), n.w(4), strides=[4, 4])
    x = n.node("Transpose", n.node("Reshape", x, n.const([1, 4, -1])), perm=[0, 2, 1])
    token = n.node("Expand", n.w(1, 1, 4), n.const([1, 1, 1]))
    x = n.node("Add", n.node("Concat", token, x, axis=1), n.w(1, 3, 4))
    y = n.layer_norm(x, 4)
    parts = []
    for _ in range(3):
        head = n.node("Reshape", n.node("Add", n.node("MatMul", y, n.w(4, 4)), n.w(4)), n.const([1, 3, 2, 2]))
        parts.append(n.node("Transpose", head, perm=[0, 2, 1, 3]))
    scores = n.node("MatMul", parts[0], n.node("Transpose", parts[1], perm=[0, 1, 3, 2]))
    weights = n.node("Softmax", n.node("Div", scores, n.num(np.sqrt(2.0))), axis=-1)
    y = n.node("Transpose", n.node("MatMul", weights, parts[2]), perm=[0, 2, 1, 3])
    y = n.node("Add", x, n.node("MatMul", n.node("Reshape", y, n.const([1, 3, 4])), n.w(4, 4)))
    hidden = n.gelu(n.node("Add", n.node("MatMul", n.layer_norm(y, 4), n.w(4, 6)), n.w(6)))
    y = n.node("Add", y, n.node("MatMul", hidden, n.w(6, 4)))
    return n.gemm(n.node("Gather", y, n.const(0), axis=1), 4, 3)


def two_inputs(n: Net) -> str:
    """A state and an action, joined."""
    joined = n.node("Concat", n.input("state", [1, 3]), n.input("action", [1, 1]), axis=1)
    return n.gemm(n.node("Relu", n.gemm(joined, 4, 6)), 6, 1)


def learned_index(n: Net) -> str:
    """Split, Gather and ScatterND around small networks; differences of two copies."""
    x = n.input("x", [1, 6])
    n.node("Split", x, n.const([3, 3]), outputs=2, axis=1)
    first, second = (f"t{len(n.nodes) - 1}_{i}" for i in (0, 1))
    weight, bias = n.w(2, 3), n.w(2)
    a, b = (n.node("Relu", n.node("Gemm", part, weight, bias, transB=1)) for part in (first, second))
    picked = n.node("Gather", x, n.const([4, 0]), axis=1)
    placed = n.node("ScatterND", n.const(np.zeros((1, 4)), "float32"), n.const([[[0, 3], [0, 1]]]), picked)
    return n.node("Concat", n.node("Sub", a, b), placed, axis=1)


def power_flow(n: Net) -> str:
    """Sin, Cos, Pow, Slice, Div over voltages and angles that a network predicts."""
    y = n.node("Sigmoid", n.gemm(n.node("Relu", n.gemm(n.input("load", [1, 4]), 4, 6)), 6, 4))
    size = n.node("Add", n.node("Slice", y, n.const([0]), n.const([2]), n.const([1])), n.num(0.5))
    angle = n.node("Slice", y, n.const([2]), n.const([4]), n.const([1]))
    swing = n.node("Add", n.node("Mul", n.node("Cos", angle), n.w(1, 2)), n.node("Sin", angle))
    flow = n.node("Div", n.node("Mul", n.node("Pow", size, n.num(2.0)), swing), n.num(1.7))
    return n.node("Concat", flow, n.node("Div", flow, size), n.node("Neg", angle), axis=1)


def lattice(n: Net) -> str:
    """Minima over groups, then the maximum (two-level lattice)."""
    x = n.gemm(n.input("x", [1, 2]), 2, 12)
    x = n.node("Reshape", x, n.const([1, 3, 4]))
    return n.node("ReduceMax", n.node("ReduceMin", x, axes=[2], keepdims=0), axes=[1], keepdims=1)


def minimum_by_relu(n: Net) -> str:
    """min(a, b) = a - relu(a - b) written out, with Min, Max, Clip and Abs beside it."""
    x = n.input("x", [1, 4])
    a, b = n.gemm(x, 4, 3), n.gemm(x, 4, 3)
    by_relu = n.node("Sub", a, n.node("Relu", n.node("Sub", a, b)))
    other = n.node("Clip", n.node("Max", a, b), n.num(-0.5), n.num(0.7))
    return n.node("Concat", by_relu, other, n.node("Min", n.node("Abs", a), b), axis=1)


def detector(n: Net) -> str:
    """LeakyRelu, a strided convolution, a slice of channels joined back, a linear head."""
    x = n.node("LeakyRelu", n.node("Conv", n.input("image", [1, 3, 8, 8]), n.w(4, 3, 3, 3), n.w(4),
                                   pads=[1, 1, 1, 1], strides=[2, 2]), alpha=0.1)  # fmt: skip
    half = n.node("Slice", x, n.const([2]), n.const([4]), n.const([1]))
    y = n.node("LeakyRelu", n.node("Conv", half, n.w(2, 2, 3, 3), n.w(2), auto_pad="SAME_UPPER"), alpha=0.1)
    x = n.node("Concat", x, y, axis=1)
    x = n.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    return n.node("Conv", x, n.w(5, 6, 1, 1), n.w(5))


def binarised(n: Net) -> str:
    """Sign activations, batch norm and max pooling, channels last at the input."""
    x = n.node("Transpose", n.input("x", [1, 6, 6, 1]), perm=[0, 3, 1, 2])
    x = n.node("MaxPool", n.node("Conv", x, n.w(3, 1, 3, 3)), kernel_shape=[2, 2], strides=[2, 2])
    x = n.node("Sign", n.batch_norm(x, 3))
    x = n.node("Add", x, n.num(0.1))
    x = n.node("Transpose", x, perm=[0, 2, 3, 1])
    return n.gemm(n.node("Reshape", x, n.const([1, -1])), 12, 4)


def closed_loop(n: Net) -> str:
    """Controller, dynamics and value function in one graph: residual updates and products."""
    x = n.input("state", [1, 3])
    u = n.node("Clip", n.gemm(n.node("Tanh", n.gemm(x, 3, 5)), 5, 1), n.num(-1.0), n.num(1.0))
    step = n.node("Concat", n.node("Mul", u, n.node("Slice", x, n.const([0]), n.const([1]), n.const([1]))),
                  n.node("Sin", n.node("Slice", x, n.const([1]), n.const([2]), n.const([1]))), u, axis=1)  # fmt: skip
    after = n.node("Add", x, n.node("Mul", step, n.num(0.05)))
    weight = n.w(3, 3)
    values = []
    for state in (x, after):
        h = n.node("Relu", n.node("MatMul", state, weight))
        values.append(n.node("ReduceSum", h, n.const([1]), keepdims=1))
    return n.node("Concat", *values, n.node("Sub", values[1], values[0]), axis=1)


def probabilities(n: Net) -> str:
    x = n.gemm(n.node("Softplus", n.gemm(n.input("x", [1, 4]), 4, 5)), 5, 3)
    return n.node("Concat", n.node("Softmax", x, axis=1), n.node("LogSoftmax", x, axis=1), axis=1)


def time_series(n: Net) -> str:
    """1d convolutions over [1, features, time]."""
    n.opset = 9
    x = n.node("Relu", n.node("Conv", n.input("x", [1, 3, 10]), n.w(4, 3, 3), n.w(4), pads=[1, 1]))
    x = n.node("MaxPool", x, kernel_shape=[2], strides=[2])
    return n.gemm(n.node("Flatten", x, axis=1), 20, 2)


PATTERNS = [
    control_network, no_batch_axis, unknown_batch, batch_zero, double_network, double_input_float_network,
    residual_image_network, vgg_like, generator_and_discriminator, vision_transformer, two_inputs, learned_index,
    power_flow, lattice, minimum_by_relu, detector, binarised, closed_loop, probabilities, time_series,
]  # fmt: skip


def model_of(build: Callable[[Net], str]) -> onnx.ModelProto:
    net = Net()
    result = build(net)
    outputs = [onnx.ValueInfoProto(name=result)]
    graph = helper.make_graph(net.nodes, build.__name__, net.inputs, outputs, net.initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", net.opset)], ir_version=8)


def feeds_of(model: onnx.ModelProto, x: np.ndarray) -> dict[str, np.ndarray]:
    feeds, at = {}, 0
    for info in model.graph.input:
        kind = info.type.tensor_type
        shape = [max(d.dim_value, 1) for d in kind.shape.dim]
        size = int(np.prod(shape))
        dtype = np.float64 if kind.elem_type == TensorProto.DOUBLE else np.float32
        feeds[info.name] = x[at : at + size].reshape(shape).astype(dtype)
        at += size
    return feeds


@pytest.mark.parametrize("build", PATTERNS, ids=lambda build: build.__name__)
def test_pattern(build: Callable[[Net], str], tmp_path) -> None:
    model = model_of(build)
    path = tmp_path / "net.onnx.gz"
    path.write_bytes(gzip.compress(model.SerializeToString()))
    graph = load_network(path)
    rng = np.random.default_rng(1)
    center = rng.uniform(-0.5, 0.5, graph.input_size).astype(graph.dtype).astype(np.float64)
    lower, upper = ((center + s).astype(graph.dtype).astype(np.float64) for s in (-0.05, 0.05))
    points = np.clip(rng.uniform(lower, upper, (30, center.size)).astype(graph.dtype), lower, upper)
    theirs = np.array([run_onnx(model, feeds_of(model, x)) for x in points])
    size = max(1.0, float(np.abs(theirs).max()))
    np.testing.assert_allclose(evaluate(graph, points), theirs, rtol=0, atol=1e-5 * size)
    unit = np.eye(graph.output_size)
    low, high = np.split(
        TorchEngine(graph).bound_boxes(lower[None], upper[None], np.concatenate([unit, -unit])).lower[0], 2
    )
    assert np.isfinite(low).all() and np.isfinite(high).all()
    assert (theirs >= low).all() and (theirs <= -high).all()


def test_weights_in_another_file(tmp_path) -> None:
    """As files above 2 GB must be; the data may be shared and start anywhere."""
    model = model_of(vgg_like)
    path = tmp_path / "big.onnx"
    onnx.save(onnx.ModelProto.FromString(model.SerializeToString()), path, save_as_external_data=True,
              location="weights.bin", size_threshold=64)  # fmt: skip
    assert (tmp_path / "weights.bin").stat().st_size > 1000
    x = np.random.default_rng(0).uniform(-1, 1, 192).astype(np.float32)
    theirs = run_onnx(model, feeds_of(model, x))
    np.testing.assert_allclose(evaluate(load_network(path), x)[0], theirs, atol=1e-5)
    from verifier.spec.replay import Replay

    assert np.array_equal(Replay(path).run(x), Replay(model.SerializeToString()).run(x))


def test_weights_listed_as_inputs() -> None:
    """Files of IR version 3 list every initializer as an input, too."""
    from verifier.graph.onnx.importer import import_onnx

    model = model_of(unknown_batch)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    graph = import_onnx(model.SerializeToString())
    assert graph.input_names == ("x",) and graph.input_size == 4


def test_weights_as_constant_nodes_behind_identities() -> None:
    from verifier.graph.onnx.importer import import_onnx

    model = model_of(control_network)
    plain = import_onnx(model.SerializeToString())
    nodes = []
    for tensor in model.graph.initializer:
        value = numpy_helper.from_array(numpy_helper.to_array(tensor), "v")
        nodes += [helper.make_node("Constant", [], [f"{tensor.name}_0"], value=value),
                  helper.make_node("Identity", [f"{tensor.name}_0"], [tensor.name])]  # fmt: skip
    nodes += list(model.graph.node)
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    x = np.random.default_rng(0).uniform(-1, 1, 5)
    assert np.array_equal(evaluate(import_onnx(model.SerializeToString()), x), evaluate(plain, x))
