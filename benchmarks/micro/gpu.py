"""What the GPU kernels reach, in one command; `--device cpu` runs the CPU twins of the same code.

    python benchmarks/micro/gpu.py [--device cuda] [--boxes 65536] [--repeats 7]

1. The fused relaxation step against a copy of the same tensor: bytes per second, and the share. The step reads and
   writes every coefficient once, as the copy does, and reads its lines, which are shared by the rows of a box; where
   rows are few these count, so that the share of the step's time that the copy takes stands beside it.
2. The whole-network pass against the torch engine on the same device, on an ACAS Xu sized network, and against
   auto_LiRPA's backward bounds (CROWN) where that is installed: boxes per second and the mean bound.
Runs alternate in one process; medians. Bounds by auto_LiRPA do not account for rounding.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from random_networks import dense_network

from verifier.bounds.torch_engine import TorchEngine
from verifier.graph.ir import Graph
from verifier.kernels.fused import LineArrays, StageCosts, relax_step


def seconds(device: str, repeats: int, *tasks: Callable[[], object], at_once: int = 1) -> list[float]:
    """Median time of each task; the tasks take turns, `at_once` calls a turn, after one round to warm up."""
    found: list[list[float]] = [[] for _ in tasks]
    for turn in range(repeats + 1):
        for task, times in zip(tasks, found, strict=True):
            if device == "cuda":
                torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(at_once):
                task()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                times.append((time.perf_counter() - begin) / at_once)
    return [statistics.median(times) for times in found]


def relaxation(device: str, repeats: int, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """One line about the relaxation step on coefficients of this shape [B, S, N]."""
    boxes, _, n = shape
    coeffs = torch.randn(shape, dtype=dtype, device=device)
    lines = LineArrays(*(torch.rand(boxes, n, dtype=dtype, device=device) for _ in range(4)))
    costs = StageCosts(torch.rand_like(lines.slope_lower), coeffs.new_zeros(n), torch.rand_like(lines.slope_lower))
    target = torch.empty_like(coeffs)
    many = 20 if device == "cuda" else 1  # one call is too short to be timed from Python
    copy_s, step_s, bare_s = seconds(
        device,
        repeats,
        lambda: target.copy_(coeffs),
        lambda: relax_step(coeffs, lines, costs),
        lambda: relax_step(coeffs, lines),
        at_once=many,
    )
    copied, lines_read, costs_read = (
        x * coeffs.element_size() / 1e9 for x in (2 * coeffs.numel(), 4 * boxes * n, 2 * boxes * n + n)
    )
    rate, step_rate = copied / copy_s, (copied + lines_read + costs_read) / step_s
    bare_rate = (copied + lines_read) / bare_s
    print(
        f"relax step {list(shape)} {str(dtype)[6:]}: {step_rate:.0f} GB/s, copy {rate:.0f} GB/s, share "
        f"{100 * step_rate / rate:.0f} %; without costs of z {100 * bare_rate / rate:.0f} %; the copy takes "
        f"{100 * copy_s / step_s:.0f} % of the step's time",
        flush=True,
    )


def crown_of_auto_lirpa(graph: Graph, lower: np.ndarray, upper: np.ndarray, device: str) -> Callable[[], torch.Tensor]:
    """auto_LiRPA's lower bounds of the outputs over all boxes at once."""
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    layers: list[torch.nn.Module] = []
    for node in graph.nodes.values():
        if node.op == "Dense":
            weight, bias = (torch.from_numpy(np.asarray(node.attrs[k])) for k in ("weight", "bias"))
            layer = torch.nn.Linear(*weight.shape)
            layer.weight.data, layer.bias.data = weight.T.contiguous(), bias
            layers.append(layer)
        elif node.op == "Relu":
            layers.append(torch.nn.ReLU())
    low, high = (torch.as_tensor(x, dtype=torch.float32, device=device) for x in (lower, upper))
    model = BoundedModule(torch.nn.Sequential(*layers).to(device), low[:1], device=device)
    x = BoundedTensor((low + high) / 2, PerturbationLpNorm(norm=np.inf, x_L=low, x_U=high))
    return lambda: model.compute_bounds(x=(x,), method="backward", bound_upper=False)[0]


def whole_network(device: str, repeats: int, boxes: int, hidden: Sequence[int]) -> None:
    """One line an engine."""
    graph = dense_network(5, list(hidden), 5)
    rng = np.random.default_rng(1)
    lower = rng.random((boxes, 5))
    upper = lower + 0.1 * rng.random((boxes, 5))
    rows = np.eye(5)
    engines = {
        "whole-network pass": TorchEngine(graph, device=device, whole=True),
        "torch engine, float32": TorchEngine(graph, device=device, whole=False, dtype=torch.float32),
    }
    few = min(boxes, 4096)  # of the slower ones
    tasks: dict[str, tuple[int, Callable[[], torch.Tensor]]] = {
        name: (count, lambda e=e, n=count: torch.from_numpy(e.bound_boxes(lower[:n], upper[:n], rows).lower))  # type: ignore[misc]
        for (name, e), count in zip(engines.items(), (boxes, few), strict=True)
    }
    if importlib.util.find_spec("auto_LiRPA"):
        tasks["auto_LiRPA backward"] = (few, crown_of_auto_lirpa(graph, lower[:few], upper[:few], device))
    times = seconds(device, repeats, *(task for _, task in tasks.values()))
    first = None
    for (name, (count, task)), spent in zip(tasks.items(), times, strict=True):
        rate = count / spent
        first = first or rate
        mean = float(task()[:few].double().mean())
        print(
            f"{name:22} {rate:12.0f} boxes/s, the first is {first / rate:6.1f} times as fast; mean bound {mean:.4f}",
            flush=True,
        )


def main() -> None:
    """Print what was measured, and where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--boxes", type=int, default=65536)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA GPU here; --device cpu runs the twins")
    print(torch.cuda.get_device_name() if args.device == "cuda" else "CPU", f"torch {torch.__version__}", flush=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    scale = 16 if args.device == "cuda" else 1
    for dtype in (torch.float32, torch.float64):
        relaxation(args.device, args.repeats, (16, 64 * scale, 4096), dtype)
    relaxation(args.device, args.repeats, (4096, scale, 256), torch.float32)
    whole_network(args.device, args.repeats, args.boxes, [50] * 6)


if __name__ == "__main__":
    main()
