"""The native engine: whole-network bounds in C++ for the common operators, without torch.

Requires: a graph of dense, convolution, scaling, residual and data-moving nodes with relu or leaky
relu activations (`supports`).
Method, per box (csrc/cpu/simd): forward linear forms in the inputs (Wang et al. 2018) together with
intervals; a backward pass (CROWN, Zhang et al. 2018, arXiv:1811.00866) for each neuron whose sign they
leave open, bounds intersected; a backward pass for the rows asked for. Forms are left out where the
input is wide and they would cost more than they save.
Property: sound, not complete. Bounds hold for the deployed program in any summation order and for
real arithmetic (METHODS section 7), or for real arithmetic alone; the engine's own rounding, in the
graph's dtype, is charged likewise. NaN, infinite or overflowing boxes give -inf.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from verifier.bounds.engine import BoxBounds
from verifier.bounds.sum_limits import long_sums
from verifier.errors import SpecError
from verifier.graph.ir import Graph
from verifier.kernels.native import native
from verifier.kernels.stages import Stager, covers
from verifier.outcome import Soundness
from verifier.spec.problem import Ball, InputSet

#: Weights of a network with sparse maps from which boxes go one by one through what can matter on each.
LARGE = 5e5
#: Share of the remaining time that the neurons of one such box may take.
BOX_SHARE = 0.25


def supports(graph: Graph) -> bool:
    """True when NativeEngine can bound this graph."""
    return covers(graph)


class NativeEngine:
    """BoxEngine over the compiled module; arrays float64, boxes in parallel on the CPU.

    Args:
        threads: CPU threads; None for all that this process may use.
        soundness: IEEE_FLOAT, or REAL_ARITHMETIC to leave out the network's own rounding.
        forms: carry linear forms forwards; None decides by cost.
        deadline: time.monotonic() value that no bound should run far beyond; later ones are looser.
    Raises:
        UnsupportedOperator: the graph is outside the subset, see `supports`.
        DeviceError: the compiled module is missing.
    """

    name = "native"

    def __init__(
        self,
        graph: Graph,
        *,
        threads: int | None = None,
        soundness: Soundness = Soundness.IEEE_FLOAT,
        forms: bool | None = None,
        deadline: float = np.inf,
    ):
        if soundness is Soundness.HEURISTIC:
            raise SpecError(
                "soundness: the native engine proves; expected REAL_ARITHMETIC or IEEE_FLOAT, got HEURISTIC"
            )
        module = native()
        self.graph = graph
        self.soundness: Soundness = soundness
        self.threads = module.available_threads() if threads is None else max(1, threads)
        self._network = (module.NetworkDouble if graph.dtype == "float64" else module.NetworkFloat)(graph.input_size)
        stages = Stager(graph, rounded=soundness is Soundness.IEEE_FLOAT).run()
        self.long_sums = long_sums(stages)  # the other stages' matrices need not be kept
        for stage in stages:
            self._network.add_stage(stage.as_dict())
        self._network.finish(-1 if forms is None else int(forms))
        self._is_large = self._network.sparse and self._network.weights > LARGE
        self.deadline = deadline
        self._domains: Any = None

    @property
    def network(self) -> Any:
        """The compiled network, for native_domains."""
        return self._network

    @property
    def uses_forms(self) -> bool:
        """Whether linear forms are carried forwards."""
        return self._network.uses_forms

    def bound_boxes(
        self, lower: np.ndarray, upper: np.ndarray, rows: np.ndarray, *, need_forms: bool = True, refine: bool = True
    ) -> BoxBounds:
        """Bounds of rows [S, N_out] over boxes lower, upper [B, N_in].

        Args:
            need_forms: off leaves `coeffs` and `offset` empty ([0, S, N_in], [0, S]).
            refine: off skips the backward passes of intermediate neurons: faster and looser.
        Raises:
            ValueError: shapes do not fit.
        """
        if refine and need_forms and self._is_large:
            return self._bound_large(lower, upper, rows)
        return BoxBounds(
            *self._network.bound_boxes(lower, upper, rows, forms=need_forms, refine=refine, threads=self.threads)
        )

    def _bound_large(self, lower: np.ndarray, upper: np.ndarray, rows: np.ndarray) -> BoxBounds:
        """One box after the other, whose neurons share the threads and pass only through their cones."""
        found = []
        for low, high in zip(lower, upper, strict=True):
            seconds = BOX_SHARE * float(np.clip(self.deadline - time.monotonic(), 0.0, 1e6))
            if self._domains is None:
                self._domains = self.domains(low, high, seconds)
            else:
                self._domains.enter(low, high, seconds)
            found.append(self._domains.forms(rows))
        if not found:
            return BoxBounds.none(rows.shape[0], lower.shape[1])
        return BoxBounds(*(np.stack(column) for column in zip(*found, strict=True)))

    def splits_on(self, inputs: InputSet) -> bool:
        """Whether `domains` knows this set: a box, or with it an l2 ball in one unit around a point of its numbers."""
        if inputs.is_box:
            return True
        ball = inputs.ball
        if inputs.row_coeffs is not None or ball is None or ball.p != 2:
            return False
        center = ball.center
        inside = np.all((inputs.lower <= center) & (center <= inputs.upper))
        held = np.array_equal(center, center.astype(self.graph.dtype))
        return bool(inside and held and _unit(inputs, ball) is not None)

    def domains(
        self,
        lower: np.ndarray,
        upper: np.ndarray,
        seconds: float,
        threads: int | None = None,
        *,
        inputs: InputSet | None = None,
    ) -> Any:
        """The compiled module's subdomains of one box, for native_domains; neurons are bounded within `seconds`.

        Args:
            inputs: the set that the box contains, where it is more than the box (`splits_on`).
        """
        kind = native().DomainsDouble if self.graph.dtype == "float64" else native().DomainsFloat
        cut: dict[str, Any] = {}
        if inputs is not None and inputs.ball is not None:
            unit = _unit(inputs, inputs.ball)
            assert unit is not None, "only sets that `splits_on` takes"
            cut = {"center": inputs.ball.center, "radius": np.nextafter(inputs.ball.radius * unit, np.inf)}
        return kind(self._network, lower, upper, threads=threads or self.threads, seconds=seconds, **cut)

    def evaluate(self, points: np.ndarray) -> np.ndarray:
        """Outputs [B, N_out] at points [B, N_in], computed in the graph's dtype."""
        return self._network.evaluate(points, threads=self.threads).astype(np.float64, copy=False)

    def gradient(self, points: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Gradient [B, N_in] of weights[b] @ y(x) at points[b]; weights [B, N_out]."""
        return self.pull_back(self.record(points)[1], weights).astype(np.float64, copy=False)

    def record(self, points: np.ndarray) -> tuple[np.ndarray, Any]:
        """Outputs as `evaluate`, in the graph's dtype, and a trace for `pull_back`: a value and its gradient for one
        forward pass."""
        return self._network.record(points, threads=self.threads)

    def pull_back(self, trace: Any, weights: np.ndarray) -> np.ndarray:
        """Gradients [B * S, N_in] at the B points of a trace, for S rows of weights in turn at each: [B * S, N_out];
        in the graph's dtype."""
        return self._network.pull_back(trace, weights, threads=self.threads)


def _unit(inputs: InputSet, ball: Ball) -> float | None:
    """The one unit that changes of all features that can move are measured in; None where there are several."""
    if ball.scale is None:
        return 1.0
    units = np.unique(ball.scale[inputs.lower < inputs.upper])
    return 1.0 if len(units) == 0 else float(units[0]) if len(units) == 1 else None
