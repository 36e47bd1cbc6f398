"""Builds one-operator ONNX models and runs them in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

ELEMENT = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}


@dataclass(frozen=True)
class Var:
    """A network input: its shape, the range it is drawn from, and dimensions declared unknown."""

    shape: tuple[int, ...]
    low: float = -1.5
    high: float = 1.5
    dtype: str = "float32"
    symbolic: tuple[int, ...] = ()


def weights(*shape: int, seed: int = 0, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """Reproducible float32 weights."""
    return np.random.default_rng(seed + sum(shape)).uniform(low, high, size=shape).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """One operator with its operands: Var, array (a constant) or None (an omitted input)."""

    op: str
    operands: Sequence[Var | np.ndarray | None]
    opset: int = 18
    outputs: int = 1
    attrs: dict[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def name(self) -> str:
        """Test id."""
        return f"{self.op}-{self.label or self.opset}"


def model_of(case: Case) -> onnx.ModelProto:
    """The case as a model with that one node."""
    inputs, initializers, names = [], [], []
    for index, operand in enumerate(case.operands):
        name = f"in{index}"
        if operand is None:
            names.append("")
            continue
        names.append(name)
        if isinstance(operand, Var):
            shape = [f"d{i}" if i in operand.symbolic else d for i, d in enumerate(operand.shape)]
            inputs.append(helper.make_tensor_value_info(name, ELEMENT[operand.dtype], shape))
        else:
            initializers.append(numpy_helper.from_array(np.asarray(operand), name))
    results = [f"out{i}" for i in range(case.outputs)]
    node = helper.make_node(case.op, names, results, name="the_node", **case.attrs)
    return whole_model([node], inputs, results, initializers, case.opset)


def whole_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[str],
    initializers: Sequence[onnx.TensorProto] = (),
    opset: int = 18,
) -> onnx.ModelProto:
    """A model whose outputs have no declared type or shape."""
    declared = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(list(nodes), "test", list(inputs), declared, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def variable(name: str, *shape: int) -> onnx.ValueInfoProto:
    """A float32 graph input."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def run_onnx(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """All outputs of ONNX Runtime, flattened and joined."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.concatenate([np.asarray(v).reshape(-1).astype(np.float64) for v in session.run(None, feeds)])
