"""Rigorous bounds over batches of subdomains: intervals forwards, linear forms backwards, in float64 with its rounding.

A form A h of the values of a step is replaced, step by step, by one of the values it reads that is nowhere larger.
Every replacement is made with the numbers that were stored. What is lost beside the relaxation is the rounding of this
arithmetic, at most gamma_n |A| (|W| m + |b|) a step with m >= |h| on the subdomain, and the deployed program's, which
is of the same form (Higham 2002, section 3). Slopes and multipliers may be any numbers in range.

Shape letters: B subdomains, K forms, N numbers of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import sparse

from verifier.proof.curves import CENTER, line_above, line_below, odd
from verifier.proof.format import NeuronRows
from verifier.proof.input_set import Least, least
from verifier.proof.program import UNIT, Program, Step, gamma, image, product
from verifier.spec.problem import InputSet

#: Covers the underflow of a product, times what follows it.
_TINY = 1e-290
#: Roundings of a coefficient beside those of sums of products: a slope, a multiplier, and the sum over readers.
_SPARE = 8
#: Forms of one backward pass, in numbers of the widest step.
_MOST_NUMBERS = 1_000_000


@dataclass(frozen=True)
class Lines:
    """slope_lower z + offset_lower <= f(z) <= slope_upper z + offset_upper on a subdomain; [B, N] each."""

    slope_lower: np.ndarray
    offset_lower: np.ndarray
    slope_upper: np.ndarray
    offset_upper: np.ndarray


@dataclass(frozen=True)
class Domain:
    """B subdomains of one kind.

    Attributes:
        lower, upper: step name -> float64 [B, N] (or [1, N] where all have the same).
        error, reach: linear step name -> at least |deployed - exact| of it on deployed inputs, and |W| m + magnitude,
            [B, N].
        slopes: step that a kinked one reads -> lower slopes in [0, 1] of their range, [B, N]; default where absent.
        multipliers: step -> beta >= 0 of the splits that were made there, times their sign, [B, N].
        inputs: half-spaces and a ball that cut every subdomain, if any.
    """

    lower: dict[str, np.ndarray]
    upper: dict[str, np.ndarray]
    error: dict[str, np.ndarray] = field(default_factory=dict)
    reach: dict[str, np.ndarray] = field(default_factory=dict)
    slopes: Mapping[str, np.ndarray] = field(default_factory=dict)
    multipliers: Mapping[str, np.ndarray] = field(default_factory=dict)
    inputs: InputSet | None = None
    # Lines of steps, once their sources' bounds are final; every domain has its own.
    made: dict[str, Lines] = field(init=False, default_factory=dict, repr=False)

    def size(self, name: str) -> np.ndarray:
        """m >= |value|, [B, N]."""
        return np.maximum(np.abs(self.lower[name]), np.abs(self.upper[name]))

    @property
    def empty(self) -> np.ndarray:
        """Bool [B]: some step has no value left, so there is no input."""
        found = np.zeros(max(v.shape[0] for v in self.lower.values()), dtype=bool)
        for name, low in self.lower.items():
            found |= (low > self.upper[name]).any(axis=1)
        return found


RowsOf = Callable[[str, Domain], NeuronRows | None]


class Bounder:
    """Bounds of a program's steps and of forms of its outputs."""

    def __init__(self, program: Program):
        self.program = program

    def enclose(
        self, lower: np.ndarray, upper: np.ndarray, rows: RowsOf | None = None, inputs: InputSet | None = None
    ) -> Domain:
        """Bounds of every step over boxes lower, upper [B, N_in], with a backward pass for every unstable neuron.

        Args:
            rows: for one box (B = 1), asked at every step with neurons, given its name and the bounds so far, which of
                them are bounded with slopes of their own.
            inputs: what cuts the boxes, if anything does.
        """
        domain, start = Domain({}, {}, inputs=inputs), 0
        for name in self.program.inputs:
            stop = start + self.program.steps[name].size
            domain.lower[name], domain.upper[name] = lower[:, start:stop], upper[:, start:stop]
            start = stop
        with np.errstate(over="ignore", invalid="ignore"):
            for name, step in self.program.steps.items():
                if name in domain.lower:
                    continue
                if step.alpha is not None:
                    self._kinked(step, domain)
                elif step.curve is not None:
                    self._curved(step, domain)
                elif step.groups is not None:
                    for side in (domain.lower, domain.upper):
                        side[name] = side[step.sources[0]][:, step.groups].max(axis=2)
                else:
                    self._linear(step, domain)
                if name in self.program.neurons:
                    self._refine(step, domain)
                    given = None if rows is None else rows(name, domain)
                    if given is not None:
                        self._refine_by(given, step, domain)
        return domain

    def forms(self, domain: Domain, coeffs: np.ndarray) -> np.ndarray:
        """Lower bounds [B, K] of coeffs [K, N_out] @ outputs; -inf or NaN where nothing is known."""
        begin: dict[str, np.ndarray] = {}
        start, added = 0, np.zeros((1, 1))
        with np.errstate(over="ignore", invalid="ignore"):
            for name in self.program.outputs:
                stop = start + self.program.steps[name].size
                part = coeffs[None, :, start:stop]
                if name in begin:  # an output that is listed twice
                    added = added + _along(np.abs(begin[name]) + np.abs(part), domain.size(name))
                begin[name] = begin[name] + part if name in begin else part
                start = stop
            found = self._backward(domain, begin)
            if not added.any():
                return found
            return found - 8 * UNIT * (len(self.program.outputs) * added + np.abs(found))

    def _linear(self, step: Step, domain: Domain) -> None:
        """The step's interval, reach and error."""
        center, radius, reach = step.added[None, :], np.zeros((1, step.size)), step.magnitude[None, :]
        least = np.zeros((1, 1))
        for source, part, size in zip(step.sources, step.parts, step.sizes, strict=True):
            low, high, most = domain.lower[source], domain.upper[source], domain.size(source)
            center = center + image(part, 0.5 * low + 0.5 * high)
            radius = radius + image(size, 0.5 * high - 0.5 * low)
            reach = reach + image(size, most)
            least = least + most.max(axis=1, keepdims=True)
        reach = reach * (1 + gamma(step.row_terms + 4)) + _TINY
        error = step.share * (1 + 1e-9) * reach
        if step.least:
            error = error + step.least * (1 + step.largest + least)
        wide = radius + error + gamma(2 * step.row_terms + 16) * reach
        domain.lower[step.name], domain.upper[step.name] = center - wide, center + wide
        domain.reach[step.name], domain.error[step.name] = reach, error

    def _kinked(self, step: Step, domain: Domain) -> None:
        source = step.sources[0]
        low, high = domain.lower[source], domain.upper[source]
        error = self._kink_error(step, domain)
        for target, end, sign in ((domain.lower, low, -1.0), (domain.upper, high, 1.0)):
            bent = np.maximum(end, step.alpha * end)
            target[step.name] = np.where(end < 0, bent + sign * (error + 2 * UNIT * np.abs(bent)), bent) + 0.0

    def _curved(self, step: Step, domain: Domain) -> None:
        source, curve = step.sources[0], str(step.curve)
        margin = step.share + 16 * UNIT  # of tanh as computed here, and of the sums
        domain.lower[step.name] = odd(curve, domain.lower[source]) + CENTER[curve] - margin
        domain.upper[step.name] = odd(curve, domain.upper[source]) + CENTER[curve] + margin

    def _kink_error(self, step: Step, domain: Domain) -> np.ndarray:
        """At least |deployed f(z) - f(z)|, [B, N]."""
        if step.share == 0.0:
            return np.zeros((1, step.size))
        return step.share * float(step.alpha or 0.0) * domain.size(step.sources[0]) + 4 * step.least

    def _refine(self, step: Step, domain: Domain) -> None:
        """Intersect the bounds of a step's unstable neurons with those of their own backward passes.

        Those of one subdomain do not depend on which others are bounded with it.
        """
        if not step.sources or all(not self.program.steps[s].sources for s in step.sources):
            return  # an interval of the inputs' own is exact
        low, high = domain.lower[step.name], domain.upper[step.name]
        relaxed = low < high if step.name in self.program.curved else (low < 0) & (high > 0)
        unstable = np.flatnonzero(relaxed.any(axis=0))
        each = max(1, _MOST_NUMBERS // (2 * self.program.widest * low.shape[0]))
        low, high = low.copy(), high.copy()
        for first in range(0, len(unstable), each):
            chosen = unstable[first : first + each]
            coeffs = np.zeros((1, 2 * len(chosen), step.size))
            order = np.arange(len(chosen))
            coeffs[0, order, chosen], coeffs[0, len(chosen) + order, chosen] = 1.0, -1.0
            found = self._backward(domain, {step.name: coeffs})
            below, above = found[:, : len(chosen)], -found[:, len(chosen) :]
            mine = relaxed[:, chosen]
            low[:, chosen] = np.where(mine & (below > low[:, chosen]), below, low[:, chosen])
            high[:, chosen] = np.where(mine & (above < high[:, chosen]), above, high[:, chosen])
        domain.lower[step.name], domain.upper[step.name] = low, high

    def _refine_by(self, rows: NeuronRows, step: Step, domain: Domain) -> None:
        """Intersect the bounds of one box's neurons of a step with those that given slopes prove."""
        first = self.program.neurons[step.name].start
        wanted = np.flatnonzero((rows.neuron >= first) & (rows.neuron < first + step.size))
        low, high = domain.lower[step.name].copy(), domain.upper[step.name].copy()
        each = max(1, _MOST_NUMBERS // (4 * self.program.widest))
        for begin in range(0, len(wanted), each):
            part = wanted[begin : begin + each]
            place, side = rows.neuron[part] - first, np.where(rows.side[part] > 0, 1.0, -1.0)
            coeffs = np.zeros((len(part), 1, step.size))
            coeffs[np.arange(len(part)), 0, place] = side
            own = replace(domain, slopes=self.slopes(domain, rows.free, rows.slopes[part], before=step.name))
            found = self._backward(own, {step.name: coeffs})[:, 0]
            for positive, ends, better in ((True, low, np.maximum), (False, high, np.minimum)):
                here = (side > 0) == positive
                proved = np.where(np.isfinite(found), found, -np.inf)[here] * (1.0 if positive else -1.0)
                better.at(ends[0], place[here], proved)
        domain.lower[step.name], domain.upper[step.name] = low, high

    def slopes(
        self, domain: Domain, free: np.ndarray, given: np.ndarray, before: str | None = None
    ) -> dict[str, np.ndarray]:
        """Lower slopes as a Domain has them, from those given for some neurons.

        Args:
            free: int [F], neurons; given: uint8 [B, F], their slopes in 1/255 of the range; others are the default.
            before: only those of earlier steps, as the others' bounds are not known yet.
        """
        found: dict[str, np.ndarray] = {}
        for name, own in self.program.neurons.items():
            if name == before:
                break
            here = np.flatnonzero((free >= own.start) & (free < own.stop))
            if len(here) and len(given):
                share = (domain.upper[name] > -domain.lower[name]).astype(np.float64).repeat(len(given), axis=0)
                share[:, free[here] - own.start] = given[:, here] / 255.0
                found[name] = share
        return found

    def lines(self, step: Step, domain: Domain) -> Lines:
        """A kinked or an S-shaped step's lines on a domain, whose bounds of what it reads are final."""
        if step.name not in domain.made:
            domain.made[step.name] = self._lines(step, domain)
        return domain.made[step.name]

    def _lines(self, step: Step, domain: Domain) -> Lines:
        if step.curve is not None:
            ends = domain.lower[step.sources[0]], domain.upper[step.sources[0]]
            (below, start), (above, end) = line_below(step.curve, *ends), line_above(step.curve, *ends)
            return Lines(below, start + CENTER[step.curve] - step.share, above, end + CENTER[step.curve] + step.share)
        source, alpha = step.sources[0], float(step.alpha or 0.0)
        low, high = domain.lower[source], domain.upper[source]
        share = domain.slopes.get(source)
        if share is None:
            share = (high > -low).astype(np.float64)
        below = np.where(low >= 0, 1.0, np.where(high <= 0, alpha, alpha + (1 - alpha) * share))
        below = np.clip(below, alpha, 1.0)
        bent = (low < 0) & (high > 0)
        width = np.where(bent, high - low, 1.0)
        above = np.where(bent, (high - alpha * low) / width, below)
        # The line of any slope lies above the convex f on [low, high] where it does at both ends.
        ends = np.maximum(alpha * low - above * low, high - above * high)
        ends = ends + 8 * UNIT * (np.abs(low) + np.abs(high)) + _TINY
        error = self._kink_error(step, domain)
        kinked = np.where(low < 0, error, 0.0)
        return Lines(below, -kinked, above, np.where(bent, ends, 0.0) + kinked)

    def _backward(self, domain: Domain, begin: Mapping[str, np.ndarray]) -> np.ndarray:
        """Lower bounds [B, K] of the sums of forms [B or 1, K, N] of the steps they are given for."""
        program, pending = self.program, dict(begin)
        total = size = loss = np.zeros((1, 1))
        at_inputs: dict[str, np.ndarray] = {}
        for name in reversed(program.steps):
            coeffs = pending.pop(name, None)
            if coeffs is None:
                continue
            step = program.steps[name]
            signed = domain.multipliers.get(name)
            if signed is not None:  # beta sign z >= 0 on the subdomain
                coeffs = coeffs - signed[:, None, :]
                loss = loss + 2 * UNIT * _along(np.abs(coeffs) + 2 * np.abs(signed)[:, None, :], domain.size(name))
            size_here = np.abs(coeffs)
            if name in program.inputs:
                at_inputs[name] = coeffs
                continue
            positive = coeffs > 0
            if step.groups is not None:
                source = step.sources[0]
                chosen, exact, most = self._largest(step, domain)
                moved = np.where(positive | exact[:, None, :], coeffs, 0.0)
                rest = (coeffs - moved) * most[:, None, :]
                total, scale = total + rest.sum(axis=2), np.abs(rest).sum(axis=2)
                size, loss = size + scale, loss + gamma(step.size + 8) * scale
                # Parts that meet in one place may cancel.
                reach = domain.size(source)
                met = np.take_along_axis(np.broadcast_to(reach, (len(chosen), reach.shape[1])), chosen, axis=1)
                loss = loss + gamma(step.most_met + 8) * _along(np.abs(moved), met)
                loss = loss + self._pass_on(
                    pending, domain, source, _placed(moved, chosen, domain.lower[source].shape[1])
                )
                continue
            if step.alpha is not None or step.curve is not None:
                lines = self.lines(step, domain)
                shift = np.where(positive, lines.offset_lower[:, None, :], lines.offset_upper[:, None, :])
                scale = (size_here * np.abs(shift)).sum(axis=2)
                total = total + (coeffs * shift).sum(axis=2)
                size, loss = size + scale, loss + gamma(step.size + 8) * scale
                slope = np.where(positive, lines.slope_lower[:, None, :], lines.slope_upper[:, None, :])
                loss = loss + self._pass_on(pending, domain, step.sources[0], coeffs * slope)
                continue
            scale = _along(size_here, domain.reach[name])
            total, size = total + _along(coeffs, step.added[None, :]), size + scale
            loss = loss + gamma(step.column_terms + step.size + 8) * scale + _along(size_here, domain.error[name])
            for source, part in zip(step.sources, step.parts, strict=True):
                flat = product(coeffs.reshape(-1, step.size), part)
                loss = loss + self._pass_on(pending, domain, source, flat.reshape(*coeffs.shape[:2], -1))
        found = self._at_inputs(domain, at_inputs)
        total, size, loss = total + found.value, size + found.size, loss + found.loss
        loss = loss * (1 + 1e-6) + gamma(4 * len(program.steps) + 16) * (size + np.abs(total)) + _TINY
        bound = total - loss
        return np.where(np.isnan(bound), -np.inf, bound)

    def _at_inputs(self, domain: Domain, forms: Mapping[str, np.ndarray]) -> Least:
        """The least value of forms of the inputs, given for some of them."""
        names = self.program.inputs
        b, k = (max((f.shape[axis] for f in forms.values()), default=1) for axis in (0, 1))
        zeros = [np.zeros((1, 1, self.program.steps[name].size)) for name in names]
        parts = [forms.get(name, zero) for name, zero in zip(names, zeros, strict=True)]
        joined = np.concatenate([np.broadcast_to(p, (b, k, p.shape[2])) for p in parts], axis=2)
        most = max(domain.lower[name].shape[0] for name in names)
        lower, upper = (
            np.concatenate([np.broadcast_to(side[n], (most, side[n].shape[1])) for n in names], axis=1)[:, None, :]
            for side in (domain.lower, domain.upper)
        )
        return least(joined, lower, upper, domain.inputs)

    def _largest(self, step: Step, domain: Domain) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each maximum the number that is never below the others, or where there is none a good lower bound.

        Returns:
            its place among the source's numbers int [B, N], whether it is always the maximum, and the most there is.
        """
        assert step.groups is not None
        low, high = (ends[step.sources[0]][:, step.groups] for ends in (domain.lower, domain.upper))
        best = low.argmax(axis=2)[:, :, None]
        others = high.copy()
        np.put_along_axis(others, best, -np.inf, axis=2)
        exact = np.take_along_axis(low, best, axis=2)[:, :, 0] >= others.max(axis=2)
        chosen = np.take_along_axis(np.broadcast_to(step.groups, low.shape), best, axis=2)[:, :, 0]
        return chosen, exact, high.max(axis=2)

    def _pass_on(self, pending: dict[str, np.ndarray], domain: Domain, source: str, part: np.ndarray) -> np.ndarray:
        """Add a part to the form of a step; what its roundings may cost, [B, K]."""
        pending[source] = pending[source] + part if source in pending else part
        roundings = (_SPARE + self.program.readers[source]) * UNIT
        return roundings * _along(np.abs(part), domain.size(source)) + _TINY * domain.size(source).sum(axis=1)[:, None]


def _placed(forms: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    """forms [B or 1, K, N] with numbers moved to places [B or 1, N] among `size`; what meets is added up."""
    b = max(len(forms), len(places))
    found = np.zeros((b, forms.shape[1], size))
    for k in range(b):
        matrix = sparse.csr_matrix((np.ones(forms.shape[2]), (np.arange(forms.shape[2]), places[k % len(places)])),
                                   shape=(forms.shape[2], size))  # fmt: skip
        found[k] = product(forms[k % len(forms)], matrix)
    return found


def _along(forms: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """forms [B, K, N] times numbers [B or 1, N], summed: [B, K]."""
    if numbers.shape[0] == 1:
        return forms @ numbers[0]
    return np.matmul(forms, numbers[:, :, None])[:, :, 0]


def divided(domain: Domain, signs: Mapping[str, np.ndarray], slopes, multipliers) -> Domain:
    """The subdomains of one box where sign * z >= 0 for int8 signs [B, N] of steps, 0 for no split."""
    lower, upper = dict(domain.lower), dict(domain.upper)
    for name, sign in signs.items():
        lower[name] = np.where(sign > 0, np.maximum(lower[name], 0.0), lower[name])
        upper[name] = np.where(sign < 0, np.minimum(upper[name], 0.0), upper[name])
    return replace(domain, lower=lower, upper=upper, slopes=slopes, multipliers=multipliers)
