"""One-operator models: every ONNX operator that can be read, in the variants that differ."""

# ruff: noqa: E501 -- a table reads best with one case a line

from __future__ import annotations

import numpy as np

from tests.graph.onnx_models import Case, Var, weights


def ints(*values: int) -> np.ndarray:
    """A constant int64 operand."""
    return np.array(values, dtype=np.int64)


def floats(*values: float) -> np.ndarray:
    """A constant float32 operand."""
    return np.array(values, dtype=np.float32)


def scalar(value: float) -> np.ndarray:
    """A constant float32 number."""
    return np.array(value, dtype=np.float32)


_X = Var((2, 3, 4))
_POSITIVE = Var((2, 3), low=0.3, high=3.0)
_IMAGE = Var((1, 3, 7, 6))

_UNARY = [
    Case(op, [Var((2, 3), low=-4, high=4)])
    for op in (
        *("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Softplus", "Softsign", "Sigmoid", "HardSigmoid", "HardSwish"),
        *("Tanh", "Atan", "Erf", "Exp", "Abs", "Sign", "Floor", "Ceil", "Round", "Sin", "Cos", "Neg", "Identity"),
        *("ThresholdedRelu", "Mish"),
    )
] + [Case(op, [_POSITIVE]) for op in ("Sqrt", "Log", "Reciprocal")]

_PARAMETERS = [
    Case("LeakyRelu", [_X], attrs={"alpha": 0.3}, label="alpha"),
    Case("Elu", [_X], attrs={"alpha": 0.7}, label="alpha"),
    Case("Celu", [_X], attrs={"alpha": 0.7}, label="alpha"),
    Case("Selu", [_X], attrs={"alpha": 1.5, "gamma": 1.1}, label="alpha-gamma"),
    Case("HardSigmoid", [Var((4, 4), -6, 6)], attrs={"alpha": 0.3, "beta": 0.4}, label="alpha-beta"),
    Case("ThresholdedRelu", [_X], attrs={"alpha": 0.4}, label="alpha"),
    Case("Gelu", [Var((3, 5), -4, 4)], opset=20),
    Case("Gelu", [Var((3, 5), -4, 4)], opset=20, attrs={"approximate": "tanh"}, label="tanh"),
    Case("Swish", [_X], opset=24, attrs={"alpha": 1.3}),
    Case("Swish", [_X], opset=24, label="silu"),
    Case("PRelu", [_IMAGE, weights(3, 1, 1)], label="channels"),
    Case("PRelu", [_IMAGE, floats(0.25)], label="one-slope"),
    Case("Clip", [_X], opset=6, attrs={"min": -0.5, "max": 0.7}, label="attributes"),
    Case("Clip", [_X, scalar(-0.5), scalar(0.7)], label="inputs"),
    Case("Clip", [_X, None, scalar(0.7)], label="only-max"),
    Case("Clip", [_X, scalar(0.0)], label="relu"),
    Case("Clip", [_X], label="no-limits"),
    Case("Dropout", [_X], opset=7, attrs={"ratio": 0.4}),
    Case("Dropout", [_X, scalar(0.4), np.array(False)], opset=13, label="13"),
    Case("Cast", [_X], attrs={"to": 1}),
    Case("Cast", [_X], attrs={"to": 11}, label="to-double"),
    Case("Cast", [Var((2, 3), dtype="float64")], attrs={"to": 1}, label="from-double"),
    Case("Cast", [Var((2, 3), dtype="float64")], attrs={"to": 11}, label="double"),
]

_BINARY = [
    *(Case(op, [_X, weights(4)], label="constant") for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *(Case(op, [weights(3, 1), _X], label="constant-first") for op in ("Add", "Sub", "Mul", "Max", "Min")),
    *(Case(op, [_X, weights(5, 1, 1, 4)], label="grows") for op in ("Add", "Sub", "Mul", "Max")),
    *(Case(op, [_X, Var((3, 1))], label="two") for op in ("Add", "Sub", "Mul", "Max", "Min")),
    *(Case(op, [_X, Var((4,)), scalar(0.3)], label="three") for op in ("Max", "Min", "Sum", "Mean")),
    Case("Max", [_X], label="one"),
    Case("Div", [_X, scalar(4.0)], label="power-of-two"),
    Case("Div", [_X, Var((4,), low=0.5, high=2.0)], label="two"),
    Case("Div", [scalar(3.0), Var((4,), low=0.5, high=2.0)], label="constant-first"),
    Case("Div", [scalar(1.0), Var((4,), low=0.5, high=2.0)], label="reciprocal"),
    *(Case("Pow", [_POSITIVE, scalar(e)], label=str(e)) for e in (2.0, 3.0, 0.5, -1.0, 1.0, 0.0, 1.7)),
    Case("Pow", [_X, ints(2)], label="integer-exponent"),
    *(
        Case(op, [_X, scalar(0.25)], label="constant")
        for op in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")
    ),
    *(Case(op, [scalar(0.25), _X], label="constant-first") for op in ("Greater", "GreaterOrEqual", "Less")),
    *(Case(op, [_X, weights(4)], label="array") for op in ("Greater", "LessOrEqual")),
    *(Case(op, [_X, Var((4,))], label="two") for op in ("Greater", "Less", "Equal")),
]

_LINEAR = [
    Case("Gemm", [Var((2, 3)), weights(3, 4), weights(4)]),
    Case("Gemm", [Var((2, 3)), weights(3, 4)], label="no-bias"),
    Case("Gemm", [Var((2, 3)), weights(4, 3), weights(4)], attrs={"transB": 1}, label="transB"),
    Case("Gemm", [Var((3, 2)), weights(3, 4), weights(1, 4)], attrs={"transA": 1}, label="transA"),
    Case("Gemm", [Var((2, 3)), weights(3, 4), weights(4)], attrs={"alpha": 0.3, "beta": 1.7}, label="alpha-beta"),
    Case("Gemm", [Var((2, 3)), weights(3, 4), weights(2, 4)], attrs={"alpha": 0.3, "beta": 2.0}, label="full-bias"),
    Case("Gemm", [Var((2, 3)), weights(3, 4), scalar(0.5)], label="scalar-bias"),
    Case("Gemm", [Var((2, 3)), weights(3, 4), weights(2, 1)], label="column-bias"),
    Case("Gemm", [weights(2, 3), Var((3, 4)), weights(4)], label="constant-first"),
    Case("Gemm", [Var((2, 3)), Var((3, 4)), Var((4,))], label="variables"),
    Case("Gemm", [Var((2, 3)), weights(3, 4), weights(4)], opset=7),
    Case("MatMul", [Var((2, 3)), weights(3, 4)], label="2d"),
    Case("MatMul", [Var((5, 2, 3)), weights(3, 4)], label="batch"),
    Case("MatMul", [Var((5, 2, 3)), weights(5, 3, 4)], label="batched-weight"),
    Case("MatMul", [Var((2, 3)), weights(5, 3, 4)], label="broadcast-x"),
    Case("MatMul", [Var((2, 3)), weights(1, 3, 4)], label="unit-batch"),
    Case("MatMul", [Var((2, 3)), weights(3)], label="vector"),
    Case("MatMul", [Var((3,)), weights(3, 4)], label="vector-first"),
    Case("MatMul", [Var((3,)), weights(3)], label="dot"),
    Case("MatMul", [weights(4, 3), Var((3, 2))], label="constant-first"),
    Case("MatMul", [weights(4, 3), Var((5, 3, 2))], label="constant-first-batch"),
    Case("MatMul", [weights(5, 4, 3), Var((5, 3, 2))], label="batched-constant-first"),
    Case("MatMul", [weights(3), Var((3, 2))], label="constant-vector-first"),
    Case("MatMul", [Var((2, 3)), Var((3, 4))], label="variables"),
    Case("MatMul", [Var((5, 2, 3)), Var((5, 3, 4))], label="variables-batch"),
    Case("MatMul", [Var((2, 2, 3)), Var((3,))], label="variables-vector"),
    Case("BatchNormalization", [_IMAGE, weights(3), weights(3, seed=1), weights(3, seed=2),
                                weights(3, low=0.1, high=2.0)], opset=9),
    Case("BatchNormalization", [Var((2, 5)), weights(5), weights(5, seed=1), weights(5, seed=2),
                                weights(5, low=0.1, high=2.0)], opset=15, attrs={"epsilon": 1e-3}, label="dense"),
    Case("InstanceNormalization", [_IMAGE, weights(3), weights(3, seed=1)]),
    Case("LayerNormalization", [_X, weights(4), weights(4, seed=1)]),
    Case("LayerNormalization", [_X, weights(3, 4)], attrs={"axis": 1, "epsilon": 1e-2}, label="axis-no-bias"),
    Case("GroupNormalization", [Var((1, 6, 4, 3)), weights(6), weights(6, seed=1)], opset=21,
         attrs={"num_groups": 3}),
]  # fmt: skip

_CONV = [
    Case("Conv", [_IMAGE, weights(4, 3, 3, 2), weights(4)]),
    Case("Conv", [_IMAGE, weights(4, 3, 3, 3)], attrs={"pads": [1, 2, 0, 1], "strides": [2, 1]}, label="pads-strides"),
    Case("Conv", [_IMAGE, weights(4, 3, 2, 2)], attrs={"dilations": [2, 3]}, label="dilations"),
    Case("Conv", [_IMAGE, weights(6, 1, 3, 3), weights(6)], attrs={"group": 3}, label="groups"),
    Case("Conv", [_IMAGE, weights(4, 3, 3, 2)], attrs={"auto_pad": "SAME_UPPER", "strides": [2, 2]}, label="same-upper"),
    Case("Conv", [_IMAGE, weights(4, 3, 2, 4)], attrs={"auto_pad": "SAME_LOWER"}, label="same-lower"),
    Case("Conv", [_IMAGE, weights(4, 3, 3, 2)], attrs={"auto_pad": "VALID"}, label="valid"),
    Case("Conv", [Var((1, 2, 9)), weights(3, 2, 3), weights(3)], attrs={"pads": [1, 1]}, label="1d"),
    Case("Conv", [Var((1, 2, 4, 5, 4)), weights(3, 2, 2, 3, 2), weights(3)], label="3d"),
    Case("Conv", [Var((2, 3, 5, 5)), weights(4, 3, 3, 3), weights(4)], opset=7, label="batch-of-2"),
    Case("ConvTranspose", [_IMAGE, weights(3, 4, 3, 2), weights(4)]),
    Case("ConvTranspose", [_IMAGE, weights(3, 4, 3, 3)],
         attrs={"pads": [1, 0, 1, 1], "strides": [2, 3], "output_padding": [1, 2]}, label="pads-strides"),
    Case("ConvTranspose", [Var((1, 4, 5, 5)), weights(4, 3, 3, 3), weights(6)],
         attrs={"group": 2, "dilations": [2, 1]}, label="groups"),
    Case("ConvTranspose", [_IMAGE, weights(3, 2, 3, 3)], attrs={"output_shape": [14, 13], "strides": [2, 2]},
         label="output-shape"),
    Case("ConvTranspose", [_IMAGE, weights(3, 2, 3, 3)], attrs={"auto_pad": "SAME_UPPER", "strides": [2, 2]},
         label="same-upper"),
    Case("ConvTranspose", [_IMAGE, weights(3, 2, 4, 4)], attrs={"auto_pad": "SAME_LOWER", "strides": [2, 2]},
         label="same-lower"),
    Case("ConvTranspose", [Var((1, 2, 5)), weights(2, 3, 3)], attrs={"strides": [2]}, label="1d"),
]  # fmt: skip

_POOL = [
    *(Case(op, [_IMAGE], attrs={"kernel_shape": [2, 3], "strides": [2, 1]}) for op in ("MaxPool", "AveragePool")),
    *(
        Case(op, [_IMAGE], attrs={"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, label="pads")
        for op in ("MaxPool", "AveragePool")
    ),
    *(
        Case(op, [_IMAGE], attrs={"kernel_shape": [3, 2], "strides": [3, 2], "ceil_mode": 1}, label="ceil")
        for op in ("MaxPool", "AveragePool")
    ),
    *(
        Case(op, [_IMAGE], attrs={"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}, label="same")
        for op in ("MaxPool", "AveragePool")
    ),
    *(Case(op, [Var((1, 2, 9))], attrs={"kernel_shape": [4], "strides": [2]}, label="1d") for op in ("MaxPool", "AveragePool")),
    *(Case(op, [Var((1, 2, 4, 5, 4))], attrs={"kernel_shape": [2, 2, 3]}, label="3d") for op in ("MaxPool", "AveragePool")),
    Case("MaxPool", [Var((1, 2, 8, 8), -3, -1)], attrs={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, label="negative"),
    Case("MaxPool", [_IMAGE], attrs={"kernel_shape": [2, 2], "dilations": [2, 3]}, label="dilations"),
    Case("AveragePool", [_IMAGE], attrs={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
         label="count-pad"),
    Case("AveragePool", [_IMAGE], opset=19, attrs={"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2],
         "count_include_pad": 1, "ceil_mode": 1}, label="count-pad-ceil"),
    Case("GlobalMaxPool", [_IMAGE]),
    Case("GlobalAveragePool", [_IMAGE]),
]  # fmt: skip

_SCALES = floats(1, 1, 2, 1.5)
_RESIZE = [
    *(
        Case("Resize", [_IMAGE, None, _SCALES], attrs={"mode": "nearest", "coordinate_transformation_mode": c, "nearest_mode": n},
             label=f"nearest-{c}-{n}")
        for c, n in (("half_pixel", "round_prefer_floor"), ("asymmetric", "floor"), ("align_corners", "round_prefer_ceil"),
                     ("pytorch_half_pixel", "ceil"))
    ),
    *(
        Case("Resize", [_IMAGE, None, _SCALES], attrs={"mode": "linear", "coordinate_transformation_mode": c}, label=f"linear-{c}")
        for c in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    ),
    Case("Resize", [_IMAGE, None, None, ints(1, 3, 10, 9)], attrs={"mode": "linear"}, label="linear-sizes"),
    Case("Resize", [_IMAGE, None, None, ints(1, 3, 4, 3)], attrs={"mode": "nearest"}, label="nearest-smaller"),
    Case("Resize", [_IMAGE, floats(1, 1, 2, 2)], opset=10, attrs={"mode": "nearest"}, label="10"),
    Case("Upsample", [_IMAGE, floats(1, 1, 2, 3)], opset=9, attrs={"mode": "nearest"}),
    Case("Upsample", [_IMAGE], opset=7, attrs={"mode": "nearest", "scales": [1.0, 1.0, 2.0, 2.0]}),
]  # fmt: skip

_REDUCE = [
    *(
        Case(op, [_X], opset=11, attrs={"axes": [1], "keepdims": k}, label=f"attribute-{k}")
        for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")
        for k in (0, 1)
    ),
    *(Case(op, [_X], attrs={"keepdims": 0}, label="all") for op in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin")),
    *(Case(op, [_X, ints(0, -1)], label="input") for op in ("ReduceSum", "ReduceMean", "ReduceMax")),
    Case("ArgMax", [Var((2, 5))], attrs={"axis": 1}),
    Case("ArgMax", [_X], attrs={"axis": 0, "keepdims": 0}, label="two-no-keepdims"),
    Case("ArgMax", [Var((1, 4))], attrs={"axis": -1, "select_last_index": 1}, label="last"),
    Case("ArgMin", [Var((2, 5))], opset=11, attrs={"axis": 1, "keepdims": 0}),
    Case("ReduceSum", [_X], attrs={"noop_with_empty_axes": 1}, label="noop"),
    Case("ReduceLogSum", [_POSITIVE, ints(1)]),
    Case("ReduceLogSumExp", [_X, ints(1)]),
    *(Case(op, [_X], attrs={"axis": 1}, label="axis-1-new") for op in ("Softmax", "LogSoftmax")),
    *(Case(op, [_X], opset=11, attrs={"axis": 1}, label="axis-1-flattens") for op in ("Softmax", "LogSoftmax")),
    *(Case(op, [_X], opset=11, label="default-old") for op in ("Softmax",)),
    *(Case(op, [_X], label="default") for op in ("Softmax",)),
    Case("CumSum", [_X, np.array(1, dtype=np.int64)]),
    Case("CumSum", [_X, np.array(-1, dtype=np.int64)], attrs={"exclusive": 1, "reverse": 1}, label="exclusive-reverse"),
]  # fmt: skip

_CONDITIONS = [
    Case("Where", [np.array([True, False, True, False]), _X, Var((3, 1))], label="constant"),
    Case("Where", [np.array([[True], [False], [True]]), _X, scalar(0.5)], label="constant-number"),
]

_LAYOUT = [
    Case("Reshape", [_X, ints(0, -1)]),
    Case("Reshape", [_X, ints(4, 6)], opset=7),
    Case("Flatten", [_X]),
    Case("Flatten", [_X], attrs={"axis": 0}, label="0"),
    Case("Flatten", [_X], attrs={"axis": -1}, label="minus-1"),
    Case("Squeeze", [Var((1, 3, 1))], opset=11, attrs={"axes": [0]}, label="attribute"),
    Case("Squeeze", [Var((1, 3, 1)), ints(-1)], label="input"),
    Case("Squeeze", [Var((1, 3, 1))], label="all"),
    Case("Unsqueeze", [_X], opset=11, attrs={"axes": [0, 4]}, label="attribute"),
    Case("Unsqueeze", [_X, ints(-1, 1)], label="input"),
    Case("Transpose", [_X]),
    Case("Transpose", [_X], attrs={"perm": [1, 0, 2]}, label="perm"),
    Case("Transpose", [Var((1, 5))], label="only-units-move"),
    Case("Concat", [_X, weights(2, 1, 4), Var((2, 2, 4))], attrs={"axis": 1}),
    Case("Concat", [_X], attrs={"axis": -1}, label="one"),
    Case("Split", [_X], opset=11, outputs=2, attrs={"axis": 1, "split": [1, 2]}, label="attribute"),
    Case("Split", [_X, ints(3, 1)], outputs=2, attrs={"axis": -1}, label="input"),
    Case("Split", [_X], opset=11, outputs=2, attrs={"axis": 2}, label="equal"),
    Case("Split", [_X], outputs=2, attrs={"axis": 1, "num_outputs": 2}, label="num-outputs"),
    Case("Slice", [_X], opset=9, attrs={"starts": [1, -3], "ends": [2, 100], "axes": [0, 2]}, label="attribute"),
    Case("Slice", [_X, ints(0, 1), ints(2, 3)], label="input"),
    Case("Slice", [_X, ints(-1), ints(-100), ints(2), ints(-2)], label="backward"),
    Case("Slice", [_X, ints(3), ints(0), ints(-1), ints(-1)], label="backward-partly"),
    Case("Gather", [_X, ints(2, 0, -1)], attrs={"axis": 1}),
    Case("Gather", [_X, np.array(1, dtype=np.int64)], label="scalar"),
    Case("Gather", [_X, np.array([[0, 1], [1, 1]])], attrs={"axis": -1}, label="matrix"),
    Case("GatherElements", [_X, np.array([[[0, 1, 2, -1]], [[1, 1, 0, 2]]])], attrs={"axis": 1}),
    Case("GatherND", [_X, np.array([[0, 1], [1, -1]])]),
    Case("GatherND", [_X, np.array([[1], [2]])], attrs={"batch_dims": 1}, label="batch"),
    Case("ScatterND", [_X, np.array([[0, 1], [1, 2]]), Var((2, 4))]),
    Case("ScatterND", [np.zeros((4, 4), np.float32), np.array([[1], [3]]), Var((2, 4))], label="into-constant"),
    Case("ScatterND", [_X, np.array([[0, 1, 2]]), floats(9.0)], label="constant-updates"),
    Case("ScatterElements", [_X, np.array([[[2, 0, 1, 0]], [[0, 1, 2, 1]]]), Var((2, 1, 4))], attrs={"axis": 1}),
    Case("Scatter", [_X, np.array([[[2, 0, 1, 0]]]), Var((1, 1, 4))], opset=9, attrs={"axis": 1}),
    Case("Expand", [Var((3, 1)), ints(2, 1, 4)]),
    Case("Tile", [_X, ints(1, 2, 3)]),
    Case("Pad", [_X, ints(0, 1, 2, 1, 0, 0)]),
    Case("Pad", [_X, ints(0, 1, 2, 1, 0, 0), scalar(0.5)], label="value"),
    Case("Pad", [_X, ints(0, 1, -1, 0, 0, -2)], label="crop"),
    Case("Pad", [_X, ints(0, 1, 2, 0, 2, 3)], attrs={"mode": "reflect"}, label="reflect"),
    Case("Pad", [_X, ints(0, 1, 2, 0, 2, 5)], attrs={"mode": "edge"}, label="edge"),
    Case("Pad", [_X, ints(1, 2), scalar(0.0), ints(-1)], label="axes"),
    Case("Pad", [_X], opset=10, attrs={"pads": [0, 0, 1, 0, 0, 1], "value": 0.25}, label="attribute"),
    Case("DepthToSpace", [Var((1, 8, 2, 3))], attrs={"blocksize": 2}),
    Case("DepthToSpace", [Var((1, 8, 2, 3))], attrs={"blocksize": 2, "mode": "CRD"}, label="crd"),
    Case("SpaceToDepth", [Var((1, 2, 4, 6))], attrs={"blocksize": 2}),
    Case("Trilu", [Var((4, 5))]),
    Case("Trilu", [Var((4, 5)), np.array(-1, dtype=np.int64)], attrs={"upper": 0}, label="lower"),
    Case("Relu", [Var((1, 3), symbolic=(0,))], label="unknown-batch"),
]

CASES = [*_UNARY, *_PARAMETERS, *_BINARY, *_LINEAR, *_CONV, *_POOL, *_RESIZE, *_REDUCE, *_CONDITIONS, *_LAYOUT]
