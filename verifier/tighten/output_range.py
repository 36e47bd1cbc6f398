"""Certified ranges of rows over the outputs, tightened for as long as the user waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from verifier.errors import UnsupportedOperator
from verifier.graph.ir import Graph
from verifier.outcome import Soundness
from verifier.spec.problem import InputSet
from verifier.tighten.attained import Attained, attained
from verifier.tighten.milp import MilpSettings, milp_bound
from verifier.tighten.propagated import Propagated

#: Boxes with at most this many inputs of nonzero width are split on inputs, others on activations.
FEW_INPUTS = 12
_BOXES_AT_ONCE = 64
_ATTACK_SHARE, _ALPHA_SHARE = 0.1, 0.3


@dataclass(frozen=True)
class RangeSettings:
    """How long and how strongly.

    Attributes:
        timeout_s: for everything; None stops after slope optimisation.
        gap_rel: an end is finished when bound and attained value differ by at most gap_rel * max(1, |value|).
        soundness: IEEE_FLOAT for the deployed program, REAL_ARITHMETIC otherwise.
        iterations: of slope optimisation.
        seed: of the attack.
        cancelled: asked often; True returns the ranges known by then.
        on_progress: called with (stage, ranges so far).
    """

    timeout_s: float | None = None
    gap_rel: float = 1e-4
    soundness: Soundness = Soundness.IEEE_FLOAT
    iterations: int = 100
    seed: int = 0
    cancelled: Callable[[], bool] = field(default=lambda: False)
    on_progress: Callable[[str, OutputRange], None] | None = None


@dataclass(frozen=True)
class OutputRange:
    """Every output lies in [lower, upper] on the whole input set, and reaches [reached_low, reached_high].

    Attributes:
        lower, upper: float64 [N_out], rigorous; infinite where nothing is known.
        reached_low, reached_high: float64 [N_out], values at `points_low`, `points_high` [N_out, N_in];
            inf / -inf where no point was found.
        finished: bool [N_out], both ends within the gap asked for.
        seconds, soundness: wall time; what the bounds hold for.
    """

    lower: np.ndarray
    upper: np.ndarray
    reached_low: np.ndarray
    reached_high: np.ndarray
    points_low: np.ndarray
    points_high: np.ndarray
    finished: np.ndarray
    seconds: float
    soundness: Soundness


def output_range(graph: Graph, inputs: InputSet, settings: RangeSettings | None = None) -> OutputRange:
    """Certified lower and upper bounds of every output over an input set.

    Method: CROWN, slope optimisation, then branch and bound on the end whose gap to the attack is
        widest: on inputs where few of them vary, on activations otherwise.
    Property: sound at every moment; each stage only ever improves an end.
    Raises:
        UnsupportedOperator, NetworkError: the network cannot be bounded.
    """
    return _Ranges(graph, inputs, settings or RangeSettings()).run()


class _Ranges:
    """Rows +e_i then -e_i; `lower` [2 N_out] are their bounds, `reached` their attained values."""

    def __init__(self, graph: Graph, inputs: InputSet, settings: RangeSettings):
        self.settings, self.inputs = settings, inputs
        self.start = time.monotonic()
        self.stop = np.inf if settings.timeout_s is None else self.start + settings.timeout_s
        limit = None if settings.timeout_s is None else _ALPHA_SHARE * settings.timeout_s
        self.state = Propagated(
            graph, inputs, soundness=settings.soundness, time_limit_s=limit, cancelled=settings.cancelled
        )
        count = graph.output_size
        self.rows = np.concatenate([np.eye(count), -np.eye(count)])
        self.lower = np.full(2 * count, -np.inf)
        self.reached = Attained(np.full(2 * count, np.inf), np.full((2 * count, inputs.size), np.nan))

    def run(self) -> OutputRange:
        """The stages in order; each may be the last."""
        for name, stage in (
            ("intervals", self._intervals),
            ("CROWN", self._crown),
            ("attack", self._attack),
            ("slopes", self._slopes),
            ("branch and bound", self._branch),
        ):
            if self._stopped() and name not in ("intervals", "CROWN"):
                break
            stage()
            self._say(name)
        return self._result()

    def _intervals(self) -> None:
        self._improve(self.state.interval_rows(self.rows))

    def _crown(self) -> None:
        self._improve(self.state.rows(self.state.crown(), self.rows))

    def _attack(self) -> None:
        limit = None if self.stop == np.inf else _ATTACK_SHARE * (self.stop - time.monotonic())
        self.reached = attained(
            self.state.engine, self.inputs, self.rows, seed=self.settings.seed, time_limit_s=limit,
            cancelled=self.settings.cancelled,
        )  # fmt: skip

    def _slopes(self) -> None:
        self._improve(self.state.optimised_rows(self.state.alpha(), self.rows, self.settings.iterations))

    def _branch(self) -> None:
        if self.stop == np.inf:
            return
        few = int((self.inputs.upper > self.inputs.lower).sum()) <= FEW_INPUTS
        tried: set[int] = set()
        while not self._stopped():
            gaps = np.where(self._open(), self._gaps(), -1.0)
            gaps[list(tried)] = -1.0
            row = int(gaps.argmax())
            if gaps[row] < 0:
                if few or not tried:
                    return
                tried.clear()  # another round with what time is left
                continue
            tried.add(row)
            left = int((gaps >= 0).sum())
            until = time.monotonic() + (self.stop - time.monotonic()) / left
            if few:
                self._split_inputs(row, until)
            elif not self._split_activations(row, until):
                return
            self._say("branch and bound")

    def _split_activations(self, row: int, until: float) -> bool:
        """False where the network is beyond branch and bound on activations."""
        bounded = self.state.alpha()
        settings = MilpSettings(
            time_limit_s=max(until - time.monotonic(), 0.01), gap_rel=self.settings.gap_rel, guide=None,
            cancelled=self.settings.cancelled,
        )  # fmt: skip
        try:
            found = milp_bound(
                self.state.graph, self.inputs, self.rows[row], intermediate=self.state.intermediate(bounded),
                rounding_error=self.state.rounding_error(bounded), settings=settings,
            )  # fmt: skip
        except UnsupportedOperator:
            return False
        self.lower[row] = max(self.lower[row], found.lower[0])
        if self.inputs.is_box and np.all(np.isfinite(found.points[0])):
            self._reach(row, found.points)
        return True

    def _split_inputs(self, row: int, until: float) -> None:
        """Best-first splitting of input boxes, the worst boxes of one row in batches."""
        engine, rows = self.state.engine, self.rows[row : row + 1]
        low, high = self.inputs.lower[None], self.inputs.upper[None]
        value = self.lower[row : row + 1].copy()
        forms = np.abs(engine.bound_boxes(low, high, rows).coeffs[:, 0])
        while not self._stopped() and time.monotonic() < until:
            order = np.argsort(value)
            worst, rest = order[:_BOXES_AT_ONCE], order[_BOXES_AT_ONCE:]
            if not value[worst[0]] < self._target(row):
                break
            width = high[worst] - low[worst]
            axis = ((forms[worst] + 1e-3 * forms[worst].max(axis=1, keepdims=True) + 1e-12) * width).argmax(axis=1)
            at = np.arange(len(worst)), axis
            middle = 0.5 * (low[worst][at] + high[worst][at])
            if not np.all((low[worst][at] < middle) & (middle < high[worst][at])):
                break  # boxes as small as floats allow
            child_low, child_high = np.repeat(low[worst], 2, axis=0), np.repeat(high[worst], 2, axis=0)
            child_high[2 * at[0], axis], child_low[2 * at[0] + 1, axis] = middle, middle
            found = engine.bound_boxes(child_low, child_high, rows)
            inherited = np.maximum(found.lower[:, 0], np.repeat(value[worst], 2))
            # Where each child's form is smallest is where the row is likely to be.
            self._reach(row, np.where(found.coeffs[:, 0] >= 0, child_low, child_high))
            low, high = np.concatenate([low[rest], child_low]), np.concatenate([high[rest], child_high])
            value = np.concatenate([value[rest], inherited])
            forms = np.concatenate([forms[rest], np.abs(found.coeffs[:, 0])])
        self.lower[row] = max(self.lower[row], float(value.min()))

    def _reach(self, row: int, points: np.ndarray) -> None:
        if self.inputs.ball is not None or self.inputs.row_coeffs is not None:
            return
        values = self.state.engine.evaluate(points) @ self.rows[row]
        i = int(np.nanargmin(np.where(np.isnan(values), np.inf, values)))
        if values[i] < self.reached.values[row]:
            self.reached.values[row], self.reached.points[row] = values[i], points[i]

    def _improve(self, lower: np.ndarray) -> None:
        self.lower = np.fmax(self.lower, lower)

    def _target(self, row: int) -> float:
        value = self.reached.values[row]
        return float(value - self.settings.gap_rel * max(1.0, abs(value))) if np.isfinite(value) else np.inf

    def _gaps(self) -> np.ndarray:
        gaps = self.reached.values - self.lower
        return np.where(np.isnan(gaps), np.inf, gaps)

    def _open(self) -> np.ndarray:
        return np.array([not self.lower[r] >= self._target(r) for r in range(len(self.rows))])

    def _stopped(self) -> bool:
        return self.settings.cancelled() or time.monotonic() >= self.stop

    def _say(self, stage: str) -> None:
        if self.settings.on_progress is not None:
            self.settings.on_progress(stage, self._result())

    def _result(self) -> OutputRange:
        count = len(self.rows) // 2
        open_ends = self._open()
        return OutputRange(
            lower=self.lower[:count].copy(),
            upper=-self.lower[count:],
            reached_low=self.reached.values[:count].copy(),
            reached_high=-self.reached.values[count:],
            points_low=self.reached.points[:count].copy(),
            points_high=self.reached.points[count:].copy(),
            finished=~(open_ends[:count] | open_ends[count:]),
            seconds=time.monotonic() - self.start,
            soundness=self.settings.soundness,
        )
