"""Exact answers for the fully connected network by mixed-integer programming: an oracle, not the verifier.

Each relu gets a binary variable and big-M rows whose constants are interval bounds (Tjeng, Xiao and
Tedrake, ICLR 2019, arXiv:1711.07356). Solved by HiGHS in double precision; a decision whose objective
is closer to zero than MARGIN is not taken.
"""

from __future__ import annotations

from pathlib import Path

import highspy
import numpy as np
import onnx
from onnx import numpy_helper

#: Objective values between -MARGIN and MARGIN decide nothing: the solver's tolerances are 1e-6.
MARGIN = 1e-3


def dense_layers(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights [out, in] and biases [out] of a network of Gemm and Relu nodes only."""
    graph = onnx.load(path).graph
    arrays = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in graph.initializer}
    if {node.op_type for node in graph.node} != {"Gemm", "Relu"}:
        raise ValueError(f"{path}: expected Gemm and Relu nodes only")
    return [(arrays[n.input[1]], arrays[n.input[2]]) for n in graph.node if n.op_type == "Gemm"]


class ReluProgram:
    """The set of all (input, output) pairs of a relu network over a box, as a mixed-integer program."""

    def __init__(self, layers: list[tuple[np.ndarray, np.ndarray]], lower: np.ndarray, upper: np.ndarray):
        self._model = highspy.Highs()
        self._model.setOptionValue("output_flag", False)
        self._model.setOptionValue("threads", 1)
        self.inputs = [self._variable(a, b) for a, b in zip(lower, upper, strict=True)]
        names = self.inputs
        for number, (weight, bias) in enumerate(layers):
            centre, reach = weight @ (lower + upper) / 2 + bias, np.abs(weight) @ (upper - lower) / 2
            lower, upper = centre - reach, centre + reach
            ends = zip(weight, bias, lower, upper, strict=True)
            before = [self._affine(row, b, names, low, high) for row, b, low, high in ends]
            if number + 1 == len(layers):
                self.outputs = before
                break
            names = [self._relu(v, lower[k], upper[k]) for k, v in enumerate(before)]
            lower, upper = np.maximum(lower, 0), np.maximum(upper, 0)

    def require(self, row: dict[int, float], limit: float) -> None:
        """Add sum(coefficient * input) <= limit."""
        self._row(-highspy.kHighsInf, limit, [(self.inputs[i], c) for i, c in row.items()])

    def minimum(self, row: dict[int, float]) -> float:
        """A lower bound of sum(coefficient * output), equal to the minimum up to the solver's tolerance."""
        count = self._model.getNumCol()
        costs = np.zeros(count)
        for k, c in row.items():
            costs[self.outputs[k]] = c
        self._model.changeColsCost(count, np.arange(count, dtype=np.int32), costs)
        self._model.run()
        if self._model.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            raise RuntimeError(f"HiGHS stopped with {self._model.getModelStatus()}")
        return float(self._model.getInfo().mip_dual_bound)

    def _variable(self, lower: float, upper: float, *, binary: bool = False) -> int:
        self._model.addVar(float(lower), float(upper))
        number = self._model.getNumCol() - 1
        if binary:
            self._model.changeColIntegrality(number, highspy.HighsVarType.kInteger)
        return number

    def _row(self, lower: float, upper: float, terms: list[tuple[int, float]]) -> None:
        index = np.array([v for v, _ in terms], dtype=np.int32)
        self._model.addRow(float(lower), float(upper), len(terms), index, np.array([float(c) for _, c in terms]))

    def _affine(self, row: np.ndarray, bias: float, names: list[int], lower: float, upper: float) -> int:
        result = self._variable(lower, upper)
        terms = [(v, float(c)) for v, c in zip(names, row, strict=True)]
        self._row(-bias, -bias, [*terms, (result, -1.0)])
        return result

    def _relu(self, x: int, lower: float, upper: float) -> int:
        result = self._variable(0.0, max(upper, 0.0))
        if lower >= 0:
            self._row(0, 0, [(result, 1.0), (x, -1.0)])
        elif upper > 0:
            active = self._variable(0, 1, binary=True)
            infinity = highspy.kHighsInf
            self._row(0, infinity, [(result, 1.0), (x, -1.0)])
            self._row(-infinity, -lower, [(result, 1.0), (x, -1.0), (active, -lower)])
            self._row(-infinity, 0, [(result, 1.0), (active, -upper)])
        return result
