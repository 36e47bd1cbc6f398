"""Replaying a candidate on the user's own network: the only way an answer becomes `sat`."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from verifier.errors import NetworkError, ShapeError, SpecError
from verifier.graph.ir import Graph
from verifier.spec.columns import Column
from verifier.spec.exact import Value, clause_margin, outside
from verifier.spec.query import Query

Source = str | os.PathLike[str] | bytes | Graph


@dataclass(frozen=True)
class ReplayResult:
    """What the replay of one input found.

    Attributes:
        valid: x is in the input set and its replayed outputs are unsafe, both exactly.
        case: index of the case that holds x and whose clause is unsafe (or comes closest); -1: none.
        clause: index of that clause in the case; -1: none.
        margin: that clause's largest `coeffs @ y - limit`; a counterexample has <= 0.
        y: flat outputs of the networks as replayed, the program's dtype.
        hidden: (network, tensor) -> flat values, for witnesses that list hidden variables.
        message: one sentence for people.
    """

    valid: bool
    case: int
    clause: int
    margin: float
    y: np.ndarray
    hidden: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)
    message: str = ""


class Replay:
    """Runs networks as the user deploys them and checks candidates with zero tolerance.

    An ONNX file runs in ONNX Runtime on one CPU thread; a Graph (a network that came from
    somewhere else) is evaluated in its own dtype by `verifier.graph.evaluate`, and messages say so.
    """

    def __init__(self, models: Source | Mapping[str, Source], query: Query | None = None) -> None:
        """
        Args:
            models: an ONNX file (plain or gzip), its bytes, or a Graph; by declared name for several.
            query: needed for several networks and for hidden tensors; else optional.
        Raises:
            NetworkError: ONNX Runtime refuses a model. SpecError: the query names other networks.
        """
        if not isinstance(models, Mapping):
            models = {next(iter(query.networks)) if query else "f": models}
        if query is not None and set(models) != set(query.networks) - set(query.equal_to):
            expected = [name for name in query.networks if name not in query.equal_to]
            raise SpecError(f"replay: expected models for {expected}, got {sorted(models)}")
        self._input_map = query.input_map if query else None
        self._runners: dict[str, _Runner] = {}
        for name in query.networks if query else models:
            source = models[query.equal_to.get(name, name) if query else name]
            tensors = _hidden_tensors(query, name)
            if isinstance(source, Graph):
                self._runners[name] = _GraphRunner(query.networks[name] if query else source, tensors)
            else:
                self._runners[name] = _OnnxRunner(source, tensors)
        self.description = " and ".join(dict.fromkeys(r.description for r in self._runners.values()))

    def run(self, x: np.ndarray) -> np.ndarray:
        """Outputs of all networks for one flat query input [N_in], concatenated, as the program gives them.

        Raises:
            ShapeError: x has the wrong length.
        """
        return self._run(x)[0]

    def _run(self, x: np.ndarray) -> tuple[np.ndarray, dict[tuple[str, str], np.ndarray]]:
        x = np.asarray(x).reshape(-1)
        given = x if self._input_map is None else x[self._input_map]
        outputs, hidden, start = [], {}, 0
        for name, runner in self._runners.items():
            end = start + runner.input_size
            y, tensors = runner.run(given[start:end])
            outputs.append(y)
            hidden.update({(name, tensor): value for tensor, value in tensors.items()})
            start = end
        if start != given.size:
            raise ShapeError(f"replay: the networks take {start} inputs, got {given.size}")
        return np.concatenate(outputs), hidden

    def check(self, query: Query, x: np.ndarray, *, case: int | None = None) -> ReplayResult:
        """Whether x is a counterexample: in the input set, and unsafe on the replayed outputs.

        Comparisons are exact: floats are taken as the rationals they are. NaN is never unsafe.

        Args:
            query: the question.
            x: [N_in], numbers of the program's dtype (`snap_to_valid` makes them so).
            case: look at this case alone, which is quicker where there are thousands; None: all.
        """
        x = np.asarray(x).reshape(-1)
        if x.size != query.graph.input_size:
            raise ShapeError(f"replay: expected {query.graph.input_size} inputs, got {x.size}")
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            given = x.astype(query.graph.dtype)
        if not np.array_equal(given.astype(np.float64), x.astype(np.float64)):
            i = int(np.argmax(given.astype(np.float64) != x.astype(np.float64)))
            nothing = np.full(query.model_output_size, np.nan, query.graph.dtype)
            return ReplayResult(
                False, -1, -1, np.inf, nothing, message=f"input {i} is {x[i]!r}, which is no {query.graph.dtype} number"
            )
        y, hidden = self._run(given)
        exact = given.astype(np.float64)
        values, rationals = _values(query, exact, y.astype(np.float64), hidden)
        cases = range(len(query.problem.cases)) if case is None else (case,)
        return self._judge(query, cases, exact, y, hidden, values, rationals)

    def _judge(
        self,
        query: Query,
        cases: Sequence[int],
        x: np.ndarray,
        y: np.ndarray,
        hidden: dict[tuple[str, str], np.ndarray],
        values: np.ndarray,
        rationals: list[Value] | None,
    ) -> ReplayResult:
        best: tuple[Value, int, int] = (float("inf"), -1, -1)
        reason, found, valid = "", False, False
        for k in cases:
            case = query.problem.cases[k]
            why = outside(case.inputs, x, query.graph.dtype)
            if why:
                reason = reason or why
                continue
            found = True
            for c, clause in enumerate(case.clauses):
                holds, margin = clause_margin(clause, values, rationals)
                if (holds and not valid) or (holds == valid and margin < best[0]):
                    valid, best = holds, (margin, k, c)
            if valid:
                break
        margin = float(best[0])
        if valid:
            message = f"counterexample confirmed by {self.description}: case {best[1]}, clause {best[2]}"
        elif not found:
            message = f"not in the input set: {reason or 'the problem has no input'}"
        else:
            message = f"not unsafe in {self.description}: the closest clause misses by {margin:.6g}"
        return ReplayResult(valid, best[1], best[2], margin, y, hidden, message)


def _hidden_tensors(query: Query | None, network: str) -> tuple[str, ...]:
    if query is None:
        return ()
    declared = (v.tensor for v in query.variables if v.kind == "hidden" and v.network == network)
    return tuple(dict.fromkeys(declared))


def _values(
    query: Query, x: np.ndarray, y: np.ndarray, hidden: dict[tuple[str, str], np.ndarray]
) -> tuple[np.ndarray, list[Value] | None]:
    """Every output of the query graph: doubles, and rationals where a product needs them."""
    if not query.extras:
        return y, None

    def plain(column: Column) -> float:
        if column.kind == "hidden":
            return float(hidden[column.network, column.tensor][column.index])
        return float((x if column.kind == "input" else y)[column.index])

    exact: list[Value] = y.tolist()
    for column in query.extras:
        if column.kind != "product":
            exact.append(plain(column))
            continue
        factors = [plain(factor) for factor in column.factors]
        if not np.all(np.isfinite(factors)):
            exact.append(float("nan"))
            continue
        product = Fraction(1)
        for factor in factors:
            product *= Fraction(factor)
        exact.append(product)
    return np.array([_nearest(value) for value in exact]), exact


def _nearest(value: Value) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("nan")  # beyond the doubles: treated as not comparable, so never a counterexample


class _Runner:
    """One network: `input_size`, `description`, and `run(flat) -> (flat outputs, tensor -> flat values)`."""

    input_size: int
    description: str

    def run(self, x: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Evaluate one flat input in the program's dtype."""
        raise NotImplementedError


class _GraphRunner(_Runner):
    def __init__(self, graph: Graph, tensors: tuple[str, ...]) -> None:
        self._graph = graph
        self._tensors = tensors
        self.input_size = graph.input_size
        self.description = f"{graph.dtype} evaluation of the graph (no ONNX file)"

    def run(self, x: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        from verifier.graph.evaluate import evaluate_all

        values = evaluate_all(self._graph, x.astype(self._graph.dtype)[None], self._graph.dtype)
        y = np.concatenate([values[name].reshape(-1) for name in self._graph.outputs])
        return y, {name: values[name].reshape(-1) for name in self._tensors}


class _OnnxRunner(_Runner):
    description = "ONNX Runtime"

    def __init__(self, source: str | os.PathLike[str] | bytes, tensors: tuple[str, ...]) -> None:
        import onnxruntime

        data = source if isinstance(source, bytes) else _model_source(source)
        label = "the model" if isinstance(source, bytes) else Path(source).name
        self._tensors = tensors
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            if tensors:
                data = _with_outputs(data, tensors, label)
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except NetworkError:
            raise
        except Exception as error:  # ONNX Runtime raises its own classes, derived from Exception alone
            raise NetworkError(f"ONNX Runtime cannot load {label}: {error}") from error
        self._inputs = [
            (i.name, _static_shape(i.shape), _numpy_type(i.type, i.name)) for i in self._session.get_inputs()
        ]
        self._outputs = [o.name for o in self._session.get_outputs()]
        self.input_size = sum(int(np.prod(shape, dtype=np.int64)) for _, shape, _ in self._inputs)

    def run(self, x: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        if x.size != self.input_size:
            raise ShapeError(f"replay: the network takes {self.input_size} inputs, got {x.size}")
        feed: dict[str, Any] = {}
        start = 0
        for name, shape, dtype in self._inputs:
            size = int(np.prod(shape, dtype=np.int64))
            feed[name] = np.ascontiguousarray(x[start : start + size].reshape(shape), dtype=dtype)
            start += size
        try:
            results = dict(zip(self._outputs, self._session.run(None, feed), strict=True))
        except Exception as error:  # as above
            raise NetworkError(f"ONNX Runtime failed on the replayed input: {error}") from error
        own = [name for name in self._outputs if name not in self._tensors]
        hidden = {name: np.asarray(results[name]).reshape(-1) for name in self._tensors}
        return np.concatenate([np.asarray(results[name]).reshape(-1) for name in own]), hidden


def _model_source(path: str | os.PathLike[str]) -> bytes | str:
    """The path itself, beside which ONNX Runtime finds weights kept in other files; gzip is unpacked."""
    try:
        with open(path, "rb") as file:
            if file.read(2) != b"\x1f\x8b":
                return os.fspath(path)
            file.seek(0)
            return gzip.decompress(file.read())
    except (OSError, EOFError, zlib.error) as error:
        raise NetworkError(f"cannot read the network file {path}: {error}") from error


def _with_outputs(data: bytes | str, tensors: tuple[str, ...], label: str) -> bytes:
    """The model with hidden tensors as further outputs; the computation is untouched."""
    import onnx

    model = onnx.load_from_string(data) if isinstance(data, bytes) else onnx.load(data)
    known = {name for node in model.graph.node for name in node.output}
    present = {output.name for output in model.graph.output}
    for tensor in tensors:
        if tensor not in known:
            raise NetworkError(f"{label} has no tensor '{tensor}', which the property declares as hidden")
        if tensor not in present:
            model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    return model.SerializeToString()


def _static_shape(shape: list[Any]) -> tuple[int, ...]:
    """Free dimensions (names, None, 0 or less) become 1: one sample."""
    return tuple(d if isinstance(d, int) and d > 0 else 1 for d in shape)


def _numpy_type(onnx_type: str, name: str) -> str:
    types = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}
    if onnx_type not in types:
        raise NetworkError(f"replay: input '{name}' has type {onnx_type}; expected float, double or float16")
    return types[onnx_type]
