"""Bounds of a convolutional node's neurons from the patch of the input that they see.

A row that starts at one position of a convolutional network meets only a window of every node before
it. The rows of a few neighbouring positions are carried back together, cropped to their windows: the
same sums as `backward`, without the zeros around them.
Source: Xu et al. 2020, arXiv:2002.12920 (patches).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from verifier.bounds.backward import LinearForm, Planes, Sums, element_slack, weigh
from verifier.bounds.concretize import concretize
from verifier.bounds.interval import Enclosure
from verifier.bounds.network import Network
from verifier.bounds.relax_step import RelaxStep, dot
from verifier.graph.ir import Node
from verifier.ops.elementwise import ELEMENTWISE

#: linear nodes that keep positions apart
_LOCAL = frozenset(("Conv", "Add", "Sub", "Scale"))


@dataclass(frozen=True)
class Window:
    """Rows top to bottom and columns left to right of a plane, the ends left out."""

    top: int
    bottom: int
    left: int
    right: int

    def crop(self, x: Tensor) -> Tensor:
        """The window of x [..., H, W]."""
        return x[..., self.top : self.bottom, self.left : self.right]

    def union(self, other: Window) -> Window:
        """The smallest window around both."""
        ends = (max(self.bottom, other.bottom), min(self.left, other.left), max(self.right, other.right))
        return Window(min(self.top, other.top), *ends)

    def fill(self, x: Tensor, inner: Window) -> Tensor:
        """x [..., h, w] on `inner`, with zeros around it up to this window."""
        if inner == self:
            return x
        sides = (inner.left - self.left, self.right - inner.right, inner.top - self.top, self.bottom - inner.bottom)
        return functional.pad(x, sides)

    def before(self, node: Node, shape: tuple[int, ...]) -> Window:
        """What a convolution reads for this window, of an input of this shape."""
        (top, bottom), (left, right) = (
            (max(0, start), min(size, stop)) for (start, stop), size in zip(self._reach(node), shape[-2:], strict=True)
        )
        return Window(top, bottom, left, right)

    def _reach(self, node: Node) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns of the input, padding included, that a convolution reads for this window."""
        a, found = node.attrs, []
        for i, (start, stop) in enumerate(((self.top, self.bottom), (self.left, self.right))):
            first = start * a["strides"][i] - a["pads"][i]
            last = (stop - 1) * a["strides"][i] - a["pads"][i] + a["dilations"][i] * (a["weight"].shape[2 + i] - 1)
            found.append((first, last + 1))
        return found[0], found[1]

    def carry(self, node: Node, weight: Tensor, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Rows [R, C, h, w] on this window of a convolution, as rows on `before`."""
        a = node.attrs
        strides, dilations, groups = tuple(a["strides"]), tuple(a["dilations"]), a["groups"]
        if strides == (1, 1) and groups == 1:  # torch convolves faster than it transposes
            flipped = weight.flip(2, 3).transpose(0, 1)
            around = tuple(d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True))
            x = functional.conv2d(rows, flipped, padding=around, dilation=dilations)
        else:
            x = functional.conv_transpose2d(rows, weight, None, strides, 0, 0, groups, dilations)
        before = self.before(node, shape)
        (first, _), (start, _) = self._reach(node)
        return Window(before.top - first, before.bottom - first, before.left - start, before.right - start).crop(x)


def is_local(network: Network, name: str) -> bool:
    """Whether only convolutions and elementwise nodes lie between one image and this node."""
    needed = {name}
    for node in reversed(network.order):
        if node.name not in needed:
            continue
        if len(node.shape) != 4 or node.shape[0] != 1:
            return False
        if node.op not in _LOCAL and (node.op not in ELEMENTWISE or len(node.inputs) != 1):
            return False
        if node.op == "Conv" and node.attrs["weight"].ndim != 4:
            return False
        needed.update(node.inputs)
    return len(network.graph.inputs) == 1 and len(network.graph[network.graph.inputs[0]].shape) == 4


def patch_flops(network: Network, name: str, side: int) -> float:
    """Operations to carry one row of a tile of side x side positions back, away from the borders."""
    held, total = {name: side}, 0.0
    for node in reversed(network.order):
        if node.name not in held:
            continue
        reach = held[node.name]
        total += 20.0 * node.shape[1] * reach**2
        if node.op == "Conv":
            weight = node.attrs["weight"]
            total += 2.0 * weight.size * reach**2
            reach = (reach - 1) * max(node.attrs["strides"]) + max(weight.shape[2:])
        for source in node.inputs:
            size = min(reach, max(network.graph[source].shape[-2:]))
            held[source] = max(held.get(source, 0), size)
    return total


def tiles(shape: tuple[int, ...], neurons: Tensor, side: int) -> Iterator[Tensor]:
    """Flat neurons of a node [1, C, H, W], those of each tile of side x side positions together."""
    _, _, height, width = shape
    row, column = neurons // width % height, neurons % width
    tile = (row // side) * (-(-width // side)) + column // side
    order = tile.argsort(stable=True)
    counts = torch.unique_consecutive(tile[order], return_counts=True)[1]
    yield from neurons[order].split(counts.tolist())


def patch_bounds(network: Network, box: Enclosure, planes: Mapping[str, Planes], name: str, neurons: Tensor) -> Tensor:
    """Rigorous lower bounds of +z_i, then -z_i, for neighbouring flat neurons i: float64 [1, 2 * len(neurons)].

    Args:
        box: of one input box; `planes` enclose the relaxed nodes before `name`.
    """
    _, channels, height, width = network.graph[name].shape
    channel, row, column = neurons // (height * width), neurons // width % height, neurons % width
    window = Window(int(row.min()), int(row.max()) + 1, int(column.min()), int(column.max()) + 1)
    count = len(neurons)
    shape = (2 * count, channels, window.bottom - window.top, window.right - window.left)
    start = torch.zeros(shape, dtype=network.dtype, device=network.device)
    at = torch.arange(count, device=network.device)
    start[at, channel, row - window.top, column - window.left] = 1.0
    start[at + count, channel, row - window.top, column - window.left] = -1.0
    form, window = _carry(network, box, planes, {name: (start, window)})
    lower, upper = (window.crop(t[network.graph.inputs[0]]).flatten(1) for t in (box.lower, box.upper))
    return concretize(form, lower, upper)[0]


def _carry(
    network: Network, box: Enclosure, planes: Mapping[str, Planes], held: dict[str, tuple[Tensor, Window]]
) -> tuple[LinearForm, Window]:
    """Rows [R, C, h, w] on windows as linear forms of a window of the input; see `backward`."""
    count = next(iter(held.values()))[0].shape[0]
    zero = torch.zeros(1, count, dtype=torch.float64, device=network.device)
    sums = Sums(zero, zero, zero)

    def add(name: str, rows: Tensor, window: Window) -> None:
        if name in held:
            other, theirs = held[name]
            both = window.union(theirs)
            rows, other = both.fill(rows, window), both.fill(other, theirs)
            size = rows.abs() + other.abs()
            magnitude = both.crop(box.magnitude(name)).flatten(0, 1)
            sums.error = sums.error + 2 * network.own_unit * weigh(size.unsqueeze(0), magnitude)
            rows, window = rows + other, both
        held[name] = (rows, window)

    for node in reversed(network.order):
        if node.name not in held:
            continue
        rows, window = held.pop(node.name)
        sums.error = sums.error + _rounding(network, box, planes, node.name, rows, window)
        if node.op == "Conv":
            at, inner = network.at[node.name], network.graph[node.inputs[0]].shape
            sums.constant(rows.sum((2, 3), dtype=torch.float64).unsqueeze(0) @ at["bias"].double().reshape(-1))
            add(node.inputs[0], window.carry(node, at["weight"], rows, inner), window.before(node, inner))
        elif node.op == "Scale":
            scale, shift = (window.crop(network.at[node.name][k].broadcast_to(node.shape)) for k in ("scale", "shift"))
            sums.constant(dot(rows.unsqueeze(0), shift))
            add(node.inputs[0], rows * scale, window)
        elif node.op in ("Add", "Sub"):
            add(node.inputs[0], rows, window)
            add(node.inputs[1], rows if node.op == "Add" else -rows, window)
        else:
            plane = planes[node.name]
            parts = (plane.lower_slopes[0], plane.lower_offset, plane.upper_slopes[0], plane.upper_offset)
            # Planes are [1, 1, 1, C, H, W]: box, row, and the node's own leading axis.
            part, term = RelaxStep.apply(rows.unsqueeze(0), *(window.crop(p).flatten(1, 2) for p in parts))
            sums.constant(term)
            add(node.inputs[0], part[0], window)
    name = network.graph.inputs[0]
    rows, window = held[name]
    sums.error = sums.error + _rounding(network, box, planes, name, rows, window)
    return LinearForm(rows.flatten(1).unsqueeze(0), sums.offset, sums.rounded_up(network), {}), window


def _rounding(
    network: Network, box: Enclosure, planes: Mapping[str, Planes], name: str, rows: Tensor, window: Window
) -> Tensor:
    slack = window.crop(element_slack(network, name, box, planes)).reshape(1, *rows.shape[1:])
    return weigh(rows.abs().unsqueeze(0), slack)
