"""Modules and exported programs: the graph computes what the module computes."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from verifier.errors import NetworkError, UnsupportedOperator
from verifier.graph.evaluate import evaluate
from verifier.graph.torch.importer import load_module, load_program


class Fn(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *x):
        return self.function(*x)


class ResidualBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.shortcut = nn.Sequential(nn.Conv2d(3, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6))
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(6, 4)
        for norm in (self.norm1, self.norm2, self.shortcut[1]):
            nn.init.uniform_(norm.running_mean, -0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)

    def forward(self, x):
        y = self.norm2(self.second(self.relu(self.norm1(self.first(x)))))
        y += self.shortcut(x)
        return self.head(functional.adaptive_avg_pool2d(self.relu(y), 1).flatten(1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(1, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.mlp, self.head = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)), nn.Linear(8, 3)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.head((x + self.mlp(self.norm2(x)))[:, 0])


class Rows(nn.Module):
    """Attention written with split, chunk and scaled_dot_product_attention."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(6, 18)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return functional.scaled_dot_product_attention(q, k, v)


def _interpolate(**options):
    return Fn(lambda x: functional.interpolate(x, **options))


ACTIVATIONS = (
    *(nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.ELU(0.7), nn.SELU(), nn.CELU(0.7), nn.Softplus(), nn.SiLU()),
    *(nn.GELU(), nn.GELU("tanh"), nn.Sigmoid(), nn.Tanh(), nn.Hardsigmoid(), nn.Hardswish(), nn.Hardtanh(-1, 2)),
    *(nn.Softsign(), nn.Mish(), nn.LogSigmoid(), nn.Softmin(1), nn.Threshold(0.1, 0.5), nn.Tanhshrink()),
    *(nn.Softplus(2.0), nn.Softmax(0)),
)
IMAGE = (1, 3, 9, 8)
CASES = {
    "mlp": (nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 2)), [(1, 5)]),
    "no-batch-axis": (nn.Sequential(nn.Linear(5, 7), nn.Tanh()), [(5,)]),
    "double": (nn.Sequential(nn.Linear(5, 7), nn.Sigmoid()).double(), [(1, 5)]),
    "residual": (ResidualBlock(), [IMAGE]),
    "attention": (Attention(), [(1, 1, 12, 8)]),
    "sdpa": (Rows(), [(2, 5, 6)]),
    "conv1d-same": (nn.Conv1d(2, 3, 4, padding="same", dilation=2), [(1, 2, 9)]),
    "conv3d": (nn.Conv3d(2, 4, 2, groups=2, stride=(1, 2, 1)), [(1, 2, 4, 5, 4)]),
    "conv-transpose": (nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1, bias=False), [IMAGE]),
    "max-pool": (nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), [IMAGE]),
    "avg-pool": (nn.AvgPool2d(3, stride=2, padding=1), [IMAGE]),
    "avg-pool-1d": (nn.AvgPool1d(2, count_include_pad=False), [(1, 2, 9)]),
    "adaptive": (nn.AdaptiveAvgPool2d((4, 3)), [IMAGE]),
    "layer-norm": (nn.LayerNorm([3, 4]), [(2, 3, 4)]),
    "group-norm": (nn.GroupNorm(2, 4), [(1, 4, 3, 3)]),
    "instance-norm": (nn.InstanceNorm2d(3, affine=True), [IMAGE]),
    "batch-norm-1d": (nn.BatchNorm1d(5), [(1, 5)]),
    "nearest": (_interpolate(scale_factor=2), [IMAGE]),
    "nearest-size": (_interpolate(size=(5, 13)), [IMAGE]),
    "bilinear": (_interpolate(scale_factor=2, mode="bilinear"), [IMAGE]),
    "bilinear-corners": (_interpolate(size=(5, 13), mode="bilinear", align_corners=True), [IMAGE]),
    "pads": (nn.Sequential(nn.ReflectionPad2d((1, 2, 0, 1)), nn.ZeroPad2d(1), nn.ReplicationPad2d(2)), [IMAGE]),
    "pixel-shuffle": (nn.PixelShuffle(2), [(1, 8, 3, 2)]),
    "prelu": (nn.PReLU(3, init=0.3), [IMAGE]),
    "unflatten": (nn.Sequential(nn.Flatten(), nn.Unflatten(1, (4, 54))), [IMAGE]),
    "two-inputs": (Fn(lambda x, y: torch.cat([x * y, x / (2 + y.abs()), torch.maximum(x, y)], 1)), [(1, 4), (1, 4)]),
    "slices": (Fn(lambda x: torch.stack([x[:, 1:3], x[:, ::2], x[:, -2:]], 1).flip(-1).roll(1, 2)), [(1, 4)]),
    "index": (Fn(lambda x: x[:, torch.tensor([2, 0, 0])].unsqueeze(0).squeeze()), [(1, 4)]),
    "reductions": (Fn(lambda x: x.sum(1) + x.mean(1) + x.amax(1) + x.min(1).values + x.logsumexp(1)), [(2, 5)]),
    "softmaxes": (Fn(lambda x: torch.softmax(x, 1) + torch.log_softmax(x, -1)), [(2, 5)]),
    "compare": (Fn(lambda x: torch.where(x > 0.1, x, 2 * x - 1) + (x <= 0.3).float()), [(2, 5)]),
    "mask": (Fn(lambda x: x.masked_fill(torch.tril(torch.ones(5, 5, dtype=torch.bool)), -3.0)), [(5, 5)]),
    "in-place": (Fn(lambda x: (x + 1).relu_().add_(2).mul_(x.clone().clamp_(-0.5, 0.5))), [(2, 5)]),
    "constants": (Fn(lambda x: x * torch.arange(5) + torch.linspace(0, 1, 5) - torch.eye(5)), [(5, 5)]),
    "matmuls": (Fn(lambda x: torch.einsum("ij,kj->ik", x, x) + torch.bmm(x[None], x[None].mT)[0]), [(3, 5)]),
    "powers": (Fn(lambda x: (x**2 + 1) ** 0.5 + 1 / (x**3).exp() + torch.rsqrt(x.square() + 1)), [(2, 5)]),
    "round": (Fn(lambda x: (3 * x).round() + x.floor() - x.ceil() + x.sign() + x.neg().sin() + x.cos()), [(2, 5)]),
    "activations": (Fn(lambda x: torch.stack([layer(x) for layer in ACTIVATIONS])), [(2, 5)]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_graph_agrees_with_the_module(name):
    torch.manual_seed(0)
    module, shapes = CASES[name]
    graph = load_module(module, *shapes)
    assert module.training, "the module's mode is as it was"
    points = np.random.default_rng(1).uniform(-1.5, 1.5, size=(8, graph.input_size))
    module.eval()
    for point in points:
        parts = np.split(point, np.cumsum([int(np.prod(s)) for s in shapes])[:-1])
        dtype = torch.float64 if graph.dtype == "float64" else torch.float32
        with torch.no_grad():
            theirs = module(*(torch.tensor(p).to(dtype).reshape(s) for p, s in zip(parts, shapes, strict=True)))
        expected = theirs.double().numpy().reshape(-1)
        got = evaluate(graph, point.astype(graph.dtype))[0]
        np.testing.assert_allclose(got, expected, rtol=0, atol=3e-6 * max(1.0, np.abs(expected).max()))
    module.train()


def test_a_program_that_was_exported_before():
    module = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval()
    graph = load_program(torch.export.export(module, (torch.zeros(1, 4),)))
    point = np.linspace(-1, 1, 4)
    expected = module(torch.tensor(point, dtype=torch.float32)[None]).detach().numpy()
    np.testing.assert_allclose(evaluate(graph, point), expected, atol=1e-6)


def test_what_cannot_be_read_says_so():
    with pytest.raises(UnsupportedOperator, match=r"aten::sinh at node 'sinh'"):
        load_module(Fn(torch.sinh), (1, 3))
    with pytest.raises(NetworkError, match=r"torch\.export cannot trace"):
        load_module(nn.Linear(3, 2), (1, 4))
    with pytest.raises(NetworkError, match="input shape"):
        load_module(nn.Linear(3, 2))
    broken = nn.Linear(3, 2)
    nn.init.constant_(broken.weight, float("nan"))
    with pytest.raises(NetworkError, match="NaN"):
        load_module(broken, (1, 3))
