"""From a module or an exported program to a Graph: one walk over its ATen operations."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from verifier.errors import NetworkError, ShapeError, UnsupportedOperator, VerifierError
from verifier.graph.ir import Graph
from verifier.graph.lowering.values import Ref, Tracer, Value
from verifier.graph.passes import simplify
from verifier.graph.torch import elementwise, layout, linear, reduce
from verifier.graph.torch.call import Call, Lowering

LOWERINGS: dict[str, Lowering] = {**elementwise.TABLE, **layout.TABLE, **linear.TABLE, **reduce.TABLE}

#: Operations that check something at run time and compute nothing.
_ASSERTIONS = ("aten::_assert_tensor_metadata", "aten::_assert_scalar", "aten::sym_constrain_range_for_size")


def load_module(module: nn.Module, *shapes: Sequence[int]) -> Graph:
    """Read a module as one sample sees it in evaluation mode.

    The module is neither changed nor moved: modes are restored, and parameters are read where they are.

    Args:
        module: on any device, parameters float32 or float64 (all alike).
        shapes: shape of each tensor argument of `forward`, batch axis included, e.g. (1, 3, 32, 32).
    Returns:
        The simplified graph; inputs are named like the arguments of `forward`.
    Raises:
        NetworkError: the module cannot be exported (the cause is named), or holds NaN.
        UnsupportedOperator: it uses an operation outside the table.
    """
    if not shapes:
        raise NetworkError("a module does not say its input shape; pass it: load_module(module, (1, 3, 32, 32))")
    parameter = next((p for p in (*module.parameters(), *module.buffers()) if p.is_floating_point()), None)
    dtype = torch.float32 if parameter is None else parameter.dtype
    device = None if parameter is None else parameter.device
    example = tuple(torch.zeros(tuple(shape), dtype=dtype, device=device) for shape in shapes)
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, example)
    except Exception as error:  # torch.export raises many classes of its own
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise NetworkError(
            f"torch.export cannot trace {type(module).__name__} with inputs {[tuple(s) for s in shapes]}: "
            f"{type(error).__name__}: {first}"
        ) from error
    finally:
        for part, training in modes:
            part.training = training
    return load_program(program, source=type(module).__name__)


def load_program(program: torch.export.ExportedProgram, source: str = "exported program") -> Graph:
    """Read a torch.export program; dimensions it leaves open are fixed to their example's size.

    Raises:
        NetworkError, UnsupportedOperator: as `load_module`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Without a table this only makes the program functional: no operation writes in place.
        program = program.run_decompositions({})
    return simplify(_Walk(program, source).graph())


class _Walk:
    """Lowers the operations of one program in order."""

    def __init__(self, program: torch.export.ExportedProgram, source: str):
        self.program, self.source = program, source
        self.tracer = Tracer()
        self.values: dict[str, Any] = {}
        signature = program.graph_signature
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        names |= dict(signature.inputs_to_lifted_tensor_constants)
        self.weights = {node: self._weight(target) for node, target in names.items()}
        self.user_inputs = set(signature.user_inputs)

    def _weight(self, target: str) -> np.ndarray:
        tensor = self.program.state_dict.get(target)
        if tensor is None:
            tensor = self.program.constants[target]
        return to_array(tensor, target)

    def graph(self) -> Graph:
        """The whole program, unsimplified."""
        inputs: list[Ref] = []
        outputs: list[Ref] = []
        for node in self.program.graph.nodes:
            if node.op == "placeholder" and node.name in self.weights:
                self.values[node.name] = self.weights[node.name]
            elif node.op == "placeholder":
                inputs.append(self._input(node))
            elif node.op == "call_function":
                self.values[node.name] = self._operation(node)
            elif node.op == "output":
                found = [self._value(v) for v in node.args[0]]
                self.tracer.stem = "output"
                outputs = [self.tracer.ref(v) for v in found if isinstance(v, (Ref, np.ndarray))]
            else:
                raise UnsupportedOperator(node.op, node.name, "only plain tensor operations can be read")
        if not inputs or not outputs:
            raise NetworkError(f"{self.source}: the program has no tensor inputs or no tensor outputs")
        narrow = self.tracer.narrowed or any(ref.dtype == "float32" for ref in inputs)
        dtype = "float32" if narrow else "float64"
        return self.tracer.builder.finish(
            tuple(ref.name for ref in inputs), tuple(ref.name for ref in outputs), dtype=dtype, source=self.source
        )

    def _input(self, node: torch.fx.Node) -> Ref:
        example = node.meta.get("val")
        kinds = {torch.float32: "float32", torch.float64: "float64"}
        if not isinstance(example, torch.Tensor) or example.dtype not in kinds:
            raise NetworkError(f"input '{node.name}': expected a float32 or float64 tensor, got {example}")
        self.tracer.stem = node.name
        shape = tuple(int(d) for d in example.shape)
        ref = self.tracer.emit("Input", (), shape, kinds[example.dtype])
        self.values[node.name] = ref
        return ref

    def _value(self, arg: Any) -> Any:
        """An argument with nodes replaced by their values."""
        if isinstance(arg, torch.fx.Node):
            return self.values[arg.name]
        if isinstance(arg, (list, tuple)):
            return [self._value(a) for a in arg]
        return arg

    def _operation(self, node: torch.fx.Node) -> Any:
        t, target = self.tracer, node.target
        args, kwargs = self._value(node.args), {k: self._value(v) for k, v in node.kwargs.items()}
        t.stem = node.name
        if target is operator.getitem:
            return args[0][args[1]]
        if not isinstance(target, torch._ops.OpOverload):
            raise UnsupportedOperator(str(target), node.name)
        schema = target._schema
        if schema.name in _ASSERTIONS:
            return None
        t.operator = schema.name
        if not has_ref([args, kwargs]):
            return _run(target, args, kwargs)
        lowering = LOWERINGS.get(schema.name)
        if lowering is None:
            raise UnsupportedOperator(schema.name, node.name)
        named = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        named |= {a.name: value for a, value in zip(schema.arguments, args, strict=False)} | kwargs
        try:
            return lowering(t, Call(schema.name, schema.overload_name, named))
        except VerifierError:
            raise
        except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise NetworkError(
                f"node '{node.name}' ({schema.name}) is used in a way that is not supported: "
                f"{type(error).__name__}: {error}"
            ) from error


def to_array(tensor: torch.Tensor, name: str) -> np.ndarray:
    """A tensor's values in numpy.

    Raises:
        ShapeError: an element type numpy does not have, such as bfloat16.
    """
    if tensor.dtype in (torch.float16, torch.bfloat16) or tensor.is_complex() or tensor.is_quantized:
        raise ShapeError(f"'{name}' is {tensor.dtype}; expected float32 or float64: module.float() converts it")
    return tensor.detach().cpu().numpy()


def has_ref(value: Any) -> bool:
    """Whether an argument holds the result of a graph node."""
    if isinstance(value, dict):
        return has_ref(list(value.values()))
    if isinstance(value, (list, tuple)):
        return any(has_ref(v) for v in value)
    return isinstance(value, Ref)


def _run(target: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on constants, computed by torch itself."""

    def tensors(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return torch.from_numpy(np.array(value))
        return [tensors(v) for v in value] if isinstance(value, list) else value

    options = {k: tensors(v) for k, v in kwargs.items() if k != "device"}
    return _arrays(target(*[tensors(a) for a in args], **options))


def _arrays(value: Any) -> Value:
    if isinstance(value, torch.Tensor):
        return value.numpy()
    return [_arrays(v) for v in value] if isinstance(value, (list, tuple)) else value
