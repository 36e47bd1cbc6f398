"""Subdomains given by splits of neurons, and their bounds with optimised slopes and multipliers.

All per-neuron data of a batch of subdomains are rows over one axis: the neurons open at the root
of all bounded nodes, K in all. Shape letters: B subdomains, S rows of a clause, K, F parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from verifier.bounds.backward import LinearForm, Planes, Shortcut, Split
from verifier.bounds.concretize import InputShape
from verifier.bounds.engine import DomainBounds, FocusedEngine
from verifier.bounds.interval import Enclosure
from verifier.bounds.relaxation_costs import costs
from verifier.bounds.slopes import Ascent, SlopeSpace
from verifier.bounds.torch_engine import Enclosed, TorchEngine
from verifier.ops.elementwise import ELEMENTWISE

#: Seconds that one step of the ascent over a batch may take.
STEP_SECONDS = 0.2
#: Subdomains bounded at once at most, on the CPU and on a GPU, which needs many to be busy.
MOST_AT_ONCE = {"cpu": 256, "cuda": 4096}
#: Neurons kept per subdomain as candidates for the next split.
CANDIDATES = 4
#: Steps that a split subdomain of attention gets of those asked for, and their size: it starts from its
#: parent's parameters, and further splits soon gain more.
CHILD_SHARE, CHILD_RATE = 0.5, 0.1
#: An ascent is over once its last steps, this many, gained a smaller share of what is missing.
STALL_STEPS, STALL_GAIN = 10, 0.01


@dataclass(frozen=True)
class DomainBatch:
    """B subdomains of one input box.

    Attributes:
        low, high: bounds of the open neurons, [B, K].
        sign: [B, K] int8, the half-space sign * (z - point) >= 0 that a split imposed, 0 for none.
        point: [B, K]; beta: its multiplier per row, [B, S, K].
        free: relaxation parameters, [B, S, F].
        clause: [B], which clause must be refuted on the subdomain.
        margin: [B] float64, the best rigorous margin so far (of the clause's best row).
        depth: [B] number of splits.
        candidates: [B, CANDIDATES], the neurons most worth splitting, best first; -1 for none.
    """

    low: Tensor
    high: Tensor
    sign: Tensor
    point: Tensor
    beta: Tensor
    free: Tensor
    clause: Tensor
    margin: Tensor
    depth: Tensor
    candidates: Tensor

    def __len__(self) -> int:
        return self.low.shape[0]

    @property
    def margins(self) -> np.ndarray:
        """See engine.DomainBatch."""
        return self.margin.cpu().numpy()

    @property
    def clauses(self) -> np.ndarray:
        """See engine.DomainBatch."""
        return self.clause.cpu().numpy()

    @property
    def stuck(self) -> np.ndarray:
        """See engine.DomainBatch."""
        return (self.candidates[:, 0] < 0).cpu().numpy()

    @property
    def nbytes(self) -> int:
        """See engine.DomainBatch."""
        return sum(getattr(self, f.name).nbytes for f in fields(self))

    def select(self, index: np.ndarray | Tensor) -> DomainBatch:
        """See engine.DomainBatch."""
        chosen = torch.as_tensor(index, device=self.low.device)
        return DomainBatch(*(getattr(self, f.name)[chosen] for f in fields(self)))

    @staticmethod
    def join(parts: Sequence[DomainBatch]) -> DomainBatch:
        """Several batches as one."""
        return DomainBatch(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(DomainBatch)))


class DomainEngine:
    """See engine.DomainEngine. Bounds subdomains of one box for the clauses of a property.

    Args:
        clause_rows: [C, S, N_out] (short clauses repeat a row), limits [C, S], strict [C, S].
        shortcuts: fixed maps across all of `network.crossed`, whose neurons are then neither split nor
            have parameters.
    """

    def __init__(
        self,
        engine: TorchEngine,
        found: Enclosed,
        lower: Tensor,
        upper: Tensor,
        clause_rows: Tensor,
        limits: Tensor,
        strict: Tensor,
        shape: InputShape | None = None,
        shortcuts: Mapping[str, Shortcut] | None = None,
    ):
        self.engine, self.network = engine, engine.network
        crossed = frozenset() if shortcuts is None else self.network.crossed
        self.shortcuts = shortcuts
        self.lower, self.upper, self.shape = lower, upper, shape
        self.clause_rows, self.limits, self.strict = clause_rows, limits, strict
        self.open = {n: found.matter(n, engine.open_neurons(n, found.box)) for n in self.network.bounded}
        readers = {n: {reader for reader, _ in self.network.readers[n]} for n in self.open}
        self.open = {n: e for n, e in self.open.items() if len(e) and not crossed.issuperset(readers[n])}
        self.space = SlopeSpace(self.network, found.box, self.open, without=crossed)
        self.slices: dict[str, slice] = {}
        self.width = 0
        for name, elements in self.open.items():
            self.slices[name] = slice(self.width, self.width + len(elements))
            self.width += len(elements)
        # The ascent keeps about a dozen copies of every layer's coefficients.
        sizes = sum(n.size for n in self.network.graph.nodes.values() if n.name not in crossed)
        per_domain = 14 * clause_rows.shape[1] * sizes * torch.finfo(engine.dtype).bits // 8
        # One step of the ascent is about three passes; a round of them should not take many seconds.
        rate = min(engine.flops_per_second, engine.ascent_flops_per_second)
        each = [self.network.row_flops(o, without=crossed) for o in self.network.graph.outputs]
        passes = 3 * (max(1.0, *each) + sum(s.flops for s in (shortcuts or {}).values())) / rate
        brief = STEP_SECONDS / (passes * clause_rows.shape[1])
        most = MOST_AT_ONCE[engine.device.type]
        self.batch_size = int(np.clip(min(4 * engine.memory_bytes // per_domain, brief), 2, most))
        self._stand_on(found)

    def _stand_on(self, found: Enclosed) -> None:
        """Take these bounds as the root's."""
        self.found, self.root = found, found.box
        self._base = Enclosure(dict(self.root.lower), dict(self.root.upper), self.root.slack)
        self._move(self._base, set(self.network.bounded) - self.open.keys())

    def within(self, found: Enclosed) -> DomainEngine:
        """The same with tighter bounds; batches of either are batches of the other."""
        inner = copy.copy(self)
        inner._stand_on(found)
        return inner

    def gather(self, values: dict[str, Tensor]) -> Tensor:
        """name -> [B, *shape] restricted to the open neurons, [B, K]."""
        parts = [values[n].flatten(1)[:, e] for n, e in self.open.items()]
        return torch.cat(parts, dim=1) if parts else self.lower.new_zeros(self.lower.shape[0], 0)

    def scatter(self, name: str, row: Tensor, base: Tensor) -> Tensor:
        """Open neurons' values [..., K] put into `base` [..., size of the node], as [..., *shape]."""
        node = self.network.graph[name]
        full = base.index_copy(base.ndim - 1, self.open[name], row[..., self.slices[name]])
        return full.reshape(*row.shape[:-1], *node.shape)

    def initial(self, clauses: np.ndarray | Tensor) -> DomainBatch:
        """See engine.DomainEngine."""
        clauses = torch.as_tensor(clauses, device=self.lower.device)
        b, s = len(clauses), self.clause_rows.shape[1]
        low = self.gather(self.root.lower).expand(b, -1).clone()
        high = self.gather(self.root.upper).expand(b, -1).clone()
        free = self.space.start(self.root).expand(b, s, -1).clone()
        zero = torch.zeros_like(low)
        return DomainBatch(
            low,
            high,
            zero.to(torch.int8),
            zero,
            torch.zeros(b, s, self.width, dtype=low.dtype, device=low.device),
            free,
            clauses,
            torch.full((b,), -torch.inf, dtype=torch.float64, device=low.device),
            torch.zeros(b, dtype=torch.int64, device=low.device),
            torch.full((b, CANDIDATES), -1, device=low.device),
        )

    def enclosure(self, batch: DomainBatch) -> Enclosure:
        """Bounds of every node: the root's, with the open neurons' own."""
        b = len(batch)
        box = Enclosure(dict(self._base.lower), dict(self._base.upper), self.root.slack)
        for name in self.open:
            for target, row in ((box.lower, batch.low), (box.upper, batch.high)):
                base = target[name].flatten(1).expand(b, -1)
                target[name] = self.scatter(name, row, base)
        self._move(box, self.open.keys())
        return box

    def _move(self, box: Enclosure, origins: Collection[str]) -> None:
        """Give the nodes that only move data of `origins` their bounds."""
        for name, (origin, index) in self.network.moved.items():
            if origin not in origins:
                continue
            for target in (box.lower, box.upper):
                moved = target[origin].flatten(1)[:, index]
                target[name] = moved.reshape(-1, *self.network.graph[name].shape)

    def ascent(self, batch: DomainBatch) -> Ascent:
        """The maximisation problem of a batch."""
        b = len(batch)
        rows = self.clause_rows[batch.clause]
        split_nodes = [n for n in self.open if bool((batch.sign[:, self.slices[n]] != 0).any())]

        def splits(beta: Tensor) -> dict[str, Split]:
            found = {}
            for name in split_nodes:
                size = self.network.graph[name].size
                zero = beta.new_zeros(b, size)
                sign = self.scatter(name, batch.sign.to(beta.dtype), zero)
                point = self.scatter(name, batch.point, zero)
                wide = beta.new_zeros(*beta.shape[:2], size)
                masked = beta * (batch.sign != 0).unsqueeze(1)
                found[name] = Split(sign, point, self.scatter(name, masked, wide))
            return found

        lower, upper = self.lower.expand(b, -1), self.upper.expand(b, -1)
        return Ascent(
            self.network,
            self.space,
            self.network.split_rows(rows),
            self.enclosure(batch),
            lower,
            upper,
            self.shape,
            splits if split_nodes else None,
            shortcuts=self.shortcuts,
        )

    def closed(self, batch: DomainBatch, row_margins: Tensor) -> Tensor:
        """[B] clauses refuted: some row cannot reach its limit. NaN refutes nothing."""
        strict = self.strict[batch.clause]
        return torch.where(strict, row_margins >= 0, row_margins > 0).any(1)

    @torch.no_grad()
    def bound(self, batch: DomainBatch, iterations: int, stopped: Callable[[], bool]) -> DomainBounds:
        """See engine.DomainEngine; also scores the neurons."""
        ascent = self.ascent(batch)
        limits = self.limits[batch.clause]
        free, beta = batch.free, batch.beta if ascent.splits is not None else None
        if iterations > 1 and self.space.size + (0 if beta is None else 1) > 0:
            past: list[Tensor] = []
            split = bool((batch.depth > 0).all())
            patient = split and bool((batch.candidates[:, 0] < 0).any())  # nothing left but to converge

            def stop(value: Tensor) -> bool:
                # A little beyond the limit, so that the rounding terms of the final pass are paid for.
                missing = (limits + 1e-4 * (1 + limits.abs()) - value).amin(1)
                past.append(missing)
                if stopped() or bool((missing < 0).all()):
                    return True
                if patient or len(past) <= STALL_STEPS:
                    return False
                return bool(((missing < 0) | (past[-1 - STALL_STEPS] - missing < STALL_GAIN * missing)).all())

            if split and not patient and self.network.shortcuts:
                steps = max(2, int(CHILD_SHARE * iterations))
                free, beta = ascent.run(free, beta, steps, stop, CHILD_RATE)
            else:
                free, beta = ascent.run(free, beta, iterations, stop)
        fixed = self.space.fixed_planes(ascent.box)
        value, form, minimiser, planes = ascent.evaluate(free, beta, fixed, rigorous=True, keep_visits=True)
        margins = value - limits
        best = margins.argmax(1)
        row = torch.arange(len(batch), device=best.device)
        scores = self._scores(form, planes, ascent.box, best, minimiser[row, best])
        done = replace(
            batch,
            free=free,
            beta=batch.beta if beta is None else beta,
            margin=torch.maximum(batch.margin, margins.max(1).values),
            candidates=_strongest(scores),
        )
        points, closed = minimiser[row, best], self.closed(batch, margins)
        return DomainBounds(done, margins.double().cpu().numpy(), points.double().cpu().numpy(), closed.cpu().numpy())

    @torch.no_grad()
    def losses(self, batch: DomainBatch) -> Tensor:
        """What the relaxations of what each open neuron feeds cost the best row, [B, K]."""
        ascent = self.ascent(batch)
        beta = batch.beta if ascent.splits is not None else None
        fixed = self.space.fixed_planes(ascent.box)
        value, form, minimiser, planes = ascent.evaluate(batch.free, beta, fixed, rigorous=False, keep_visits=True)
        best = (value - self.limits[batch.clause]).argmax(1)
        row = torch.arange(len(batch), device=best.device)
        return self._scores(form, planes, ascent.box, best, minimiser[row, best])

    def _scores(
        self, form: LinearForm, planes: Mapping[str, Planes], box: Enclosure, best: Tensor, x: Tensor
    ) -> Tensor:
        """What each open neuron's relaxations cost the rows `best` [B] at points x [B, N_in]: [B, K]."""
        found = costs(self.network, form.visits, planes, box, best, self.network.values(x))
        scores = torch.zeros(len(best), self.width, dtype=self.lower.dtype, device=self.lower.device)
        for name, part in self.slices.items():
            if name in found:
                scores[:, part] = found[name][:, self.open[name]]
        return torch.where(self.gather(box.upper) > self.gather(box.lower), scores, 0.0)

    def split_points(self, batch: DomainBatch, neurons: Tensor) -> Tensor:
        """Where to cut neurons [B, k] (positions in K) of the batch, [B, k]."""
        points = torch.zeros_like(batch.low)
        for name, chosen in self.slices.items():
            low, high = batch.low[:, chosen], batch.high[:, chosen]
            points[:, chosen] = self._cut(name, low, high)
        return points.gather(1, neurons)

    def _cut(self, name: str, low: Tensor, high: Tensor) -> Tensor:
        """The first elementwise reader's split point, where it lies inside; else the middle."""
        middle = 0.5 * (low + high)
        for reader, index in self.network.readers[name]:
            rule, node = ELEMENTWISE.get(self.network.graph[reader].op), self.network.graph[reader]
            if rule is None:
                continue
            if rule.kink_at_zero:
                return torch.where((low < 0) & (high > 0), torch.zeros_like(low), middle)
            if index is None:
                point = rule.split_point(low, high, node)
                return torch.where((point > low) & (point < high), point, middle)
        return middle

    def split(self, batch: DomainBatch, neurons: Tensor, points: Tensor) -> DomainBatch:
        """Two children of every subdomain: z >= point first, then z <= point; neurons, points [B]."""
        b = len(batch)
        both = DomainBatch.join([batch, batch])
        rows = torch.arange(b, device=neurons.device)
        low, high, sign, point, beta = (t.clone() for t in (both.low, both.high, both.sign, both.point, both.beta))
        low[rows, neurons] = torch.maximum(low[rows, neurons], points)
        high[b + rows, neurons] = torch.minimum(high[b + rows, neurons], points)
        sign[rows, neurons], sign[b + rows, neurons] = 1, -1
        for half in (rows, b + rows):
            point[half, neurons] = points
            beta[half, :, neurons] = 0.0
        return replace(both, low=low, high=high, sign=sign, point=point, beta=beta, depth=both.depth + 1)

    def join(self, parts: Sequence[DomainBatch]) -> DomainBatch:
        """See engine.DomainEngine."""
        return DomainBatch.join(parts)

    def refine(self, seconds: float, stopped: Callable[[], bool]) -> bool:
        """See engine.DomainEngine; here only the root's own ascent tightens them."""
        return False

    def focus(self, spare: FocusedEngine | None) -> FocusedEngine | None:
        """See engine.DomainEngine; here every subdomain shares the root's bounds."""
        return None

    def forget(self, batch: DomainBatch) -> DomainBatch:
        """See engine.DomainEngine; here everything is kept."""
        return batch

    def branch(self, batch: DomainBatch) -> DomainBatch:
        """Children of every subdomain at the candidate whose worse child is best, judged by a quick bound."""
        candidates = batch.candidates
        b, k = candidates.shape
        points = self.split_points(batch, candidates.clamp(min=0))
        best = torch.zeros(b, dtype=torch.int64, device=candidates.device)
        best_score = torch.full((b,), -torch.inf, dtype=torch.float64, device=candidates.device)
        for j in range(k):
            children = self.split(batch, candidates[:, j].clamp(min=0), points[:, j])
            margins = self.quick(children).reshape(2, b)
            score = margins.min(0).values + 0.01 * margins.max(0).values.clamp(max=1e6)
            better = (candidates[:, j] >= 0) & (score > best_score)
            best = torch.where(better, j, best)
            best_score = torch.where(better, score, best_score)
        rows = torch.arange(b, device=candidates.device)
        return self.split(batch, candidates[rows, best], points[rows, best])

    @torch.no_grad()
    def quick(self, batch: DomainBatch) -> Tensor:
        """Non-rigorous margins [B] with the parameters as they are: for choosing between splits only."""
        ascent = self.ascent(batch)
        fixed = self.space.fixed_planes(ascent.box)
        beta = batch.beta if ascent.splits is not None else None
        value, *_ = ascent.evaluate(batch.free, beta, fixed, rigorous=False)
        return (value - self.limits[batch.clause]).max(1).values


def _strongest(scores: Tensor) -> Tensor:
    """Positions of the largest positive scores [B, K] -> [B, CANDIDATES], -1 where there are none."""
    count = min(CANDIDATES, scores.shape[1])
    top = scores.topk(count, dim=1)
    found = torch.where(top.values > 0, top.indices, -1)
    return torch.nn.functional.pad(found, (0, CANDIDATES - count), value=-1)
