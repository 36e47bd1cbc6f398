"""ONNX files node by node, the way exporters lay them out, with weights rounded to few decimals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

#: Decimals kept of every trained number: files stay small and survive small differences in training.
DECIMALS = 4


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 values with DECIMALS decimals."""
    return np.round(np.asarray(values, dtype=np.float64), DECIMALS).astype(np.float32)


class OnnxWriter:
    """Collects nodes and constants; every method returns the name of the tensor it makes."""

    def __init__(self, name: str, input_shape: Sequence[int], opset: int):
        self._name, self._opset = name, opset
        self._input_shape = list(input_shape)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self.last = "input"

    def constant(self, values: np.ndarray, stem: str) -> str:
        """Store an array under a fresh name; floating-point values are rounded."""
        values = np.asarray(values)
        name = f"{stem}_{len(self._constants)}"
        array = rounded(values) if values.dtype.kind == "f" else values.astype(np.int64)
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append one node; without inputs it reads the last tensor made."""
        name = f"{op.lower()}_{len(self._nodes)}"
        node = helper.make_node(op, list(inputs) or [self.last], [name], name=name, **attributes)
        self._nodes.append(node)
        self.last = name
        return name

    def has(self, op: str) -> bool:
        """True when a node of this operator was added."""
        return any(node.op_type == op for node in self._nodes)

    def gemm(self, weight: np.ndarray, bias: np.ndarray) -> str:
        """A dense layer on the last tensor; weight [out, in] as torch stores it."""
        return self.add("Gemm", self.last, self.constant(weight, "weight"), self.constant(bias, "bias"), transB=1)

    def affine(self, weight: np.ndarray, bias: np.ndarray, source: str | None = None) -> str:
        """MatMul and Add on the last axis, as exporters write dense layers on token sequences."""
        product = self.add("MatMul", source or self.last, self.constant(weight.T, "weight"))
        return self.add("Add", product, self.constant(bias, "bias"))

    def conv(self, weight: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> str:
        """A 2d convolution of the last tensor; weight [out, in, k, k]."""
        names = self.constant(weight, "weight"), self.constant(bias, "bias")
        return self.add(
            "Conv", self.last, *names, kernel_shape=list(weight.shape[2:]), strides=[stride] * 2, pads=[padding] * 4
        )

    def batch_norm(self, scale: np.ndarray, shift: np.ndarray, mean: np.ndarray, var: np.ndarray) -> str:
        """Batch normalisation with fixed statistics."""
        names = [self.constant(v, n) for v, n in ((scale, "scale"), (shift, "shift"), (mean, "mean"), (var, "var"))]
        return self.add("BatchNormalization", self.last, *names, epsilon=1e-5)

    def save(self, path: Path, outputs: int) -> None:
        """Check the model and write it; the last tensor made is the output [1, outputs]."""
        graph = helper.make_graph(
            self._nodes,
            self._name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, self._input_shape)],
            [helper.make_tensor_value_info(self.last, TensorProto.FLOAT, [1, outputs])],
            self._constants,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self._opset)], ir_version=8, producer_name="verifier-specs"
        )
        onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString(deterministic=True))
