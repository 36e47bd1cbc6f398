"""Subdomains of activation splitting bounded per CPU second: native engine against torch, one thread each.

    python benchmarks/micro/domains_per_second.py INSTANCES_FOLDER NET.onnx SPEC.vnnlib [subdomains] [iterations]

Both engines split the same root to about the same depth, then bound the batch with the same number of
slope and multiplier steps, rounding terms included. CPU seconds, so that other processes do not count.
Tightness: the mean of the best margins of both engines' own subdomains, and of the unsplit box.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np

from verifier import api
from verifier.bounds import native_domains, torch_domains
from verifier.bounds.engine import DomainEngine
from verifier.bounds.native_engine import NativeEngine
from verifier.bounds.torch_engine import TorchEngine
from verifier.run import Run
from verifier.spec.groups import group_cases


def never() -> bool:
    """The batches here are never interrupted."""
    return False


def measure(domains: DomainEngine, clause: np.ndarray, count: int, iterations: int) -> tuple[float, float, float]:
    """Subdomains per CPU second, bounding and choosing the next split; their mean margin, and the unsplit box's."""
    root = domains.bound(domains.initial(clause), 20, never)
    batch = root.batch
    while len(batch) < count:
        batch = domains.bound(domains.branch(batch), 2, never).batch
    batch = batch.select(np.arange(count))
    begin = time.process_time()
    margins = []
    step = domains.batch_size
    for first in range(0, count, step):
        part = batch.select(np.arange(first, min(count, first + step)))
        bounds = domains.bound(part, iterations, never)
        domains.branch(bounds.batch.select(np.arange(0, len(part), 2)))  # half as many parents as children
        margins.append(bounds.row_margins.max(axis=1))
    rate = count / (time.process_time() - begin)
    return rate, float(np.concatenate(margins).mean()), float(root.row_margins.max())


def main() -> None:
    """Print both engines' rates and their ratio."""
    folder, net, spec = sys.argv[1:4]
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 64
    iterations = int(sys.argv[5]) if len(sys.argv) > 5 else 12
    query, _ = api.load(os.path.join(folder, "onnx", net), os.path.join(folder, "vnnlib", spec))
    group = group_cases(query.problem)[0].only(0)
    native_domains.INTERMEDIATE_SHARE = torch_domains.INTERMEDIATE_SHARE = 0.0
    import torch

    torch.set_num_threads(1)
    rates = []
    engines: list[Any] = [NativeEngine(query.graph, threads=1), TorchEngine(query.graph, dtype=torch.float32)]
    for engine, module in zip(engines, (native_domains, torch_domains), strict=True):
        domains, left = module.root_domains(engine, group, 0, Run())
        if len(left) == 0:
            print(f"{engine.name}: the unsplit box is already proved; choose a harder property")
            return
        rate, mean, unsplit = measure(domains, left[:1], count, iterations)
        print(f"{engine.name:7} {rate:9.0f} subdomains/s   mean margin {mean:.4g}, unsplit {unsplit:.4g}")
        rates.append(rate)
    print(f"{net} {spec}: native / torch = {rates[0] / rates[1]:.1f}")


if __name__ == "__main__":
    main()
