"""Operators that are linear in their inputs: values, magnitudes and transposed maps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from verifier.ops.base import Linear, NodeTensors

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


class Constant(Linear):
    """A result that depends on no input."""

    def value(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        return at["value"].unsqueeze(0)

    def magnitude(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        return torch.zeros_like(at["value"]).unsqueeze(0)

    def transpose(self, at: NodeTensors, coeffs: Tensor) -> tuple[Tensor, ...]:
        return ()

    def constant(self, at: NodeTensors) -> Tensor:
        return at["value"]

    def constant_magnitude(self, at: NodeTensors) -> Tensor:
        return at["abs:value"]


class Dense(Linear):
    """x @ weight + bias on the last axis."""

    def value(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        return inputs[0] @ at["weight"] + at["bias"]

    def magnitude(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        return inputs[0] @ at["abs:weight"]

    def transpose(self, at: NodeTensors, coeffs: Tensor) -> tuple[Tensor, ...]:
        return (coeffs @ at["weight"].T,)

    def constant(self, at: NodeTensors) -> Tensor:
        return at["bias"]

    def constant_magnitude(self, at: NodeTensors) -> Tensor:
        return at["bias_magnitude"]

    def summands(self, at: NodeTensors) -> int:
        return int(at.node.attrs["weight"].shape[0]) + 1

    def carried(self, at: NodeTensors) -> int:
        return int(at.node.attrs["weight"].shape[1])


class BlockDense(Linear):
    """One matrix per slice: x [..., K, in] -> [..., K, out]."""

    def value(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        return torch.einsum("...ki,kio->...ko", inputs[0], at["weight"])

    def magnitude(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        return torch.einsum("...ki,kio->...ko", inputs[0], at["abs:weight"])

    def transpose(self, at: NodeTensors, coeffs: Tensor) -> tuple[Tensor, ...]:
        return (torch.einsum("...ko,kio->...ki", coeffs, at["weight"]),)

    def summands(self, at: NodeTensors) -> int:
        return int(at.node.attrs["weight"].shape[1])

    def carried(self, at: NodeTensors) -> int:
        return int(at.node.attrs["weight"].shape[2])


def _fold(x: Tensor) -> Tensor:
    """[M, n, C, *spatial] -> [M*n, C, *spatial]."""
    return x.reshape(-1, *x.shape[2:])


def _size(shape: Sequence[int]) -> int:
    return math.prod(shape)


def _pad_ends(x: Tensor, begin: Sequence[int], end: Sequence[int]) -> Tensor:
    """Zero-pad (or, where negative, crop) the spatial axes of [m, C, *spatial]."""
    if not any(begin) and not any(end):
        return x
    pads: list[int] = []
    for b, e in zip(reversed(begin), reversed(end), strict=True):
        pads += [b, e]
    return functional.pad(x, pads)


class Conv(Linear):
    """Convolution over [n, C, *spatial], zero padding."""

    def _apply(self, at: NodeTensors, x: Tensor, weight: Tensor) -> Tensor:
        a, d = at.node.attrs, weight.ndim - 2
        begin, end = tuple(a["pads"][:d]), tuple(a["pads"][d:])
        x = _fold(x)
        if begin != end:
            x, begin = _pad_ends(x, begin, end), (0,) * d
        y = _CONV[d](x, weight, None, tuple(a["strides"]), begin, tuple(a["dilations"]), a["groups"])
        return y.reshape(-1, *at.shape)

    def value(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        return self._apply(at, inputs[0], at["weight"]) + self.constant(at)

    def magnitude(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        return self._apply(at, inputs[0], at["abs:weight"])

    def transpose(self, at: NodeTensors, coeffs: Tensor) -> tuple[Tensor, ...]:
        a, weight = at.node.attrs, at["weight"]
        d = weight.ndim - 2
        begin, end = tuple(a["pads"][:d]), tuple(a["pads"][d:])
        crop = begin if begin == end else (0,) * d
        sizes, kernel = at.input_shapes[0][2:], weight.shape[2:]
        # Rows of the padded input that no window reaches are missing at the far end.
        reached = [(at.shape[2 + i] - 1) * a["strides"][i] + a["dilations"][i] * (kernel[i] - 1) + 1 for i in range(d)]
        short = [sizes[i] + begin[i] + end[i] - reached[i] for i in range(d)]
        simple = begin == end and all(s < max(a["strides"][i], a["dilations"][i]) for i, s in enumerate(short))
        x = _CONV_TRANSPOSE[d](
            _fold(coeffs),
            weight,
            None,
            tuple(a["strides"]),
            crop if simple else 0,
            tuple(short) if simple else 0,
            a["groups"],
            tuple(a["dilations"]),
        )
        if not simple:
            x = _pad_ends(x, [-b for b in begin], [short[i] - end[i] for i in range(d)])
        return (x.reshape(-1, *at.input_shapes[0]),)

    def constant(self, at: NodeTensors) -> Tensor:
        return at["bias"].reshape(1, -1, *([1] * (len(at.shape) - 2)))

    def constant_magnitude(self, at: NodeTensors) -> Tensor:
        return at["bias_magnitude"].reshape(1, -1, *([1] * (len(at.shape) - 2)))

    def summands(self, at: NodeTensors) -> int:
        return int(at.node.attrs["weight"][0].size) + 1

    def carried(self, at: NodeTensors) -> int:
        a, kernel = at.node.attrs, at.node.attrs["weight"].shape[2:]
        steps = zip(kernel, a["strides"], a["dilations"], strict=True)
        # Without dilation, the windows that hold a given input lie `stride` apart.
        windows = math.prod(-(-k // s) if d == 1 else k for k, s, d in steps)
        return a["weight"].shape[0] // a["groups"] * windows


class ConvTranspose(Linear):
    """Transposed convolution over [n, C, *spatial]."""

    def _apply(self, at: NodeTensors, x: Tensor, weight: Tensor) -> Tensor:
        a, d = at.node.attrs, weight.ndim - 2
        y = _CONV_TRANSPOSE[d](_fold(x), weight, None, tuple(a["strides"]), 0, 0, a["groups"], tuple(a["dilations"]))
        end = [a["output_padding"][i] - a["pads"][d + i] for i in range(d)]
        return _pad_ends(y, [-p for p in a["pads"][:d]], end).reshape(-1, *at.shape)

    def value(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        return self._apply(at, inputs[0], at["weight"]) + self.constant(at)

    def magnitude(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        return self._apply(at, inputs[0], at["abs:weight"])

    def transpose(self, at: NodeTensors, coeffs: Tensor) -> tuple[Tensor, ...]:
        a, weight = at.node.attrs, at["weight"]
        d = weight.ndim - 2
        end = [a["pads"][d + i] - a["output_padding"][i] for i in range(d)]
        x = _pad_ends(_fold(coeffs), a["pads"][:d], end)
        x = _CONV[d](x, weight, None, tuple(a["strides"]), 0, tuple(a["dilations"]), a["groups"])
        return (x.reshape(-1, *at.input_shapes[0]),)

    def constant(self, at: NodeTensors) -> Tensor:
        return at["bias"].reshape(1, -1, *([1] * (len(at.shape) - 2)))

    def constant_magnitude(self, at: NodeTensors) -> Tensor:
        return at["bias_magnitude"].reshape(1, -1, *([1] * (len(at.shape) - 2)))

    def summands(self, at: NodeTensors) -> int:
        w = at.node.attrs["weight"].shape
        return w[0] // at.node.attrs["groups"] * at.node.attrs["weight"][0, 0].size + 1

    def carried(self, at: NodeTensors) -> int:
        return int(at.node.attrs["weight"][0].size)


class Scale(Linear):
    """x * scale + shift with constants."""

    def value(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        return inputs[0] * at["scale"] + at["shift"]

    def magnitude(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        return inputs[0] * at["abs:scale"]

    def transpose(self, at: NodeTensors, coeffs: Tensor) -> tuple[Tensor, ...]:
        return (coeffs * at["scale"],)

    def constant(self, at: NodeTensors) -> Tensor:
        return at["shift"]

    def constant_magnitude(self, at: NodeTensors) -> Tensor:
        return at["bias_magnitude"]

    def ends(self, at, lows, highs):  # type: ignore[no-untyped-def]
        rising = at["scale"] >= 0
        return [torch.where(rising, lows[0], highs[0])], [torch.where(rising, highs[0], lows[0])]

    def keeps_sign(self, at: NodeTensors) -> bool:
        return at.once("keeps sign", self._keeps_sign)

    def _keeps_sign(self, at: NodeTensors) -> bool:
        """A shift as large as its parts' magnitudes is a sum of numbers >= 0."""
        whole = at["bias_magnitude"] <= at["shift"]
        return bool((at["scale"] >= 0).all()) and bool(whole.all())

    def summands(self, at: NodeTensors) -> int:
        return 2


class Add(Linear):
    """x + y."""

    def value(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        return inputs[0] + inputs[1]

    def magnitude(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        return inputs[0] + inputs[1]

    def transpose(self, at: NodeTensors, coeffs: Tensor) -> tuple[Tensor, ...]:
        return coeffs, coeffs

    def ends(self, at, lows, highs):  # type: ignore[no-untyped-def]
        return lows, highs

    def keeps_sign(self, at: NodeTensors) -> bool:
        return True

    def summands(self, at: NodeTensors) -> int:
        return 1


class Sub(Add):
    """x - y."""

    def value(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        return inputs[0] - inputs[1]

    def transpose(self, at: NodeTensors, coeffs: Tensor) -> tuple[Tensor, ...]:
        return coeffs, -coeffs

    def ends(self, at, lows, highs):  # type: ignore[no-untyped-def]
        return [lows[0], highs[1]], [highs[0], lows[1]]

    def keeps_sign(self, at: NodeTensors) -> bool:
        return False


class Reshape(Linear):
    """The same numbers under another shape."""

    def value(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        return inputs[0].reshape(-1, *at.shape)

    magnitude = value

    def transpose(self, at: NodeTensors, coeffs: Tensor) -> tuple[Tensor, ...]:
        return (coeffs.reshape(-1, *at.input_shapes[0]),)


class Transpose(Linear):
    """Axes permuted by `perm`."""

    def value(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        return inputs[0].permute(0, *(1 + p for p in at.node.attrs["perm"]))

    magnitude = value

    def transpose(self, at: NodeTensors, coeffs: Tensor) -> tuple[Tensor, ...]:
        perm = list(at.node.attrs["perm"])
        return (coeffs.permute(0, *(1 + perm.index(i) for i in range(len(perm)))),)


class Select(Linear):
    """result.flat[i] = x.flat[indices[i]], 0 where the index is -1."""

    def _indices(self, at: NodeTensors) -> Tensor:
        """Flat indices; the missing ones point behind the end, where a zero is kept."""
        indices = at["indices"].reshape(-1)
        return torch.where(indices < 0, _size(at.input_shapes[0]), indices)

    def value(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        flat = inputs[0].reshape(-1, _size(at.input_shapes[0]))
        if at.node.attrs["indices"].min(initial=0) < 0:
            flat = functional.pad(flat, (0, 1))
        return flat.index_select(1, at.once("flat indices", self._indices)).reshape(-1, *at.shape)

    magnitude = value

    def transpose(self, at: NodeTensors, coeffs: Tensor) -> tuple[Tensor, ...]:
        flat = coeffs.reshape(-1, _size(at.shape))
        size = _size(at.input_shapes[0])
        x = flat.new_zeros(flat.shape[0], size + 1).index_add(1, at.once("flat indices", self._indices), flat)
        return (x[:, :size].reshape(-1, *at.input_shapes[0]),)

    def carried(self, at: NodeTensors) -> int:
        """Largest multiplicity of an index; 0 when data only moves."""
        return at.once("multiplicity", self._multiplicity)

    def _multiplicity(self, at: NodeTensors) -> int:
        counts = torch.bincount(at["indices"].reshape(-1) + 1)[1:]
        most = int(counts.max()) if counts.numel() else 0
        return most if most > 1 else 0


class Concat(Linear):
    """Inputs joined along `axis`."""

    def value(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        lead = max(x.shape[0] for x in inputs)
        axis = at.node.attrs["axis"] % len(at.shape)
        return torch.cat([x.expand(lead, *x.shape[1:]) for x in inputs], dim=1 + axis)

    magnitude = value

    def transpose(self, at: NodeTensors, coeffs: Tensor) -> tuple[Tensor, ...]:
        axis = at.node.attrs["axis"] % len(at.shape)
        return tuple(coeffs.split([s[axis] for s in at.input_shapes], dim=1 + axis))


class ReduceSum(Linear):
    """Sum over `axes`."""

    def _axes(self, at: NodeTensors) -> tuple[int, ...]:
        rank = len(at.input_shapes[0])
        return tuple(sorted(1 + a % rank for a in at.node.attrs["axes"]))

    def value(self, at: NodeTensors, inputs: Sequence[Tensor]) -> Tensor:
        return inputs[0].sum(dim=self._axes(at), keepdim=bool(at.node.attrs["keepdims"]))

    magnitude = value

    def transpose(self, at: NodeTensors, coeffs: Tensor) -> tuple[Tensor, ...]:
        if not at.node.attrs["keepdims"]:
            for axis in self._axes(at):
                coeffs = coeffs.unsqueeze(axis)
        return (coeffs.expand(-1, *at.input_shapes[0]),)

    def ends(self, at, lows, highs):  # type: ignore[no-untyped-def]
        return lows, highs

    def keeps_sign(self, at: NodeTensors) -> bool:
        return True

    def summands(self, at: NodeTensors) -> int:
        return math.prod(at.input_shapes[0][axis - 1] for axis in self._axes(at))

    def carried(self, at: NodeTensors) -> int:
        return 0


LINEAR: dict[str, Linear] = {
    "Constant": Constant(),
    "Dense": Dense(),
    "BlockDense": BlockDense(),
    "Conv": Conv(),
    "ConvTranspose": ConvTranspose(),
    "Scale": Scale(),
    "Add": Add(),
    "Sub": Sub(),
    "Reshape": Reshape(),
    "Transpose": Transpose(),
    "Select": Select(),
    "Concat": Concat(),
    "ReduceSum": ReduceSum(),
}
