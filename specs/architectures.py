"""The shipped architectures as torch modules, each with the function that writes it as ONNX.

All classify 8x8 grey images with values in [0, 1] into ten digits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from onnx_writer import OnnxWriter
from torch import Tensor, nn

CLASSES = 10


@dataclass(frozen=True)
class Architecture:
    """A network to train and to write.

    Attributes:
        input_shape: of the ONNX input, the batch axis 1 included.
        make: builds the untrained module; its input is [B, *input_shape[1:]].
        opset: ONNX operator set of the file.
        epochs: passes over the training images.
        reach: factor on the radii of properties meant to hold; below 1 where proofs are harder.
    """

    name: str
    input_shape: tuple[int, ...]
    make: Callable[[], nn.Module]
    opset: int = 13
    epochs: int = 60
    reach: float = 1.0


class Residual(nn.Module):
    """relu(x + conv(relu(conv(x))))."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


class Block(nn.Module):
    """A pre-norm transformer block with one head: attention, then a two-layer relu network."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width, eps=1e-2), nn.LayerNorm(width, eps=1e-2)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm_1(x)
        weights = torch.softmax(self.query(h) @ self.key(h).transpose(1, 2) / math.sqrt(x.shape[-1]), dim=-1)
        x = x + self.project(weights @ self.value(h))
        return x + self.down(torch.relu(self.up(self.norm_2(x))))


class Attention(nn.Module):
    """Eight tokens (the image's rows), a linear embedding with positions, two blocks, mean, linear."""

    def __init__(self, width: int = 8, hidden: int = 16):
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.positions = nn.Parameter(0.1 * torch.randn(1, 8, width))
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(2))
        self.classify = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.reshape(-1, 8, 8)) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.classify(x.mean(dim=1))


def _dense(*widths: int, activation: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), activation()]
        return nn.Sequential(*layers[:-1])

    return make


def _convolutional(*middle: Callable[[], nn.Module], features: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        return nn.Sequential(*(m() for m in middle), nn.Flatten(), nn.Linear(features, CLASSES))

    return make


IMAGE, FLAT = (1, 1, 8, 8), (1, 64)
ARCHITECTURES = (
    Architecture("fc", FLAT, _dense(64, 32, 32, CLASSES, activation=nn.ReLU), opset=11),
    Architecture("sigmoid", FLAT, _dense(64, 24, 24, CLASSES, activation=nn.Sigmoid)),
    Architecture("tanh", FLAT, _dense(64, 24, 24, CLASSES, activation=nn.Tanh)),
    Architecture("gelu", FLAT, _dense(64, 24, 24, CLASSES, activation=nn.GELU), opset=20),
    Architecture(
        "conv", IMAGE,
        _convolutional(
            lambda: nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU, lambda: nn.Conv2d(6, 12, 3, 2, 1), nn.ReLU, features=48
        ),
    ),
    Architecture(
        "leaky", IMAGE,
        _convolutional(
            lambda: nn.Conv2d(1, 6, 4, 2, 1), lambda: nn.LeakyReLU(0.1),
            lambda: nn.Conv2d(6, 8, 3, 2, 1), lambda: nn.LeakyReLU(0.1), features=32,
        ),
    ),
    Architecture(
        "residual", IMAGE,
        _convolutional(lambda: nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU, lambda: Residual(6), features=96),
        opset=17,
    ),
    Architecture(
        "batchnorm", IMAGE,
        _convolutional(
            lambda: nn.Conv2d(1, 6, 3, 2, 1), lambda: nn.BatchNorm2d(6), nn.ReLU,
            lambda: nn.Conv2d(6, 8, 3, 2, 1), lambda: nn.BatchNorm2d(8), nn.ReLU, features=32,
        ),
        opset=15,
    ),
    Architecture(
        "maxpool", IMAGE,
        _convolutional(
            lambda: nn.Conv2d(1, 6, 3, 1, 1), nn.ReLU, lambda: nn.MaxPool2d(2),
            lambda: nn.Conv2d(6, 8, 3, 1, 1), nn.ReLU, lambda: nn.MaxPool2d(2), features=32,
        ),
        reach=0.8,
    ),
    Architecture(
        "avgpool", IMAGE,
        _convolutional(
            lambda: nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU, lambda: nn.AvgPool2d(2),
            lambda: nn.Conv2d(8, 12, 3, 1, 1), nn.ReLU, lambda: nn.AvgPool2d(2), features=48,
        ),
    ),
    Architecture("attention", FLAT, Attention, opset=17, epochs=120, reach=0.15),
)  # fmt: skip


def write(architecture: Architecture, module: nn.Module, out: OnnxWriter) -> None:
    """Append the trained module's nodes to `out`."""
    if isinstance(module, Attention):
        _write_attention(module, out)
        return
    assert isinstance(module, nn.Sequential)
    for layer in module:
        _write_layer(layer, out)


def _numpy(tensor: Tensor | None) -> np.ndarray:
    assert tensor is not None
    return tensor.detach().numpy()


def _write_layer(layer: nn.Module, out: OnnxWriter) -> None:
    match layer:
        case nn.Linear():
            out.gemm(_numpy(layer.weight), _numpy(layer.bias))
        case nn.Conv2d():
            assert isinstance(layer.padding, tuple)
            out.conv(_numpy(layer.weight), _numpy(layer.bias), layer.stride[0], layer.padding[0])
        case nn.BatchNorm2d():
            out.batch_norm(*map(_numpy, (layer.weight, layer.bias, layer.running_mean, layer.running_var)))
        case Residual():
            start = out.last
            for conv in (layer.first, layer.second):
                out.conv(_numpy(conv.weight), _numpy(conv.bias), 1, 1)
                if conv is layer.first:
                    out.add("Relu")
            out.add("Relu", out.add("Add", out.last, start))
        case nn.LeakyReLU():
            out.add("LeakyRelu", alpha=layer.negative_slope)
        case nn.MaxPool2d():
            out.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
        case nn.AvgPool2d():
            out.add("AveragePool", kernel_shape=[2, 2], strides=[2, 2])
        case nn.Flatten():
            out.add("Flatten", axis=1)
        case nn.GELU():
            _write_gelu(out)
        case _:
            out.add({nn.ReLU: "Relu", nn.Sigmoid: "Sigmoid", nn.Tanh: "Tanh"}[type(layer)])


def _write_gelu(out: OnnxWriter) -> None:
    """The first GELU as the chain older exporters leave, later ones as the operator."""
    x = out.last
    if out.has("Erf"):
        out.add("Gelu", approximate="none")
        return
    scaled = out.add("Div", x, out.constant(np.array(math.sqrt(2.0)), "sqrt2"))
    shifted = out.add("Add", out.add("Erf", scaled), out.constant(np.array(1.0), "one"))
    out.add("Mul", out.add("Mul", x, shifted), out.constant(np.array(0.5), "half"))


def _write_attention(module: Attention, out: OnnxWriter) -> None:
    width = module.embed.out_features
    tokens = out.add("Reshape", out.last, out.constant(np.array([1, 8, 8]), "shape"))
    out.affine(_numpy(module.embed.weight), _numpy(module.embed.bias), tokens)
    x = out.add("Add", out.last, out.constant(_numpy(module.positions), "positions"))
    for number, block in enumerate(module.blocks):
        assert isinstance(block, Block)
        # One block with the LayerNormalization operator, one with the chain it stands for.
        norm = _write_layer_norm if number == 0 else _write_layer_norm_chain
        h = norm(block.norm_1, x, out)
        query, key, value = (
            out.affine(_numpy(m.weight), _numpy(m.bias), h) for m in (block.query, block.key, block.value)
        )
        scores = out.add("MatMul", query, out.add("Transpose", key, perm=[0, 2, 1]))
        scores = out.add("Div", scores, out.constant(np.array(math.sqrt(width)), "scale"))
        mixed = out.add("MatMul", out.add("Softmax", scores, axis=-1), value)
        x = out.add("Add", x, out.affine(_numpy(block.project.weight), _numpy(block.project.bias), mixed))
        out.affine(_numpy(block.up.weight), _numpy(block.up.bias), norm(block.norm_2, x, out))
        out.add("Relu")
        x = out.add("Add", x, out.affine(_numpy(block.down.weight), _numpy(block.down.bias)))
    out.add("ReduceMean", x, axes=[1], keepdims=0)
    out.gemm(_numpy(module.classify.weight), _numpy(module.classify.bias))


def _write_layer_norm(norm: nn.LayerNorm, x: str, out: OnnxWriter) -> str:
    weight, bias = out.constant(_numpy(norm.weight), "weight"), out.constant(_numpy(norm.bias), "bias")
    return out.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=norm.eps)


def _write_layer_norm_chain(norm: nn.LayerNorm, x: str, out: OnnxWriter) -> str:
    centred = out.add("Sub", x, out.add("ReduceMean", x, axes=[-1], keepdims=1))
    square = out.add("Pow", centred, out.constant(np.array(2.0), "two"))
    variance = out.add("ReduceMean", square, axes=[-1], keepdims=1)
    deviation = out.add("Sqrt", out.add("Add", variance, out.constant(np.array(norm.eps), "epsilon")))
    scaled = out.add("Mul", out.add("Div", centred, deviation), out.constant(_numpy(norm.weight), "weight"))
    return out.add("Add", scaled, out.constant(_numpy(norm.bias), "bias"))
