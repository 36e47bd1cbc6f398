"""SDP-CROWN on a whole network: l2 balls couple the neurons of every relu layer."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from verifier.errors import SpecError
from verifier.graph.ir import Graph
from verifier.spec.problem import InputSet
from verifier.tighten.balls import NodeBall, node_balls
from verifier.tighten.build import build_model
from verifier.tighten.curves import Curve
from verifier.tighten.dual import DualResult, line_slopes
from verifier.tighten.intervals import Errors, Interval, Maps
from verifier.tighten.lp import checked_coeffs, soundness_of
from verifier.tighten.model import LinearModel
from verifier.tighten.rounding import WIDEN, dot_error, sum_down
from verifier.tighten.safe_bound import neuron_terms, residual_interval, usable_duals
from verifier.tighten.sdp_crown import relu_offset_on_ball

_RATE, _LAMBDA_RATE, _DECAY = 0.1, 0.1, 0.985
#: Coefficient blocks up to this many entries are kept dense, which is faster.
_DENSE_ENTRIES = 8_000_000


@dataclass(frozen=True)
class Coupling:
    """Columns [K] whose values lie in a ball: `center` [K], `radius`; `post` of a relu block, None for inputs."""

    pre: np.ndarray
    post: np.ndarray | None
    center: np.ndarray
    radius: float


@dataclass(frozen=True)
class SdpCrownSettings:
    """steps: of the ascent over slopes and multipliers; time_limit_s: for all rows together."""

    steps: int = 150
    time_limit_s: float | None = None


def sdp_crown_bound(
    graph: Graph,
    inputs: InputSet,
    coeffs: np.ndarray,
    *,
    intermediate: Mapping[str, Interval] | None = None,
    rounding_error: Errors | None = None,
    settings: SdpCrownSettings | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> DualResult:
    """Lower bounds of coeffs @ outputs over an l2 ball, neurons of a layer bounded together.

    Arguments and errors as `lp_bound`; the ball may be cut by the set's box, linear rows are ignored.

    Requires: an l2 ball. Layers without a ball (see `node_balls`) and curves other than relu are
        bounded neuron by neuron.
    Method: CROWN's backward pass with free slopes g in [0, 1] d_post; each relu layer contributes the
        larger of its neurons' own minima and the coupled offset of `relu_offset_on_ball`.
    Property: sound, IEEE_FLOAT with `rounding_error`; never below the CROWN bound over the same
        intermediate bounds, up to round-off.
    Raises:
        SpecError: the input set is no l2 ball.
    Source: Chiu et al. 2025, SDP-CROWN, arXiv:2506.06665.
    """
    start = time.perf_counter()
    settings = settings or SdpCrownSettings()
    if inputs.ball is None or inputs.ball.p != 2:
        raise SpecError("sdp-crown: expected an l2 ball as the input set; use crown or alpha-crown for boxes")
    coeffs = checked_coeffs(graph, coeffs)
    maps = Maps(graph, rounding_error)
    model = build_model(graph, inputs, intermediate, maps=maps)
    if model is None:
        return DualResult(np.full(len(coeffs), np.inf), time.perf_counter() - start, soundness_of(rounding_error))
    couplings = _couplings(model, node_balls(maps, inputs.ball))
    stop = np.inf if settings.time_limit_s is None else start + settings.time_limit_s
    costs = np.stack([model.cost(row) for row in coeffs])
    ascent = _Ascent(model, couplings, costs)
    proposals = ascent.run(settings.steps, lambda: cancelled() or time.perf_counter() > stop)
    lower = np.array([
        max(coupled_bound(model, cost, duals[s], couplings, shares[s]) for duals, shares in proposals)
        for s, cost in enumerate(costs)
    ])  # fmt: skip
    return DualResult(lower, time.perf_counter() - start, soundness_of(rounding_error))


def coupled_bound(
    model: LinearModel, cost: np.ndarray, duals: np.ndarray, couplings: list[Coupling], shares: np.ndarray
) -> float:
    """`safe_bound` where each coupled group may use its ball instead of its box.

    Args:
        shares: lambda > 0 of each coupling, [G]; any positive number is valid.
    """
    duals = usable_duals(model, duals)
    with np.errstate(over="ignore", invalid="ignore"):
        limits = np.where(duals > 0, model.row_lower, np.where(duals < 0, model.row_upper, 0.0))
        d, doubt = residual_interval(model, cost, duals)
        reach = np.maximum(np.abs(model.col_lower), np.abs(model.col_upper))
        single = np.minimum(d * model.col_lower, d * model.col_upper) - doubt * reach * WIDEN
        paired = np.zeros(model.column_count, dtype=bool)
        groups: dict[int, np.ndarray] = {}
        for neurons in model.neurons:
            paired[neurons.pre] = paired[neurons.post] = True
            groups[int(neurons.pre[0])] = neuron_terms(model, neurons, d, doubt)
        single[paired] = 0.0
        for coupling, share in zip(couplings, shares, strict=True):
            joint = _ball_term(coupling, float(share), d, doubt, reach)
            key = int(coupling.pre[0]) if coupling.pre.size else -1
            if coupling.post is None:
                if joint > single[coupling.pre].sum():
                    single[coupling.pre] = 0.0
                    groups[-1] = np.array([joint])
            elif joint > groups[key].sum():
                groups[key] = np.array([joint])
        every = np.concatenate([duals * limits, single, *groups.values()])
        bound = float(sum_down(every) - dot_error(np.abs(every).sum(), every.size))
    return bound if np.isfinite(bound) else -np.inf


def _ball_term(coupling: Coupling, share: float, d: np.ndarray, doubt: np.ndarray, reach: np.ndarray) -> float:
    """A lower bound of the group's part of d @ columns over its ball."""
    pre = coupling.pre
    if coupling.post is None:
        norm = float(np.linalg.norm(d[pre])) * (1.0 + (pre.size + 8) * 2.0**-50)
        size = float(np.abs(d[pre]) @ np.abs(coupling.center)) + norm * coupling.radius
        value = float(d[pre] @ coupling.center) - norm * coupling.radius
        return value - float(dot_error(size, pre.size + 8)) - float(doubt[pre] @ reach[pre]) * WIDEN
    if not (np.isfinite(share) and share > 0):
        return -np.inf
    post = coupling.post
    offset = relu_offset_on_ball(d[post], -d[pre], coupling.center, coupling.radius, share)
    return offset - float(doubt[pre] @ reach[pre] + doubt[post] @ reach[post]) * WIDEN


def _couplings(model: LinearModel, balls: Mapping[str, NodeBall]) -> list[Coupling]:
    bent = {int(c) for n in model.neurons for c in n.pre}
    found = []
    if not bent.intersection(model.inputs.tolist()):
        parts = [balls[name] for name in model.node_columns if name in balls and _is_input(model, name)]
        center = np.concatenate([p.center for p in parts])
        # Every Input node's ball has the input ball's radius, for all inputs together.
        found.append(Coupling(model.inputs, None, center, max(p.radius for p in parts)))
    for neurons in model.neurons:
        if neurons.node in balls and _is_relu(neurons.curve):
            ball = balls[neurons.node]
            low, high = model.col_lower[neurons.pre], model.col_upper[neurons.pre]
            center = ball.center[neurons.positions]
            far = np.maximum(np.abs(high - center), np.abs(center - low))
            radius = min(ball.radius, float(np.linalg.norm(far)) * WIDEN)
            found.append(Coupling(neurons.pre, neurons.post, center, radius))
    return found


def _is_input(model: LinearModel, name: str) -> bool:
    return bool(np.isin(model.node_columns[name], model.inputs).all()) and bool(
        np.array_equal(np.intersect1d(model.node_columns[name], model.inputs), np.sort(model.node_columns[name]))
    )


def _is_relu(curve: Curve) -> bool:
    ones = np.ones((curve.knots.shape[0], 1))
    return (
        curve.piecewise_linear
        and curve.knots.shape[1] == 1
        and bool(np.all(curve.knots == 0.0) and np.all(curve.deployed_error == 0.0))
        and bool(np.all(curve.value(ones) == 1.0) and np.all(curve.value(-ones) == 0.0))
    )


class _Ascent:
    """Differentiable value of the coupled bound for all rows, over slopes [S, 2, C] and log lambda [S, G]."""

    def __init__(self, model: LinearModel, couplings: list[Coupling], costs: np.ndarray):
        self.model, self.couplings = model, couplings
        self.cost = torch.as_tensor(costs)
        self.low, self.high = torch.as_tensor(model.col_lower), torch.as_tensor(model.col_upper)
        self.partner = np.zeros(model.column_count, dtype=np.int64)
        below, above = np.zeros(model.column_count), np.zeros(model.column_count)
        for neurons in model.neurons:
            self.partner[neurons.pre] = neurons.post
            below[neurons.pre], above[neurons.pre] = line_slopes(model, neurons, parallel=False)
        self.slopes = torch.as_tensor(np.stack([below, above])).expand(len(costs), -1, -1).clone()
        self.ends = {}
        for neurons in model.neurons:
            z = neurons.curve.segment_ends(model.col_lower[neurons.pre], model.col_upper[neurons.pre])
            self.ends[int(neurons.pre[0])] = torch.as_tensor(z), torch.as_tensor(neurons.curve.value(z))
        self.blocks = []
        for begin, end in reversed(model.definitions):
            rows = model.matrix[begin:end]
            own = model.matrix.indices[model.matrix.indptr[begin:end]]
            self.blocks.append((begin, end, torch.as_tensor(own.astype(np.int64)), _transposed(rows)))
        self.middle = torch.as_tensor(0.5 * (_finite(model.row_lower) + _finite(model.row_upper)))

    def multipliers(self, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """(duals [S, R], residual costs [S, C]) of a backward pass with these slopes."""
        d = self.cost
        parts: list[tuple[int, Tensor]] = []
        for begin, _, own, block in self.blocks:
            partner = torch.as_tensor(self.partner)[own]
            ahead = torch.where(partner > 0, d[:, partner], 0.0)
            slope = torch.where(ahead > 0, slopes[:, 0, own], slopes[:, 1, own])
            dual = d[:, own] + slope * ahead
            parts.append((begin, dual))
            d = d - (block @ dual.T).T
        duals = torch.zeros(len(self.cost), self.model.row_count, dtype=torch.float64)
        for begin, dual in parts:
            duals = torch.cat([duals[:, :begin], dual, duals[:, begin + dual.shape[1] :]], dim=1)
        return duals, d

    def value(self, slopes: Tensor, log_share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(bound [S], not rigorous; duals; the ball's offsets under other lambdas are not tried here)."""
        duals, d = self.multipliers(slopes)
        total = (duals * self.middle).sum(1)
        single = torch.minimum(d * self.low, d * self.high)
        alone = torch.ones(self.model.column_count, dtype=torch.bool)
        for neurons in self.model.neurons:
            alone[neurons.pre] = alone[neurons.post] = False
        coupled = {int(c.pre[0]): (g, c) for g, c in enumerate(self.couplings) if c.pre.size}
        for g, coupling in enumerate(self.couplings):
            if coupling.post is None:
                alone[coupling.pre] = False
                total = total + torch.maximum(single[:, coupling.pre].sum(1), self.ball(coupling, d, log_share[:, g]))
        total = total + single[:, alone].sum(1)
        for neurons in self.model.neurons:
            z, f = self.ends[int(neurons.pre[0])]
            own = (d[:, neurons.pre, None] * z + d[:, neurons.post, None] * f).min(2).values.sum(1)
            if int(neurons.pre[0]) in coupled:
                g, coupling = coupled[int(neurons.pre[0])]
                own = torch.maximum(own, self.ball(coupling, d, log_share[:, g]))
            total = total + own
        return total, duals, d

    def ball(self, coupling: Coupling, d: Tensor, log_share: Tensor) -> Tensor:
        """The coupled offset [S], `relu_offset_on_ball` in torch."""
        center, pre = torch.as_tensor(coupling.center), d[:, coupling.pre]
        if coupling.post is None:
            return pre @ center - coupling.radius * torch.sqrt((pre * pre).sum(1) + 1e-300)
        share = torch.exp(log_share)[:, None]
        shifted = share * center
        phi = torch.minimum(torch.minimum(d[:, coupling.post] + pre - shifted, -pre + shifted), torch.zeros(()))
        size = coupling.radius**2 - float(center @ center)
        return -0.5 * (share[:, 0] * size + (phi * phi).sum(1) / share[:, 0])

    @torch.no_grad()
    def first_shares(self) -> Tensor:
        """log lambda [S, G]: the best of a logarithmic grid for the starting slopes."""
        _, d = self.multipliers(self.slopes)
        log_share = torch.zeros(len(self.cost), len(self.couplings), dtype=torch.float64)
        for g, coupling in enumerate(self.couplings):
            if coupling.post is None:
                continue
            size = d[:, coupling.post].abs().amax(1).clamp(min=1e-12) / max(coupling.radius, 1e-12)
            grid = torch.logspace(-4, 3, 43, dtype=torch.float64)
            values = torch.stack([self.ball(coupling, d, torch.log(size * float(x))) for x in grid])
            log_share[:, g] = torch.log(size * grid[values.argmax(0)])
        return log_share

    def run(self, steps: int, stopped: Callable[[], bool]) -> list[tuple[np.ndarray, np.ndarray]]:
        """[(duals [S, R], lambda [S, G])]: CROWN's own multipliers, and the best met on the way up."""
        slopes, log_share = self.slopes.clone().requires_grad_(True), self.first_shares().requires_grad_(True)
        ascent = torch.optim.Adam(
            [{"params": [slopes], "lr": _RATE}, {"params": [log_share], "lr": _LAMBDA_RATE}], maximize=True
        )
        decay = torch.optim.lr_scheduler.ExponentialLR(ascent, _DECAY)
        proposals: list[tuple[np.ndarray, np.ndarray]] = []
        best = torch.full((len(self.cost),), -torch.inf, dtype=torch.float64)
        for step in range(steps + 1):
            value, duals, _ = self.value(slopes, log_share)
            now = duals.detach().numpy().copy(), torch.exp(log_share).detach().numpy().copy()
            if step == 0:
                proposals = [now, (now[0].copy(), now[1].copy())]
            better = (value.detach() > best).numpy()
            best = torch.maximum(best, value.detach())
            for old, new in zip(proposals[1], now, strict=True):
                old[better] = new[better]
            if step == steps or stopped():
                break
            ascent.zero_grad()
            value.sum().backward()
            ascent.step()
            decay.step()
            with torch.no_grad():
                slopes.clamp_(0.0, 1.0)
        return proposals


def _transposed(rows: sparse.csr_matrix) -> Tensor:
    """rows^T [C, r], dense where that fits easily."""
    if rows.shape[0] * rows.shape[1] <= _DENSE_ENTRIES:
        return torch.as_tensor(rows.toarray().T.copy())
    entries = rows.tocoo()
    place = torch.as_tensor(np.stack([entries.col, entries.row]).astype(np.int64))
    values, size = torch.as_tensor(entries.data), (rows.shape[1], rows.shape[0])
    return torch.sparse_coo_tensor(place, values, size, check_invariants=False).coalesce()


def _finite(x: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(x), x, 0.0)
