"""Damaged and impossible network files: one clear error, never a traceback of our own making."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.graph.onnx_models import variable, whole_model
from tests.graph.test_exporter_patterns import model_of, vgg_like
from verifier.errors import VerifierError
from verifier.graph.load import load_network
from verifier.graph.onnx.importer import import_onnx

DATA = model_of(vgg_like).SerializeToString()


def array(name, value, dtype="float32"):
    return numpy_helper.from_array(np.asarray(value, dtype=dtype), name)


def model(nodes, outputs=("y",), initializers=(), inputs=None):
    return whole_model(nodes, inputs or [variable("x", 1, 3)], outputs, initializers)


def node(op, inputs, outputs, **attrs):
    return helper.make_node(op, inputs, outputs, **attrs)


WRONG_TYPE = helper.make_tensor_value_info("x", TensorProto.INT64, [1, 3])
NO_RANK = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
BAD = {
    "cycle": (model([node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Neg", ["b"], ["y"])]), "'b'"),
    "dangling input": (model([node("Add", ["x", "ghost"], ["y"])]), "ghost"),
    "missing initializer": (model([node("MatMul", ["x", "w"], ["y"])]), "'w'"),
    "missing output": (model([node("Relu", ["x"], ["z"])]), "'y'"),
    "NaN weight": (model([node("Add", ["x", "w"], ["y"])], initializers=[array("w", [1, np.nan, 2])]), "NaN"),
    "infinite weight": (model([node("Mul", ["x", "w"], ["y"])], initializers=[array("w", [1, np.inf, 2])]), "infinite"),
    "integer input": (model([node("Identity", ["x"], ["y"])], inputs=[WRONG_TYPE]), "int64"),
    "unknown rank": (model([node("Relu", ["x"], ["y"])], inputs=[NO_RANK]), "axes"),
    "shapes that do not fit": (
        model([node("MatMul", ["x", "w"], ["y"])], initializers=[array("w", np.ones((4, 2)))]), "does not fit"),
    "shapes that do not broadcast": (
        model([node("Add", ["x", "w"], ["y"])], initializers=[array("w", np.ones(4))]), "broadcast"),
    "impossible reshape": (
        model([node("Reshape", ["x", "s"], ["y"])], initializers=[array("s", [2, 2], "int64")]), "cannot become"),
    "index out of range": (
        model([node("Gather", ["x", "i"], ["y"], axis=1)], initializers=[array("i", [7], "int64")]), "range"),
    "unknown operator": (model([node("Relux", ["x"], ["y"], name="the_node")]), "Relux at node 'the_node'"),
    "other domain": (model([node("Relu", ["x"], ["y"], domain="com.acme")]), "com.acme"),
    "shape from the input": (model([node("Reshape", ["x", "x"], ["y"])]), "constant"),
    "too few inputs": (model([node("Gemm", ["x"], ["y"])]), "Gemm"),
    "kernel larger than the image": (
        model([node("Conv", ["x", "w"], ["y"])], inputs=[variable("x", 1, 1, 2, 2)],
              initializers=[array("w", np.ones((1, 1, 3, 3)))]), "larger"),
    "division by zero": (model([node("Div", ["x", "w"], ["y"])], initializers=[array("w", [1, 0, 2])]), "0"),
    "no inputs": (model([node("Relu", ["w"], ["y"])], inputs=None, initializers=[array("w", [1]), array("x", [1])]),
                  "no inputs"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_model_is_named(name):
    bad, word = BAD[name]
    with pytest.raises(VerifierError) as error:
        import_onnx(bad.SerializeToString(), source=name)
    assert word in str(error.value), str(error.value)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(DATA) - 1))
def test_truncated_files(length):
    try:
        import_onnx(DATA[:length], source="cut")
    except VerifierError as error:
        assert str(error)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_flipped_bytes(seed):
    rng = np.random.default_rng(seed)
    data = bytearray(DATA)
    for at in rng.integers(0, len(data), size=rng.integers(1, 6)):
        data[at] = rng.integers(0, 256)
    try:
        import_onnx(bytes(data), source="flipped")
    except VerifierError as error:
        assert str(error)


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08broken", b"\x08\x07", b"<html>", bytes(1000)])
def test_files_that_are_no_networks(tmp_path, content):
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(VerifierError, match=r"net\.onnx"):
        load_network(tmp_path / "net.onnx")


def test_missing_weight_file(tmp_path):
    onnx.save(onnx.ModelProto.FromString(DATA), tmp_path / "net.onnx", save_as_external_data=True,
              location="weights.bin", size_threshold=64)  # fmt: skip
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(VerifierError, match=r"weights\.bin"):
        load_network(tmp_path / "net.onnx")
