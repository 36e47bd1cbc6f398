"""Subdomains of the native engine per CPU second as width, depth and batch grow, one thread.

    python benchmarks/micro/scaling.py [--iterations 12] [--repeats 3]

Random dense relu networks, one split after the other as in engines.py; one of the three sizes changes at a time.
Prints a Markdown table: multiply-adds of one backward row, subdomains a second, and their product's rate.
"""

from __future__ import annotations

import argparse

import numpy as np
from domains_per_second import measure  # sets the threads
from engines import box_of, hopeless
from random_networks import dense_network

from verifier.bounds import native_domains
from verifier.bounds.native_engine import NativeEngine
from verifier.run import Run

#: Of the network and batch from which one size at a time departs.
WIDTH, DEPTH, BATCH = 256, 4, 256
#: Radius of the box, small enough for every depth to leave some neurons fixed.
RADIUS = 0.01


def rate(width: int, depth: int, batch: int, iterations: int, repeats: int) -> tuple[float, float]:
    """Multiply-adds of one row from the output to the input, and the median of subdomains per CPU second."""
    graph = dense_network(784, [width] * depth, 10)
    group = hopeless(graph, *box_of(graph, RADIUS))
    engine = NativeEngine(graph, threads=1)
    domains, left = native_domains.root_domains(engine, group, 0, Run())
    rates = [measure(domains, left[:1], batch, iterations)[0] for _ in range(repeats)]
    return 784.0 * width + (depth - 1) * width**2 + 10 * width, float(np.median(rates))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    native_domains.INTERMEDIATE_SHARE = 0.0
    print("| width | depth | batch | multiply-adds a row | subdomains/s | Gmultiply-adds/s |")
    print("|--:|--:|--:|--:|--:|--:|")
    cases = [(w, DEPTH, BATCH) for w in (32, 64, 128, 256, 512, 1024)]
    cases += [(WIDTH, d, BATCH) for d in (2, 6, 8, 12)] + [(WIDTH, DEPTH, b) for b in (1, 4, 16, 64, 1024)]
    for width, depth, batch in cases:
        products, found = rate(width, depth, batch, args.iterations, args.repeats)
        # a step carries a row back and a point forward again
        work = 2 * args.iterations * products * found / 1e9
        print(f"| {width} | {depth} | {batch} | {products:.0f} | {found:.0f} | {work:.1f} |", flush=True)


if __name__ == "__main__":
    main()
