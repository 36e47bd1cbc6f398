"""A chain of small dense layers on many boxes in one launch: the pass of csrc/include/verifier/box_team.h.

On a GPU a block bounds a box with everything in shared memory. The same code runs on the CPU, where the native
engine is faster; there it serves as the twin that tests it.

Shape letters: B boxes, S rows, N_in inputs, N_out outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verifier.errors import ShapeError
from verifier.kernels.arrays import Array, Call
from verifier.kernels.fused import FUNCTIONS
from verifier.kernels.native import native
from verifier.kernels.stages import StagePlan

#: The shared memory that one box may take, which every GPU since compute capability 7.0 has.
TEAM_BYTES = 96 * 1024
#: Inputs from which the forward forms cost more than they save.
MOST_INPUTS = 32


@dataclass(frozen=True)
class Layer:
    """z = W h + b, h = f(z), with the deployed program's rounding; fields as in StagePlan.

    Attributes:
        inputs: N_in. weight: [N_out, N_in], transposed: [N_in, N_out], both axes of each padded with zeros as
            `_stepped` says; bias, bias_magnitude: [N_out].
    """

    inputs: int
    weight: Array
    transposed: Array
    bias: Array
    bias_magnitude: Array
    function: str
    alpha: float
    deviation: float
    row_magnitude: float
    unit: float
    products: int
    fused: int
    tiny: float
    flush: float


@dataclass(frozen=True)
class Chain:
    """Layers, first to last, whose arrays are all of one dtype, library and device."""

    layers: tuple[Layer, ...]

    @staticmethod
    def of(stages: Sequence[StagePlan], inputs: int, place: Any, dtype: np.dtype) -> Chain | None:
        """The chain that stages form, or None where they form none or a box would not fit.

        Args:
            place: puts a NumPy array where the kernels shall run, e.g. on a GPU.
            dtype: of the bounds; must hold every weight exactly.
        """
        module = native()
        if not 1 <= len(stages) <= module.box_pass_layers or inputs > MOST_INPUTS:
            return None
        if getattr(module, f"box_pass_bytes_{dtype.name}")([inputs, *(s.size for s in stages)]) > TEAM_BYTES:
            return None
        layers = []
        for k, stage in enumerate(stages):
            matrix = _matrix(stage, k, stages[k - 1].size if k else inputs)
            if matrix is None or any((x != x.astype(dtype)).any() for x in (matrix, stage.bias)):
                return None
            layers.append(_layer(stage, matrix, place, dtype))
        return Chain(tuple(layers))


def _matrix(stage: StagePlan, index: int, inputs: int) -> np.ndarray | None:
    """The stage's only map as a dense matrix [size, inputs]; None where it reads anything but the stage before."""
    if len(stage.maps) != 1 or stage.maps[0].source != index or stage.size * inputs > TEAM_BYTES:
        return None
    found = stage.maps[0]
    if found.kind == "dense":
        return np.asarray(found.matrix, dtype=np.float64)
    return found.sparse().to_dense()


def _layer(stage: StagePlan, matrix: np.ndarray, place: Any, dtype: np.dtype) -> Layer:
    above = np.nextafter(stage.bias_magnitude.astype(dtype), np.inf)
    return Layer(
        inputs=matrix.shape[1],
        weight=place(_padded(matrix.astype(dtype))),
        transposed=place(_padded(matrix.T.astype(dtype))),
        bias=place(stage.bias.astype(dtype)),
        bias_magnitude=place(above.astype(dtype)),
        function=stage.activation,
        alpha=stage.alpha,
        deviation=stage.activation_error,
        row_magnitude=float(np.abs(matrix).sum(axis=1).max(initial=0.0)) * (1 + 1e-9),
        unit=stage.unit,
        products=stage.products,
        fused=stage.fused,
        tiny=stage.tiny,
        flush=stage.flush,
    )


def _stepped(n: int) -> int:
    """The multiple of what sums read at once that n numbers are padded to, as in csrc/include/verifier/box_pass.h."""
    return n + -n % int(native().box_pass_step)


def _padded(matrix: np.ndarray) -> np.ndarray:
    """With zeros at the end of both axes."""
    return np.ascontiguousarray(np.pad(matrix, [(0, _stepped(n) - n) for n in matrix.shape]))


def box_pass(
    chain: Chain, lower: Array, upper: Array, rows: Array, *, refine: bool = True, threads: int | None = None
) -> tuple[Array, Array, Array, Array]:
    """Lower bounds of rows over boxes, with the linear forms that prove them.

    For every x in box b and the outputs y that the deployed program, in any summation order, or real arithmetic give:
        rows[s] @ y  >=  coeffs[b, s] @ x + offset[b, s]  >=  lower[b, s].

    Args:
        lower, upper: float64 [B, N_in]; rows: float64 [S, N_out]; library and device of the chain's arrays.
        refine: off leaves out the backward passes of hidden neurons: faster and looser.
    Returns:
        lower [B, S], -inf where nothing is known; coeffs [B, S, N_in]; offset [B, S]; sensitivity [B, N_in], as in
        BoxBounds; all float64.
    Raises:
        ShapeError: shapes, dtypes, libraries or devices do not fit.
    """
    n = chain.layers[0].inputs
    outputs = int(chain.layers[-1].bias.shape[0])
    if lower.ndim != 2 or rows.ndim != 2:
        raise ShapeError(
            f"box_pass: expected lower [B, {n}], rows [S, {outputs}]; got {list(lower.shape)}, {list(rows.shape)}"
        )
    b, s = int(lower.shape[0]), int(rows.shape[0])
    call = Call("box_pass", chain.layers[0].weight, threads)
    for name, array, shape in (("lower", lower, (b, n)), ("upper", upper, (b, n)), ("spec", rows, (s, outputs))):
        call.read(name, array, shape, "float64")
    shapes = {"out_lower": (b, s), "coeffs": (b, s, n), "offset": (b, s), "sensitivity": (b, n)}
    made = tuple(call.create(name, shape, "float64") for name, shape in shapes.items())
    layers = [_job(call, layer) for layer in chain.layers]
    call.launch(boxes=b, rows=s, refine=int(refine), layers=layers)
    return made


def _job(call: Call, layer: Layer) -> dict[str, float]:
    """One layer as the compiled module reads it."""
    inputs, outputs = layer.inputs, int(layer.bias.shape[0])
    arrays = {
        "weight": (_stepped(outputs), _stepped(inputs)),
        "transposed": (_stepped(inputs), _stepped(outputs)),
        "bias": (outputs,),
        "bias_magnitude": (outputs,),
    }
    return {
        "inputs": inputs,
        "outputs": outputs,
        "function": FUNCTIONS[layer.function],
        "alpha": layer.alpha,
        "deviation": layer.deviation,
        "row_magnitude": layer.row_magnitude,
        "deployed_unit": layer.unit,
        "products": layer.products,
        "fused": layer.fused,
        "tiny": layer.tiny,
        "flush": layer.flush,
    } | {name: call.address(name, getattr(layer, name), shape) for name, shape in arrays.items()}
