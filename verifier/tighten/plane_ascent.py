"""Bounds by ascent over planes: one for every neuron and subdomain, over all that the neuron reads.

CROWN bounds a neuron f from above by its chord, a line in z = w x + b; here also by planes in x, of which there is one
for every vector of shares p in [0, 1]^n, with slope (flat + (steep - flat) p) w. On a network whose stable neurons are
written out (`substitute.py`) x is the input and a few bent neurons, and the least of those planes is the neuron's
concave envelope over the box of x. A backward pass is differentiable in p, in the slopes of lower lines, in the mixture
of chord and plane and in the multipliers of splits, so Adam finds them together in a few dozen passes (compiled:
csrc/cpu/simd/planes.h), where cutting planes in a linear program take minutes. What it finds is an estimate; `prove`
makes it a bound.
Source: Anderson et al. 2020, arXiv:1811.01988; Tjandraatmadja et al. 2020, arXiv:2006.14076 (the envelope); De Palma et
al. 2021, arXiv:2101.05844 (its dual); Xu et al. 2021, arXiv:2011.13824 (ascent in the parameters of a backward pass).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy import sparse

from verifier.kernels.native import native
from verifier.spec.problem import Clause
from verifier.tighten.hull import Envelopes, envelopes
from verifier.tighten.model import LinearModel, RowBuffer
from verifier.tighten.safe_bound import safe_bound

#: Adam: decay of the step, weights of old gradients and of their squares.
DECAY, OLD_FIRST, OLD_SECOND = 0.97, 0.65, 0.99
#: Width of the step between the two pieces of a plane's offset, as a share of what z can move.
SOFT = 0.005
#: Weight of the newest minimiser in their mean.
NEWEST = 0.2
#: An ascent ends where so many passes gain a smaller share of what is missing.
WINDOW, LEAST_GAIN = 10, 0.02


@dataclass(frozen=True)
class Parameters:
    """What an ascent chooses, float32, neurons of all layers one after the other.

    Attributes:
        slope: [K] of lower lines. chord: [K], its share of the upper bound, the plane has the rest.
        split: [K], multipliers of splits, pulling z up where positive.
        plane: [sum of K W], shares p of the planes, layer by layer, rows padded.
        rows: float64 [S], weights of the clause's rows, which sum to 1.
    """

    slope: np.ndarray
    chord: np.ndarray
    split: np.ndarray
    plane: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True)
class Subdomain:
    """Column bounds float64 [C], and of every neuron, int8 [K], the side of its kink it is on, 0 or 1, or -1."""

    low: np.ndarray
    high: np.ndarray
    sides: np.ndarray


@dataclass(frozen=True)
class Climbed:
    """Attributes:
    bound: the estimate that the parameters give. point: mean of the minimisers, [C].
    pull: coefficients on the neurons' outputs, [K].
    """

    bound: float
    parameters: Parameters
    point: np.ndarray
    pull: np.ndarray


def covers(model: LinearModel) -> bool:
    """Whether every neuron of a model has two pieces, bent upwards at 0, and reads columns of its own layer nowhere."""
    layers = envelopes(model)
    return bool(layers) and [len(e.post) for e in layers] == [len(n.post) for n in model.neurons]


class PlaneAscent:
    """Ascents for one clause on subdomains of one model.

    Args:
        model: one with `covers`; best after `substituted`.
        clause: to be refuted: no point of a subdomain has all rows at most their limits.
        threads: for subdomains side by side.
    Requires: the compiled module.
    """

    def __init__(self, model: LinearModel, clause: Clause, threads: int = 1):
        coeffs = sparse.csr_matrix(clause.coeffs)
        shape = (len(clause.limits), model.column_count)
        block = sparse.csr_matrix((coeffs.data, model.outputs[coeffs.indices], coeffs.indptr), shape=shape)
        self.own, self.threads = model, threads
        self.model = model.with_rows(block, np.full(shape[0], -np.inf), clause.limits)
        self._costs, self._limits = block.toarray(), np.asarray(clause.limits, dtype=np.float64)
        self.layers = envelopes(model)
        self.pre = np.concatenate([n.pre for n in model.neurons])
        self.post = np.concatenate([n.post for n in model.neurons])
        self.slopes = np.concatenate([e.slopes for e in self.layers])
        row_of = model.defining_rows()
        self._rows = row_of[self.pre]
        row_of[self.pre] = -1
        self._last = np.sort(row_of[row_of >= 0])[::-1]
        starts = np.cumsum([0, *(len(e.post) for e in self.layers)])
        of_layers = [model.matrix[self._rows[a:b]] for a, b in pairwise(starts)]
        self._reads = [block.T.tocsr() for block in of_layers]
        self._program = native().PlaneProgram(self._net())

    def start(self) -> Parameters:
        """Chords and planes by half, planes that are the chord over the box of x."""
        model, plane = self.own, []
        for e in self.layers:
            ends = e.weight * model.col_lower[e.sources], e.weight * model.col_upper[e.sources]
            most, least = np.maximum(*ends).sum(axis=1) + e.high, np.minimum(*ends).sum(axis=1) + e.low
            share = np.clip(most / np.maximum(most - least, 1e-300), 0.0, 1.0)
            plane.append(np.repeat(share, _padded(e)))
        steeper = model.col_upper[self.pre] > -model.col_lower[self.pre]
        slope = np.where(steeper, self.slopes[:, 1], self.slopes[:, 0])
        half, none = np.full(len(slope), 0.5, np.float32), np.zeros(len(slope), np.float32)
        rows = np.full(len(self._limits), 1.0 / len(self._limits))
        return Parameters(slope.astype(np.float32), half, none, np.concatenate(plane).astype(np.float32), rows)

    def climb(self, at: Sequence[Subdomain], start: Parameters, steps: int, rate: float) -> list[Climbed]:
        """At most `steps` passes in each subdomain, from the same parameters; ends as soon as one is above zero.

        Args:
            rate: of the first step, in units of a parameter's range.
        """
        rule = {
            "steps": steps, "window": WINDOW, "rate": rate, "decay": DECAY, "old_first": OLD_FIRST,
            "old_second": OLD_SECOND, "soft": SOFT, "newest": NEWEST, "least_gain": LEAST_GAIN,
        }  # fmt: skip
        own = [Parameters(**{k: v.copy() for k, v in vars(start).items()}) for _ in at]
        results = [
            {"point": np.empty(len(a.low)), "pull": np.empty(len(self.pre), np.float32), "low": a.low, "high": a.high,
             "side": a.sides, **vars(p)}
            for a, p in zip(at, own, strict=True)
        ]  # fmt: skip
        bounds = self._program.climb(rule, results, self.threads)
        return [Climbed(b, p, r["point"], r["pull"]) for b, p, r in zip(bounds, own, results, strict=True)]

    def prove(self, at: Subdomain, parameters: Parameters) -> float:
        """A rigorous lower bound of the weighted rows less their limits over the subdomain: above 0 refutes the clause.

        Property: sound for any parameters. One backward pass gives multipliers of the model's rows and of one plane a
            neuron, `safe_bound` the rest.
        """
        model, low, high = self.own, at.low, at.high
        residual = parameters.rows @ self._costs
        duals = np.zeros(self.model.row_count)
        duals[model.row_count :] = -parameters.rows
        for row in self._last:
            begin, end = model.matrix.indptr[row], model.matrix.indptr[row + 1]
            duals[row] = residual[model.matrix.indices[begin]]
            residual[model.matrix.indices[begin:end]] -= duals[row] * model.matrix.data[begin:end]
        planes, pulls = RowBuffer(), []
        neuron, term = len(self.pre), len(parameters.plane)
        for e, reads in zip(reversed(self.layers), reversed(self._reads), strict=True):
            (count, terms), padded = e.weight.shape, _padded(e)
            neuron, term = neuron - count, term - count * padded
            mine = slice(neuron, neuron + count)
            pre, flat, steep = self.pre[mine], e.slopes[:, 0], e.slopes[:, 1]
            pull, side, chord = residual[e.post], at.sides[mine], parameters.chord[mine].astype(np.float64)
            above = (side < 0) & (pull < 0)
            ends = [np.maximum(flat * z, steep * z) for z in (low[pre], high[pre])]
            width = high[pre] - low[pre]
            secant = np.where(width > 0, (ends[1] - ends[0]) / np.maximum(width, 1e-300), steep)
            line = np.where(side < 0, parameters.slope[mine], np.where(side > 0, steep, flat))
            held = np.where(side < 0, 0.0, parameters.split[mine])
            through = residual[pre] + np.where(above, pull * chord * secant, pull * line) - held
            duals[self._rows[mine]] = through
            residual -= reads @ through
            used = np.flatnonzero(above & (chord < 1))
            part, on_plane = e.only(used), (pull * (1 - chord))[used]
            share = parameters.plane[term : term + count * padded].reshape(count, padded)[used, :terms]
            slope = (part.slopes[:, :1] + (part.slopes[:, 1:] - part.slopes[:, :1]) * share) * part.weight
            offset = part.offsets(slope, low[part.sources], high[part.sources])
            part.add_rows(planes, slope, offset, self.model.column_count)
            pulls.append(on_plane)
            pulled = (on_plane[:, None] * slope).reshape(-1)
            residual += np.bincount(part.sources.reshape(-1), weights=pulled, minlength=len(residual))
        block, lower, upper = planes.finish(self.model.column_count)
        moved = replace(self.model.with_rows(block, lower, upper), col_lower=low, col_upper=high)
        return safe_bound(moved, np.zeros(model.column_count), np.concatenate([duals, *pulls]))

    def _net(self) -> dict[str, object]:
        """The compiled module's copy of the model."""
        layers, neuron = [], 0
        for e in self.layers:
            count, width = e.weight.shape
            padded, step = _padded(e), native().plane_step
            source, weight = np.zeros((count, padded), np.int32), np.zeros((count, padded), np.float32)
            source[:, :width], weight[:, :width] = e.sources, e.weight
            used = -(-(e.weight != 0).sum(axis=1) // step) * step
            pre = self.pre[neuron : neuron + count]
            neuron += count
            layers.append(
                {"count": count, "width": padded, "source": source, "weight": weight, "used": used.astype(np.int32)}
                | {"pre": pre.astype(np.int32), "post": e.post.astype(np.int32)}
                | {k: np.ascontiguousarray(v, dtype=np.float32) for k, v in
                   (("low", e.low), ("high", e.high), ("flat", e.slopes[:, 0]), ("steep", e.slopes[:, 1]))}
            )  # fmt: skip
        block = self.own.matrix[self._last]
        first = block.indptr[:-1]
        rest = np.ones(block.nnz, dtype=bool)
        rest[first] = False
        return {
            "columns": self.own.column_count, "layers": layers, "row_count": len(self._limits),
            "costs": np.ascontiguousarray(self._costs), "limits": self._limits, "output_count": len(self._last),
            "output_own": block.indices[first].astype(np.int32),
            "output_start": (block.indptr - np.arange(len(block.indptr))).astype(np.int64),
            "output_source": block.indices[rest].astype(np.int32), "output_weight": -block.data[rest],
            "output_low": self.own.row_lower[self._last], "output_high": self.own.row_upper[self._last],
        }  # fmt: skip


def _padded(e: Envelopes) -> int:
    """Terms of a neuron in the compiled module."""
    step = int(native().plane_step)
    return -(-max(e.weight.shape[1], 1) // step) * step
