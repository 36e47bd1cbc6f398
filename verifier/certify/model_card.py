"""A few facts that identify a model file: operators, sizes, hash."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from verifier.graph.load import load_network


def model_card(path: str | Path) -> dict[str, Any]:
    """File name, bytes, sha256, operators (as the file has them) with counts, parameters, shapes, dtype."""
    raw = Path(path).read_bytes()
    graph = load_network(path, simplified=False)
    operators = Counter(node.op for node in graph.nodes.values() if node.op not in ("Input", "Constant"))
    return {
        "file": Path(path).name,
        "path": str(path),
        "bytes": len(raw),
        "sha256": hashlib.sha256(raw).hexdigest(),
        "operators": dict(sorted(operators.items())),
        "parameters": graph.parameter_count,
        "inputs": [list(graph[name].shape) for name in graph.inputs],
        "outputs": [list(graph[name].shape) for name in graph.outputs],
        "dtype": graph.dtype,
    }
