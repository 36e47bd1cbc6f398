"""Small chains of dense layers bounded in one launch, box by box in a GPU block's shared memory.

Requires: dense, scaling or data-moving stages that read only the one before, few inputs, no more weights than fit
(`Chain.of`). Method and rounding: csrc/include/verifier/box_team.h; the same code runs on the CPU, as its twin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from verifier.bounds.engine import BoxBounds
from verifier.graph.ir import Graph
from verifier.kernels.box_pass import Chain, box_pass
from verifier.kernels.stages import Stager, covers
from verifier.outcome import Soundness


@dataclass(frozen=True)
class WholeNetwork:
    """A network that one kernel bounds, on one device."""

    chain: Chain
    device: torch.device

    @staticmethod
    def of(graph: Graph, soundness: Soundness, device: torch.device) -> WholeNetwork | None:
        """None where the network is no such chain. Bounds are computed in float32 where that holds every weight."""
        if not covers(graph):
            return None
        stages = Stager(graph, rounded=soundness is Soundness.IEEE_FLOAT).run()
        for dtype in ("float32", "float64"):
            chain = Chain.of(stages, graph.input_size, lambda x: torch.from_numpy(x).to(device), np.dtype(dtype))
            if chain is not None:
                return WholeNetwork(chain, device)
        return None

    def bound_boxes(
        self, lower: np.ndarray, upper: np.ndarray, rows: np.ndarray, memory_bytes: int, *, refine: bool = True
    ) -> BoxBounds:
        """See BoxEngine. Boxes go in batches whose results fit the memory ceiling."""
        (boxes, inputs), count = lower.shape, rows.shape[0]
        step = max(1, memory_bytes // (8 * (count * (inputs + 2) + 3 * inputs)))
        weights = self._place(rows)
        shapes = ((boxes, count), (boxes, count, inputs), (boxes, count), (boxes, inputs))
        result = BoxBounds(*(np.empty(shape) for shape in shapes))
        for i in range(0, boxes, step):
            part = slice(i, i + step)
            found = box_pass(self.chain, self._place(lower[part]), self._place(upper[part]), weights, refine=refine)
            places = (result.lower, result.coeffs, result.offset, result.sensitivity)
            for place, values in zip(places, found, strict=True):
                torch.from_numpy(place[part]).copy_(values)
        return result

    def _place(self, x: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(np.ascontiguousarray(x, dtype=np.float64)).to(self.device)
