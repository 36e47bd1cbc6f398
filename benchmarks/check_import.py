"""Imports every network below a folder and compares it with ONNX Runtime on random inputs.

    python benchmarks/check_import.py FOLDER [--points N] [--filter WORD]

For each network: import time, nodes, neurons, the largest difference relative to the largest output
in float64 and float32, and one line of error where it cannot be read. Exit 1 when one cannot be read or differs by
more than 1e-3.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

from verifier.errors import VerifierError
from verifier.graph.describe import describe
from verifier.graph.evaluate import evaluate
from verifier.graph.ir import Graph
from verifier.graph.load import load_network

#: A relative difference above this is a defect, not round-off.
LIMIT = 1e-3


def deployed(path: Path) -> onnxruntime.InferenceSession:
    """The network in ONNX Runtime, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    source: str | bytes = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else str(path)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def difference(graph: Graph, path: Path, points: int) -> tuple[float, float]:
    """Largest |ours - theirs| / max(1, |theirs|) over random inputs in [-1, 1]: in float64, in float32."""
    session = deployed(path)
    rng = np.random.default_rng(0)
    worst = [0.0, 0.0]
    shapes = [graph[name].shape for name in graph.inputs]
    for _ in range(points):
        parts = [rng.uniform(-1, 1, size=shape).astype(graph.dtype) for shape in shapes]
        theirs = session.run(None, dict(zip((i.name for i in session.get_inputs()), parts, strict=True)))
        y = np.concatenate([np.asarray(v).reshape(-1).astype(np.float64) for v in theirs])
        x = np.concatenate([p.reshape(-1) for p in parts])
        size = max(1.0, float(np.abs(y).max(initial=0.0)))
        for index, dtype in enumerate(("float64", "float32")):
            gap = np.abs(evaluate(graph, x, dtype)[0] - y).max(initial=0.0) / size
            worst[index] = max(worst[index], float(gap)) if np.isfinite(gap) else np.inf
    return worst[0], worst[1]


def main() -> int:
    """Check every network and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--points", type=int, default=5)
    parser.add_argument("--filter", default="")
    args = parser.parse_args()
    paths = sorted(p for p in args.folder.rglob("*.onnx*") if p.name.endswith((".onnx", ".onnx.gz")))
    paths = [p for p in paths if args.filter in str(p)]
    if not paths:
        print(f"check_import: no .onnx or .onnx.gz file below {args.folder}", file=sys.stderr)
        return 2
    bad = 0
    print(f"{'network':<60} {'load s':>7} {'nodes':>6} {'neurons':>9} {'float64':>9} {'float32':>9}")
    for path in paths:
        name = str(path.relative_to(args.folder))[-60:]
        try:
            begin = time.perf_counter()
            graph = load_network(path)
            seconds = time.perf_counter() - begin
            wide, narrow = difference(graph, path, args.points)
        except VerifierError as error:
            bad += 1
            print(f"{name:<60} ERROR {error}")
            continue
        wrong = not max(wide, narrow) <= LIMIT
        bad += wrong
        neurons = describe(graph).neurons
        row = f"{name:<60} {seconds:7.2f} {len(graph.nodes):6d} {neurons:9d} {wide:9.1e} {narrow:9.1e}"
        print(row + ("  DIFFERS" if wrong else ""), flush=True)
    print(f"{len(paths)} networks, {bad} cannot be read or differ")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
