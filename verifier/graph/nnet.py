"""The .nnet format of the ACAS Xu networks: text, fully connected layers with relu between them.

Lines, after any that start with `//`: number of layers, inputs, outputs, largest layer; layer sizes;
an unused flag; input minima; input maxima; means and ranges of the inputs with one more entry for
the output; then for every layer its weight rows and its biases, comma separated.
Source: K. Julian, https://github.com/sisl/NNet (README, "File format of .nnet").
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from verifier.errors import NetworkError
from verifier.graph.ir import Graph
from verifier.graph.lowering.activation import unary
from verifier.graph.lowering.arithmetic import affine, clip
from verifier.graph.lowering.linear import dense
from verifier.graph.lowering.values import Ref, Tracer


def import_nnet(data: bytes, source: str = "") -> Graph:
    """Lower an .nnet file: clamp and normalise the input, the layers, undo the output's normalisation.

    The network is the program the format describes, from inputs in physical units to outputs in
    physical units: x -> (clip(x, minimum, maximum) - mean) / range, layers, y * range + mean.

    Args:
        data: the file's bytes, uncompressed.
        source: the file's name, for messages.
    Returns:
        A float32 graph, input "X" [1, N_in] and output "Y" [1, N_out], unsimplified.
    Raises:
        NetworkError: not the format, truncated, or NaN (the line is named).
    """
    rows = _Rows(data)
    depth, inputs, outputs = rows.integers(3, "number of layers, inputs, outputs")[:3]
    sizes = rows.integers(depth + 1, "layer sizes")[: depth + 1]
    if depth < 1 or min(sizes) < 1 or sizes[0] != inputs or sizes[-1] != outputs:
        raise rows.error(f"layer sizes {sizes} do not go from {inputs} inputs to {outputs} outputs")
    rows.numbers(0, "the unused flag")
    minima, maxima = rows.numbers(inputs, "input minima"), rows.numbers(inputs, "input maxima")
    means, ranges = rows.numbers(inputs + 1, "means"), rows.numbers(inputs + 1, "ranges")
    if not np.all(ranges):
        raise rows.error("a range of 0 cannot be divided by")

    t = Tracer(stem="X", operator="Input")
    x = first = t.emit("Input", (), (1, inputs))
    t.stem = "normalised"
    x = clip(t, x, minima[:inputs].astype(np.float32), maxima[:inputs].astype(np.float32))
    # Deployed: a difference and a quotient, of constants that float32 rounds; folding the two into
    # one product and one sum adds two roundings.
    shift = -means[:inputs] / ranges[:inputs]
    x = affine(t, x, 1.0 / ranges[:inputs], shift, rounding_terms=6, bias_magnitude=np.abs(shift))
    for index, (width, out) in enumerate(pairwise(sizes)):
        t.stem = f"layer_{index}"
        weight = np.stack([rows.numbers(width, f"weights of layer {index}")[:width] for _ in range(out)])
        bias = np.array([rows.numbers(1, f"biases of layer {index}")[0] for _ in range(out)])
        x = dense(t, x, weight.T.astype(np.float32), bias.astype(np.float32))
        if index + 1 < depth:
            t.stem = f"relu_{index}"
            x = unary(t, "Relu", x)
    t.stem = "Y"
    scale, offset = float(ranges[inputs]), float(means[inputs])
    x = affine(t, x, scale, offset, rounding_terms=3)
    assert isinstance(x, Ref)
    return t.builder.finish(
        (first.name,), (x.name,), input_names=("X",), output_names=("Y",), dtype="float32", source=source
    )


class _Rows:
    """The file's lines of numbers, in order, with their line numbers for messages."""

    def __init__(self, data: bytes):
        try:
            self._lines = data.decode("ascii").splitlines()
        except UnicodeDecodeError:
            raise NetworkError("not an .nnet file: it is not text") from None
        self._at = 0

    def error(self, problem: str) -> NetworkError:
        """The error about the line read last."""
        return NetworkError(f"line {self._at}: {problem}; expected the .nnet format")

    def _cells(self) -> Iterator[list[str]]:
        while self._at < len(self._lines):
            line = self._lines[self._at].strip()
            self._at += 1
            if line and not line.startswith("//"):
                yield [cell.strip() for cell in line.rstrip(",").split(",")]

    def numbers(self, count: int, what: str) -> np.ndarray:
        """The next line as float64, of which there must be at least `count`."""
        cells = next(self._cells(), None)
        if cells is None:
            raise NetworkError(f"the file ends before its {what}: truncated, or not an .nnet file")
        try:
            values = np.array([float(cell) for cell in cells if cell])
        except ValueError:
            raise self.error(f"{what}: '{','.join(cells)[:40]}' is not a list of numbers") from None
        if values.size < count or not np.isfinite(values).all():
            raise self.error(f"{what}: expected {count} finite numbers, got {values.size}")
        return values

    def integers(self, count: int, what: str) -> list[int]:
        """The next line as integers, of which there must be at least `count`."""
        values = self.numbers(count, what)
        if np.any(values != np.floor(values)) or np.any(np.abs(values) > 2**31):
            raise self.error(f"{what}: expected whole numbers")
        return [int(v) for v in values]
