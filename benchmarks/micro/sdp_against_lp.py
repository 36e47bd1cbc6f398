"""Semidefinite against linear bounds on a 2x100 digit classifier under l-infinity boxes.

    python benchmarks/micro/sdp_against_lp.py [--images 6] [--eps 0.04] [--seconds 120]

A network 64-100-100-10 is trained on scikit-learn's digits. For each correctly classified test image
the row "label minus strongest rival" is bounded from the same alpha-CROWN intermediate bounds by the LP and by
the SDP, both rebuilt rigorously. Prints a Markdown table, processor seconds.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise

import numpy as np
import torch
from sklearn.datasets import load_digits

from verifier.graph.evaluate import evaluate
from verifier.graph.ir import Graph, GraphBuilder
from verifier.spec.problem import lp_ball
from verifier.tighten.attained import attained
from verifier.tighten.lp import lp_bound
from verifier.tighten.propagated import Propagated
from verifier.tighten.sdp import SdpSettings, sdp_bound


def digit_network(width: int, seed: int) -> tuple[Graph, np.ndarray, np.ndarray]:
    """(trained relu network, test images [T, 64] in [0, 1], labels [T])."""
    torch.manual_seed(seed)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels)
    sizes = (64, width, width, 10)
    layers = [torch.nn.Linear(a, b) for a, b in pairwise(sizes)]
    net = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    adam = torch.optim.Adam(net.parameters(), lr=3e-3, weight_decay=1e-5)
    for _ in range(150):
        adam.zero_grad()
        torch.nn.functional.cross_entropy(net(x[:1400]), y[:1400]).backward()
        adam.step()
    builder = GraphBuilder()
    last = builder.add("Input", (), (1, 64), "x")
    for k, layer in enumerate(layers):
        weight, bias = layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy().copy()
        last = builder.add("Dense", (last,), (1, weight.shape[1]), f"z{k}", weight=weight, bias=bias)
        if k < 2:
            last = builder.add("Relu", (last,), (1, weight.shape[1]), f"h{k}")
    return builder.finish(("x",), (last,), dtype="float32"), x[1400:].double().numpy(), labels[1400:]


def main() -> None:
    """Parse arguments, run, print one line per image and the count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--eps", type=float, default=0.04)
    parser.add_argument("--seconds", type=float, default=120.0)
    args = parser.parse_args()
    graph, images, labels = digit_network(args.width, 0)
    print("| image | unstable | LP | SDP | attack | gap closed | LP s | SDP s | ended |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|:--|")
    wins, total, index = 0, 0, 0
    while total < args.images:
        image, label = images[index], labels[index]
        index += 1
        scores = evaluate(graph, image)[0]
        if int(scores.argmax()) != label:
            continue
        row = np.zeros((1, 10))
        row[0, label], row[0, int(np.argsort(scores)[-2])] = 1.0, -1.0
        box = lp_ball(image, args.eps, valid=(0.0, 1.0))
        state = Propagated(graph, box)
        bounded = state.alpha()
        known, errors = state.intermediate(bounded), state.rounding_error(bounded)
        unstable = sum(len(state.engine.open_neurons(n, bounded.found.box)) for n in state.engine.network.bounded)
        start = time.process_time()
        lp = lp_bound(state.graph, box, row, intermediate=known, rounding_error=errors).lower[0]
        middle = time.process_time()
        settings = SdpSettings(time_limit_s=args.seconds)
        found = sdp_bound(state.graph, box, row, intermediate=known, rounding_error=errors, settings=settings)
        end = time.process_time()
        best = float(attained(state.engine, box, row).values[0])
        sdp = found.lower[0]
        total += 1
        wins += bool(sdp > lp + 1e-6 * abs(lp))
        print(
            f"| {index - 1} | {unstable} | {lp:.4f} | {sdp:.4f} | {best:.4f} | {(sdp - lp) / (best - lp):.0%} | "
            f"{middle - start:.2f} | {end - middle:.1f} | {found.notes[0]} |", flush=True,
        )  # fmt: skip
    print(f"\nSDP tighter than the LP on {wins} of {total}.")


if __name__ == "__main__":
    main()
