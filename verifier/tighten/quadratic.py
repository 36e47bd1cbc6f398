"""The quadratic Lagrangian behind the semidefinite relaxation, and its rigorous value.

Over the columns P that remain when pre-activations and outputs are expressed by their sources,
relu says h (h - w.x - b) = 0 with multiplier mu of any sign, besides its linear rows. With
x = m + r v, |v| <= 1, the Lagrangian is a quadratic form in [1, v], and for any kappa

    min >= constant - kappa_0 - sum max(kappa_j, 0) + (|P| + 1) min(0, smallest eigenvalue of M),
    M = form + diag(kappa),

because 1 + sum v_j^2 <= |P| + 1. Every multiplier gives a bound; the best over all of them is the
value of the semidefinite program.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from verifier.errors import ShapeError
from verifier.tighten.eigenvalues import smallest_eigenvalue_bound
from verifier.tighten.model import LinearModel
from verifier.tighten.rounding import dot_error, sum_down
from verifier.tighten.safe_bound import residual_interval


@dataclass(frozen=True)
class Lines:
    """Linear facts coeffs @ x >= limits over P (up to round-off), each with a multiplier >= 0.

    In this order: `rows` [A], relaxation rows, with `sides` -1 where the row was turned around;
    columns `boxed` [Z] at their lower bounds, then at their upper bounds; defining rows of the
    columns `equal` [E] of P, from below, then from above. L = A + 2 Z + 2 E.
    """

    rows: np.ndarray
    sides: np.ndarray
    boxed: np.ndarray
    equal: np.ndarray
    coeffs: np.ndarray
    limits: np.ndarray

    @property
    def size(self) -> int:
        """L."""
        return self.limits.size

    def split(self, line: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Signed multipliers of rows [A], of the boxes [Z] and of the defining rows [E]."""
        a, z, e = self.rows.size, self.boxed.size, self.equal.size
        parts = np.split(line, np.cumsum([a, z, z, e]))
        return self.sides * parts[0], parts[1] - parts[2], parts[3] - parts[4]


@dataclass(frozen=True)
class QuadraticModel:
    """A relu LinearModel in the columns P of its semidefinite relaxation.

    Attributes:
        linear: the model.
        columns: int [n], P as columns of the model; middle, half: m and r of their boxes, half rounded up.
        post: int [K], index in P of each product's h (a relu's output, or a linear column itself).
        weight, offset: w [K, n] and b [K]; weight_size [K, n]: sums of the |entries| that w adds up.
        slack: float64 [K], |w.x + b - true pre-activation| of a deployed program; 0 in real arithmetic.
        lines: linear facts about P, see `Lines`.
        eliminated: bool [C], columns expressed by their defining rows.
        defining: column -> row that defines it.
    """

    linear: LinearModel
    columns: np.ndarray
    middle: np.ndarray
    half: np.ndarray
    post: np.ndarray
    weight: np.ndarray
    weight_size: np.ndarray
    offset: np.ndarray
    slack: np.ndarray
    lines: Lines
    eliminated: np.ndarray
    defining: dict[int, int]

    @property
    def size(self) -> int:
        """n = |P|."""
        return self.columns.size


@dataclass(frozen=True)
class Multipliers:
    """line: float64 [L] >= 0 on the lines; product: mu [K]; shift: kappa [n + 1]."""

    line: np.ndarray
    product: np.ndarray
    shift: np.ndarray


def quadratic_model(model: LinearModel) -> QuadraticModel:
    """Express a relu model in the columns of its semidefinite relaxation."""
    defined = _definitions(model)
    targets = [*model.outputs.tolist(), *(c for n in model.neurons for c in n.pre.tolist())]
    kept = {c for n in model.neurons for c in n.post.tolist()}
    stack = list(targets)
    while stack:
        column = stack.pop()
        for source in _sources(model, defined, column):
            if source not in kept:
                kept.add(source)
                stack.append(source)
    kept |= {c for c in targets if c not in defined}
    columns = np.array(sorted(kept), dtype=np.int64)
    place = np.full(model.column_count, -1, dtype=np.int64)
    place[columns] = np.arange(columns.size)
    eliminated = np.zeros(model.column_count, dtype=bool)
    eliminated[[c for c in targets if c in defined and place[c] < 0]] = True
    pairs = [(int(h), int(z)) for n in model.neurons for h, z in zip(n.post, n.pre, strict=True)]
    linear = [(int(c), int(c)) for c in columns if int(c) in defined]
    pairs += linear
    weight, weight_size, offset, slack = _expressions(model, defined, place, [z for _, z in pairs], linear)
    post = place[[h for h, _ in pairs]] if pairs else np.zeros(0, dtype=np.int64)
    low, high = model.col_lower[columns], model.col_upper[columns]
    middle = 0.5 * (low + high)
    half = np.nextafter(np.maximum(high - middle, middle - low), np.inf) * (1.0 + 2.0**-50)
    lines = _lines(model, place, pairs, (weight, offset), eliminated)
    return QuadraticModel(
        model,
        columns,
        middle,
        half,
        post,
        weight,
        weight_size,
        offset,
        slack,
        lines,
        eliminated,
        defined,
    )


def eliminate(form: QuadraticModel, cost: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Multipliers [R] of all rows: those in `line` [L], and what takes eliminated columns out of the cost.

    A boxed column keeps its own multiplier as its coefficient, which its box then bounds.
    """
    model = form.linear
    rows, boxes, equalities = form.lines.split(line)
    duals = np.zeros(model.row_count)
    duals[form.lines.rows] = rows
    kept, free = np.zeros(model.column_count), np.zeros(model.column_count)
    kept[form.lines.boxed], free[form.lines.equal] = boxes, equalities
    d = cost - model.matrix.T @ duals
    for start, stop in reversed(model.definitions):
        rows = model.matrix[start:stop]
        own = rows.indices[rows.indptr[:-1]]
        duals[start:stop] = np.where(form.eliminated[own], d[own] - kept[own], free[own])
        d -= rows.T @ duals[start:stop]
    return duals


def quadratic_bound(form: QuadraticModel, cost: np.ndarray, multipliers: Multipliers) -> float:
    """A lower bound of min cost @ columns, valid for every finite choice of multipliers.

    Args:
        cost: float64 [C]; multipliers: negative `line` entries count as 0.
    Returns:
        The bound, -inf where overflow or NaN leaves nothing.
    Raises:
        ShapeError: lengths do not fit.
    """
    mu, kappa = multipliers.product, multipliers.shift
    if mu.shape != form.post.shape or kappa.shape != (form.size + 1,) or multipliers.line.shape != (form.lines.size,):
        raise ShapeError("quadratic bound: multipliers do not have the lengths L, K and n + 1 of the form")
    model = form.linear
    if not all(np.all(np.isfinite(v)) for v in (multipliers.line, mu, kappa)):
        return -np.inf
    with np.errstate(over="ignore", invalid="ignore"):
        duals = eliminate(form, cost, np.maximum(multipliers.line, 0.0))
        held = np.where(duals > 0, model.row_lower, np.where(duals < 0, model.row_upper, 0.0))
        d, doubt = residual_interval(model, cost, duals)
        outside = np.ones(model.column_count, dtype=bool)
        outside[form.columns] = False
        low, high = model.col_lower[outside], model.col_upper[outside]
        reach = np.maximum(np.abs(low), np.abs(high))
        terms = [duals * held, np.minimum(d[outside] * low, d[outside] * high), -doubt[outside] * reach]
        matrix, constant, error = _assemble(form, mu, d[form.columns], doubt[form.columns])
        matrix[np.diag_indices(form.size + 1)] += kappa
        if not np.all(np.isfinite(matrix)):
            return -np.inf
        smallest = min(0.0, smallest_eigenvalue_bound(matrix))
        terms.append(np.array([constant, -kappa[0], (form.size + 1) * smallest, -error]))
        terms.append(-np.maximum(kappa[1:], 0.0))
        every = np.concatenate(terms)
        rounding = dot_error(np.abs(every).sum() + np.abs(kappa).sum(), every.size + 8)
        bound = float(sum_down(every) - rounding)
    return bound if np.isfinite(bound) else -np.inf


def _assemble(
    form: QuadraticModel, mu: np.ndarray, d: np.ndarray, doubt: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """(M without kappa [n+1, n+1], constant, bound on every error made here for |v| <= 1)."""
    quadratic = _outer(form.size, form.post, mu, np.eye(form.size)[form.post] - form.weight)
    linear = d.copy()
    np.subtract.at(linear, form.post, mu * form.offset)
    middle, half = form.middle, form.half
    gradient = half * (2.0 * quadratic @ middle + linear)
    constant = float(middle @ quadratic @ middle + linear @ middle)
    matrix = np.zeros((form.size + 1, form.size + 1))
    matrix[1:, 1:] = half[:, None] * quadratic * half
    matrix[0, 1:] = matrix[1:, 0] = 0.5 * gradient
    matrix[1:, 1:] = 0.5 * (matrix[1:, 1:] + matrix[1:, 1:].T)
    # The same expression in magnitudes bounds every intermediate result.
    size = np.abs(middle) + half
    rows = np.abs(mu) * size[form.post]
    magnitude = float(rows @ (size[form.post] + form.weight_size @ size + np.abs(form.offset)))
    magnitude += float((np.abs(d) + doubt) @ size)
    error = float(dot_error(4.0 * magnitude, 6 * form.size + form.post.size + 40))
    error += float(doubt @ size + rows @ form.slack) * (1.0 + 2.0**-30)
    return matrix, constant, error


def _outer(size: int, post: np.ndarray, mu: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """The symmetric part of sum_k mu_k e_post_k factor_k^T, [n, n], exactly symmetric."""
    result = np.zeros((size, size))
    np.add.at(result, post, mu[:, None] * factor)
    return 0.5 * (result + result.T)


def _definitions(model: LinearModel) -> dict[int, int]:
    found: dict[int, int] = {}
    for start, stop in model.definitions:
        for row in range(start, stop):
            found[int(model.matrix.indices[model.matrix.indptr[row]])] = row
    return found


def _sources(model: LinearModel, defined: dict[int, int], column: int) -> list[int]:
    if column not in defined:
        return []
    row = defined[column]
    start, stop = model.matrix.indptr[row] + 1, model.matrix.indptr[row + 1]
    return model.matrix.indices[start:stop].tolist()


def _expressions(model, defined, place, columns, linear) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """w and its magnitudes [K, n], b [K] and the half width of the defining band [K] of each column in terms of P."""
    weight = np.zeros((len(columns), int(place.max(initial=-1)) + 1))
    weight_size = np.zeros_like(weight)
    offset, slack = np.zeros(len(columns)), np.zeros(len(columns))
    own = {c for c, _ in linear}
    for k, column in enumerate(columns):
        if column not in defined or (place[column] >= 0 and column not in own):
            weight[k, place[column]] = weight_size[k, place[column]] = 1.0
            continue
        row = defined[column]
        start, stop = model.matrix.indptr[row] + 1, model.matrix.indptr[row + 1]
        entries, places = model.matrix.data[start:stop], place[model.matrix.indices[start:stop]]
        np.add.at(weight[k], places, -entries)
        np.add.at(weight_size[k], places, np.abs(entries))
        low, high = model.row_lower[row], model.row_upper[row]
        offset[k] = 0.5 * (low + high)
        slack[k] = np.nextafter(max(high - offset[k], offset[k] - low), np.inf) if high > low else 0.0
    return weight, weight_size, offset, slack


def _lines(model: LinearModel, place: np.ndarray, pairs, expressions, eliminated: np.ndarray) -> Lines:
    """Relu lines, pre-activation boxes and defining rows over P; see `Lines`."""
    weight, offset = expressions
    product_of = {h: k for k, (h, _) in reversed(list(enumerate(pairs)))}
    rows = np.flatnonzero(model.relaxation_rows)
    coeffs, limits, sides = np.zeros((rows.size, weight.shape[1])), np.zeros(rows.size), np.ones(rows.size)
    for i, row in enumerate(rows):
        start = model.matrix.indptr[row]
        post = int(model.matrix.indices[start])
        k, slope = product_of[post], -float(model.matrix.data[start + 1])
        sides[i] = 1.0 if np.isfinite(model.row_lower[row]) else -1.0
        limit = model.row_lower[row] if sides[i] > 0 else model.row_upper[row]
        coeffs[i] = -slope * weight[k]
        coeffs[i, place[post]] += 1.0
        coeffs[i] *= sides[i]
        limits[i] = sides[i] * (limit + slope * offset[k])
    box = [k for k, (h, z) in enumerate(pairs) if h != z and eliminated[z]]
    boxed = np.array([pairs[k][1] for k in box], dtype=np.int64)
    own = [k for k, (h, z) in enumerate(pairs) if h == z]
    equal = np.array([pairs[k][0] for k in own], dtype=np.int64)
    difference = np.eye(weight.shape[1])[place[equal]] - weight[own]
    return Lines(
        rows=rows,
        sides=sides,
        boxed=boxed,
        equal=equal,
        coeffs=np.concatenate([coeffs, weight[box], -weight[box], difference, -difference]),
        limits=np.concatenate(
            [
                limits,
                model.col_lower[boxed] - offset[box],
                offset[box] - model.col_upper[boxed],
                offset[own],
                -offset[own],
            ]
        ),
    )
