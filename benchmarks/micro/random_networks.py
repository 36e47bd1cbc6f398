"""Seeded random relu networks of common shapes, for the measurements in this folder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from verifier.graph.ir import Graph, GraphBuilder


class RandomNetwork:
    """A network written layer by layer, with He-scaled weights and small biases.

    Args:
        shape: of one input, without the batch axis.
        seed: decides every weight.
    """

    def __init__(self, shape: Sequence[int], seed: int = 0):
        self._rng = np.random.default_rng(seed)
        self._builder = GraphBuilder()
        self.shape = (1, *shape)
        self.last = self._builder.add("Input", (), self.shape, "x")
        self._count = 0

    def _weights(self, shape: tuple[int, ...], fan_in: int, outputs: int) -> dict[str, np.ndarray]:
        weight = self._rng.normal(size=shape) * np.sqrt(2.0 / fan_in)
        return {"weight": weight.astype(np.float32), "bias": (0.1 * self._rng.normal(size=outputs)).astype(np.float32)}

    def _add(self, op: str, inputs: tuple[str, ...], shape: tuple[int, ...], **attributes: object) -> str:
        self._count += 1
        self.shape = shape
        self.last = self._builder.add(op, inputs, shape, f"{op.lower()}{self._count}", **attributes)
        return self.last

    def flatten(self) -> None:
        """One axis of features."""
        if len(self.shape) > 2:
            shape = (1, int(np.prod(self.shape)))
            self._add("Reshape", (self.last,), shape)

    def dense(self, outputs: int) -> None:
        """A dense layer on the flattened features."""
        self.flatten()
        inputs = self.shape[1]
        self._add("Dense", (self.last,), (1, outputs), **self._weights((inputs, outputs), inputs, outputs))

    def conv(self, channels: int, kernel: int, stride: int, padding: int) -> None:
        """A square convolution."""
        _, c, h, w = self.shape
        out = ((h + 2 * padding - kernel) // stride + 1, (w + 2 * padding - kernel) // stride + 1)
        settings = {"strides": (stride,) * 2, "pads": (padding,) * 4, "dilations": (1, 1), "groups": 1}
        weights = self._weights((channels, c, kernel, kernel), c * kernel * kernel, channels)
        self._add("Conv", (self.last,), (1, channels, *out), **weights, **settings)

    def relu(self) -> None:
        """A relu on the last layer."""
        self._add("Relu", (self.last,), self.shape)

    def add(self, other: str) -> None:
        """A residual sum with an earlier node of the same shape."""
        self._add("Add", (self.last, other), self.shape)

    def finish(self) -> Graph:
        """The graph with the last node as its output."""
        return self._builder.finish(("x",), (self.last,))


def dense_network(inputs: int, widths: Sequence[int], outputs: int, seed: int = 0) -> Graph:
    """Dense relu layers of these widths."""
    net = RandomNetwork((inputs,), seed)
    for width in widths:
        net.dense(width)
        net.relu()
    net.dense(outputs)
    return net.finish()


def convolutional_network(seed: int = 0) -> Graph:
    """3x32x32, two 4x4 convolutions of stride 2 with 16 and 32 channels, 100 neurons, 10 outputs."""
    net = RandomNetwork((3, 32, 32), seed)
    for channels in (16, 32):
        net.conv(channels, 4, 2, 1)
        net.relu()
    net.dense(100)
    net.relu()
    net.dense(10)
    return net.finish()


def residual_network(seed: int = 0) -> Graph:
    """3x32x32, a convolution of stride 2, two residual blocks of 16 channels, 10 outputs."""
    net = RandomNetwork((3, 32, 32), seed)
    net.conv(16, 4, 2, 1)
    net.relu()
    for _ in range(2):
        source = net.last
        net.conv(16, 3, 1, 1)
        net.relu()
        net.conv(16, 3, 1, 1)
        net.add(source)
        net.relu()
    net.dense(10)
    return net.finish()
