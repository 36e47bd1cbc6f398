"""ONNX's messages as small frozen records: Model, Function, Operation, Tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from verifier.errors import NetworkError, UnsupportedOperator
from verifier.graph.onnx import wire

# TensorProto.DataType -> numpy; the element types this project can compute with.
DTYPES: dict[int, str] = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32",
    7: "int64", 9: "bool", 11: "float64", 12: "uint32", 13: "uint64",
}  # fmt: skip
_OTHER = {0: "undefined", 8: "string", 10: "float16", 14: "complex64", 15: "complex128", 16: "bfloat16"}


@dataclass(frozen=True)
class ValueInfo:
    """A declared input or output: element type, and dimensions with None where unknown."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Operation:
    """One ONNX node; empty names in `inputs` are omitted optional inputs."""

    op_type: str
    name: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any]


@dataclass(frozen=True)
class GraphBody:
    """Operations in file order with their constants and interface."""

    operations: tuple[Operation, ...]
    initializers: dict[str, np.ndarray]
    inputs: tuple[ValueInfo, ...]
    outputs: tuple[ValueInfo, ...]


@dataclass(frozen=True)
class Function:
    """A model-local function: a named body that operations may call."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    operations: tuple[Operation, ...]
    opset: int
    defaults: dict[str, Any]


@dataclass(frozen=True)
class AttributeReference:
    """Inside a function: 'the caller's attribute of this name'."""

    name: str


@dataclass(frozen=True)
class Model:
    """A whole file: the main graph, its opset version and its local functions."""

    graph: GraphBody
    opset: int
    functions: dict[tuple[str, str], Function] = field(default_factory=dict)


def element_type(code: int, where: str) -> str:
    """The numpy name of an ONNX element type, or NetworkError."""
    if code not in DTYPES:
        raise NetworkError(f"{where}: element type {_OTHER.get(code, code)} is not supported; export in float32")
    return DTYPES[code]


def read_model(data: bytes | memoryview, folder: Path | None = None) -> Model:
    """Decode a serialized ModelProto.

    Args:
        data: the file's bytes, uncompressed; aligned weights remain views of them.
        folder: where tensors stored outside the file lie; None forbids such tensors.
    Raises:
        NetworkError: not ONNX, truncated, or an element type that cannot be read.
    """
    fields = wire.parse(memoryview(data))
    graphs = wire.messages(fields, 7)
    if len(graphs) != 1 or not graphs[0].get(12):
        raise NetworkError("not an ONNX file: it holds no graph with outputs")
    reader = _Reader(folder)
    functions = {}
    for f in wire.messages(fields, 25):
        functions[(wire.text(f, 10), wire.text(f, 1))] = Function(
            tuple(wire.texts(f, 4)),
            tuple(wire.texts(f, 5)),
            tuple(reader.operation(n) for n in wire.messages(f, 7)),
            _opset(f, 9),
            dict(reader.attribute(a) for a in wire.messages(f, 11)),
        )
    return Model(reader.body(graphs[0]), _opset(fields, 8), functions)


def _opset(fields: wire.Fields, number: int) -> int:
    versions = [
        wire.integer(entry, 2, 1) for entry in wire.messages(fields, number) if wire.text(entry, 1) in ("", "ai.onnx")
    ]
    return max(versions, default=1)


class _Reader:
    """Turns parsed fields into records; holds the folder of externally stored tensors."""

    def __init__(self, folder: Path | None):
        self.folder = folder

    def body(self, fields: wire.Fields) -> GraphBody:
        if fields.get(15):
            raise NetworkError("sparse initializers are not supported; export dense weights")
        tensors = [self.tensor(t) for t in wire.messages(fields, 5)]
        return GraphBody(
            tuple(self.operation(n) for n in wire.messages(fields, 1)),
            dict(tensors),
            tuple(_value_info(v) for v in wire.messages(fields, 11)),
            tuple(_value_info(v) for v in wire.messages(fields, 12)),
        )

    def operation(self, fields: wire.Fields) -> Operation:
        outputs = tuple(wire.texts(fields, 2))
        return Operation(
            op_type=wire.text(fields, 4),
            name=wire.text(fields, 3) or next((o for o in outputs if o), "?"),
            domain=wire.text(fields, 7),
            inputs=tuple(wire.texts(fields, 1)),
            outputs=outputs,
            attrs=dict(self.attribute(a) for a in wire.messages(fields, 5)),
        )

    def attribute(self, fields: wire.Fields) -> tuple[str, Any]:
        name = wire.text(fields, 1)
        if 21 in fields:
            return name, AttributeReference(wire.text(fields, 21))
        kind = wire.integer(fields, 20) or _guess_kind(fields)
        if kind == 1:
            return name, wire.single(fields, 2)
        if kind == 2:
            return name, wire.integer(fields, 3)
        if kind == 3:
            return name, wire.text(fields, 4)
        if kind == 4:
            return name, self.tensor(wire.messages(fields, 5)[-1])[1] if 5 in fields else None
        if kind == 5:
            return name, self.body(wire.messages(fields, 6)[-1]) if 6 in fields else None
        if kind == 6:
            return name, [float(v) for v in wire.fixed(fields, 7, "<f4")]
        if kind == 7:
            return name, wire.integers(fields, 8)
        if kind == 8:
            return name, wire.texts(fields, 9)
        raise UnsupportedOperator("attribute", name, f"attributes of kind {kind} are not supported")

    def tensor(self, fields: wire.Fields) -> tuple[str, np.ndarray]:
        """(name, array); the array is read-only and may view the file's buffer."""
        name = wire.text(fields, 8)
        where = f"tensor '{name}'"
        dims = tuple(wire.integers(fields, 1))
        dtype = np.dtype(element_type(wire.integer(fields, 2), where))
        if wire.integer(fields, 14) == 1:
            raw: Any = self._external(fields, where)
        else:
            raw = fields[9][-1] if 9 in fields else None
        if raw is not None:
            if len(raw) % dtype.itemsize:
                raise NetworkError(f"{where}: {len(raw)} bytes do not hold whole {dtype} numbers")
            flat = np.frombuffer(raw, dtype=dtype.newbyteorder("<")).astype(dtype, copy=False)
            # The file does not align its weights; processors and kernels want them aligned.
            flat = flat if flat.flags.aligned else flat.copy()
        else:
            flat = _typed_data(fields, dtype)
        if min(dims, default=0) < 0 or flat.size != int(np.prod(dims, dtype=np.int64)):
            raise NetworkError(f"{where}: expected {list(dims)} numbers, got {flat.size}")
        return name, flat.reshape(dims)

    def _external(self, fields: wire.Fields, where: str) -> bytes:
        entries = {wire.text(e, 1): wire.text(e, 2) for e in wire.messages(fields, 13)}
        if self.folder is None:
            raise NetworkError(f"{where}: stored outside the model, and the model was not read from a folder")
        path = (self.folder / entries.get("location", "")).resolve()
        if not path.is_relative_to(self.folder.resolve()) or not path.is_file():
            raise NetworkError(f"{where}: its data file '{entries.get('location')}' is not in the model's folder")
        with path.open("rb") as stream:
            stream.seek(int(entries.get("offset") or 0))
            return stream.read(int(entries["length"]) if entries.get("length") else -1)


def _typed_data(fields: wire.Fields, dtype: np.dtype) -> np.ndarray:
    if dtype == np.float32:
        return wire.fixed(fields, 4, "<f4").astype(dtype, copy=False)
    if dtype == np.float64:
        return wire.fixed(fields, 10, "<f8").astype(dtype, copy=False)
    number = 7 if dtype == np.int64 else 11 if dtype in (np.uint32, np.uint64) else 5
    values = np.array(wire.integers(fields, number), dtype=np.int64)
    return values.astype(dtype)


def _guess_kind(fields: wire.Fields) -> int:
    """The attribute kind by the field present: files before IR version 2 do not say it."""
    kinds = {2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6, 8: 7, 9: 8}
    return next((kind for number, kind in kinds.items() if number in fields), 7)


def _value_info(fields: wire.Fields) -> ValueInfo:
    name = wire.text(fields, 1)
    types = wire.messages(fields, 2)
    tensors = wire.messages(types[-1], 1) if types else []
    if not tensors:
        return ValueInfo(name, "", None)
    code = wire.integer(tensors[-1], 1)
    shapes = wire.messages(tensors[-1], 2)
    shape = None
    if shapes:
        dims = wire.messages(shapes[-1], 1)
        shape = tuple(wire.integer(d, 1) if 1 in d else None for d in dims)
    return ValueInfo(name, DTYPES.get(code, _OTHER.get(code, f"type {code}")), shape)
