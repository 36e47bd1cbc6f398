"""One forward walk over an ONNX graph: every tensor becomes a constant or a graph node."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from verifier.errors import NetworkError, UnsupportedOperator, VerifierError
from verifier.graph.ir import Graph
from verifier.graph.lowering.values import Ref, Tracer, Value
from verifier.graph.onnx.call import Call
from verifier.graph.onnx.proto import (
    AttributeReference,
    Function,
    GraphBody,
    Model,
    Operation,
    ValueInfo,
    read_model,
)
from verifier.graph.onnx.table import LOWERINGS

Environment = dict[str, Value]

# Exporters nest functions a few levels deep; a file that goes on is malformed (or recursive).
_MAX_DEPTH = 32


def import_onnx(
    data: bytes | memoryview, source: str = "", folder: Path | None = None, hidden: Sequence[str] = ()
) -> Graph:
    """Lower a serialized ONNX model to the canonical grammar, unsimplified.

    Unknown dimensions are fixed to 1: proofs concern one sample at a time.

    Args:
        data: the file's bytes, uncompressed.
        source: the file's name, for messages.
        folder: where externally stored tensors lie.
        hidden: names of intermediate tensors to append to the outputs.
    Returns:
        The graph; nodes carry ONNX tensor names. `dtype` is float32 as soon as any input is, or a
        variable is cast to it.
    Raises:
        NetworkError: not ONNX, truncated, NaN weights, an undefined tensor, an input that is not float.
        UnsupportedOperator: an operator, or a use of one, outside the table.
    """
    model = read_model(data, folder)
    walk = _Walk(model)
    body = model.graph
    constants: Environment = dict(body.initializers)
    inputs = [walk.declare(info) for info in body.inputs if info.name not in constants]
    if not inputs:
        raise NetworkError(f"{source}: the network has no inputs")
    environment = constants | {info.name: ref for info, ref in zip(_variables(body), inputs, strict=True)}
    walk.run(body.operations, environment, model.opset, 0)
    names = (*(o.name for o in body.outputs), *hidden)
    missing = [name for name in names if name not in environment]
    if missing:
        raise NetworkError(f"{source}: tensor '{missing[0]}' is asked for and nothing computes it")
    walk.tracer.stem, walk.tracer.operator = "output", "Constant"
    outputs = [walk.tracer.ref(environment[name]) for name in names]
    narrow = walk.tracer.narrowed or any(ref.dtype == "float32" for ref in inputs)
    dtype = "float32" if narrow else "float64"
    return walk.tracer.builder.finish(
        tuple(ref.name for ref in inputs),
        tuple(ref.name for ref in outputs),
        input_names=tuple(info.name for info in _variables(body)),
        output_names=names,
        dtype=dtype,
        source=source,
    )


def _variables(body: GraphBody) -> list[ValueInfo]:
    """Declared inputs that are not weights."""
    return [info for info in body.inputs if info.name not in body.initializers]


class _Walk:
    """Lowers operations in file order into one tracer."""

    def __init__(self, model: Model):
        self.model = model
        self.tracer = Tracer()

    def declare(self, info: ValueInfo) -> Ref:
        if info.dtype not in ("float32", "float64"):
            raise NetworkError(
                f"input '{info.name}': element type {info.dtype or 'unknown'} is not supported, "
                "expected float32 or float64"
            )
        if info.shape is None:
            raise NetworkError(f"input '{info.name}': the file does not say how many axes it has; re-export it")
        self.tracer.stem = info.name
        return self.tracer.emit("Input", (), tuple(d if d and d > 0 else 1 for d in info.shape), info.dtype)

    def run(self, operations: Sequence[Operation], environment: Environment, opset: int, depth: int) -> None:
        """Lower `operations`, reading and extending `environment`."""
        if depth > _MAX_DEPTH:
            raise NetworkError(f"functions and branches nest deeper than {_MAX_DEPTH} levels")
        for operation in operations:
            results = self.lower(operation, environment, opset, depth)
            for name, value in zip(operation.outputs, results, strict=False):
                if name:
                    environment[name] = value

    def lower(self, operation: Operation, environment: Environment, opset: int, depth: int) -> tuple[Value, ...]:
        """The operation's results."""
        undefined = [name for name in operation.inputs if name and name not in environment]
        if undefined:
            raise NetworkError(
                f"node '{operation.name}' ({operation.op_type}) reads tensor '{undefined[0]}', which nothing computes"
            )
        values = tuple(environment[name] if name else None for name in operation.inputs)
        function = self.model.functions.get((operation.domain, operation.op_type))
        if function is not None:
            return self._call(function, operation, values, depth)
        if operation.op_type == "If" and isinstance(values[0], np.ndarray):
            branch = operation.attrs["then_branch" if np.all(values[0]) else "else_branch"]
            scope = environment | branch.initializers
            self.run(branch.operations, scope, opset, depth + 1)
            return tuple(scope[o.name] for o in branch.outputs)
        tracer = self.tracer
        tracer.stem = next((o for o in operation.outputs if o), operation.name)
        tracer.operator = operation.op_type
        lowering = LOWERINGS.get(operation.op_type) if operation.domain in ("", "ai.onnx") else None
        if lowering is None:
            domain = f"{operation.domain}." if operation.domain not in ("", "ai.onnx") else ""
            raise UnsupportedOperator(domain + operation.op_type, operation.name)
        call = Call(operation.op_type, values, operation.attrs, opset, operation.outputs)
        try:
            result = lowering(tracer, call)
        except VerifierError:
            raise
        except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise NetworkError(
                f"node '{operation.name}' ({operation.op_type}) is malformed or used in a way that is not "
                f"supported: {type(error).__name__}: {error}"
            ) from error
        results = result if isinstance(result, tuple) else (result,)
        return tuple(np.asarray(v) if isinstance(v, np.generic) else v for v in results)

    def _call(
        self, function: Function, operation: Operation, values: tuple[Value | None, ...], depth: int
    ) -> tuple[Value, ...]:
        scope: Environment = {
            name: value for name, value in zip(function.inputs, values, strict=False) if value is not None
        }
        given = function.defaults | operation.attrs
        body = [_with_attributes(inner, given) for inner in function.operations]
        self.run(body, scope, function.opset, depth + 1)
        return tuple(scope[name] for name in function.outputs)


def _with_attributes(operation: Operation, given: dict[str, Any]) -> Operation:
    """The operation of a function body with attribute references replaced by the caller's values."""
    attrs = {
        key: given.get(value.name) if isinstance(value, AttributeReference) else value
        for key, value in operation.attrs.items()
    }
    return Operation(operation.op_type, operation.name, operation.domain, operation.inputs, operation.outputs, attrs)
