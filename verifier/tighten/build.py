"""From a graph, an input set and pre-activation bounds to a LinearModel."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import sparse

from verifier.graph.ir import Graph, Node
from verifier.spec.problem import InputSet
from verifier.tighten.curves import Curve, curve_of
from verifier.tighten.enclosure import enclose
from verifier.tighten.input_rows import add_input_rows
from verifier.tighten.intervals import Errors, Interval, Maps, propagate
from verifier.tighten.linear_maps import AFFINE, MOVES
from verifier.tighten.model import LinearModel, Neurons, RowBuffer, led_by
from verifier.tighten.rounding import dot_error


def build_model(
    graph: Graph,
    inputs: InputSet,
    intermediate: Mapping[str, Interval] | None = None,
    rounding_error: Errors | None = None,
    maps: Maps | None = None,
) -> LinearModel | None:
    """The triangle relaxation (and its generalisation to other curves) of a network.

    Args:
        intermediate: node name -> (lower, upper), bounds of that node's values over the points of
            interest, float64 of the node's shape; interval propagation fills in and is intersected.
        rounding_error: node name -> |deployed - exact| of each of its values; widens that node's
            equality into a band, so that bounds hold for the floating-point program as well.
        maps: `Maps(graph, rounding_error)` from an earlier call on the same graph, to save time.
    Returns:
        The model, or None when the bounds show that no point of interest exists.
    Raises:
        UnsupportedOperator, ShapeError, NetworkError: as `Maps` and `propagate`.
    """
    maps = maps or Maps(graph, rounding_error)
    bounds = propagate(maps, inputs, intermediate)
    if bounds is None:
        return None
    build = _Build(maps, bounds, intermediate or {})
    for node in graph.nodes.values():
        build.add(node)
    return build.finish(inputs)


class _Build:
    """One pass over the nodes; `columns` maps every node to the columns of its values."""

    def __init__(self, maps: Maps, bounds: Mapping[str, Interval], given: Mapping[str, Interval]):
        self.maps, self.bounds, self.given = maps, bounds, given
        self.rows = RowBuffer()
        self.relaxation: list[tuple[int, int]] = []
        self.definitions: list[tuple[int, int]] = []
        self.columns: dict[str, np.ndarray] = {}
        self.neurons: list[Neurons] = []
        self.lower: list[np.ndarray] = [np.zeros(1)]
        self.upper: list[np.ndarray] = [np.zeros(1)]
        self.count = 1
        self.bent: set[int] = set()

    def new_columns(self, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """Append columns and return their indices."""
        self.lower.append(lower)
        self.upper.append(upper)
        start, self.count = self.count, self.count + lower.size
        return np.arange(start, self.count)

    def add(self, node: Node) -> None:
        """Give `node` its columns and rows."""
        lower, upper = self.bounds[node.name]
        if node.op in ("Input", "Constant"):
            self.columns[node.name] = self.new_columns(lower, upper)
            return
        source = np.concatenate([self.columns[i] for i in node.inputs])
        if node.op in MOVES:
            index = self.maps.move[node.name]
            self.columns[node.name] = np.where(index < 0, 0, source[index])
        elif node.op in AFFINE:
            matrix, offset = self.maps.affine[node.name]
            own = self.new_columns(lower, upper)
            self.equality(own, matrix, source, offset, self.maps.error_of(node.name))
            self.columns[node.name] = own
        elif node.op == "ReduceMax":
            self.columns[node.name] = self.maximum(node, source)
        else:
            before = self.bounds[node.inputs[0]]
            place = (node.inputs[0], np.arange(node.size))
            curve = self.maps.curve[node.name]
            self.columns[node.name] = self.activation(place, curve, source, before, (lower, upper))

    def equality(self, own, matrix: sparse.csr_matrix, source, offset, error) -> None:
        """Rows own - matrix @ source in offset +- error."""
        live = source[matrix.indices] != 0
        row_of = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))[live]
        counts = np.bincount(row_of, minlength=matrix.shape[0])
        starts = np.concatenate([[0], np.cumsum(counts)])
        rest = sparse.csr_matrix((-matrix.data[live], source[matrix.indices[live]], starts), (own.size, self.count))
        block = led_by(own, rest)
        slack = np.where(error > 0, error + dot_error(error + np.abs(offset), 2), 0.0)
        self.rows.append(block, offset - slack, offset + slack)
        self.definitions.append((self.rows.count - own.size, self.rows.count))

    def define(self, terms: list[tuple[np.ndarray, np.ndarray]], value: np.ndarray) -> None:
        """Equality rows whose first term is a new column with coefficient 1."""
        self.rows.append_terms(terms, value, value)
        self.definitions.append((self.rows.count - value.size, self.rows.count))

    def activation(
        self, place: tuple[str, np.ndarray], curve: Curve, source, before: Interval, after: Interval
    ) -> np.ndarray:
        """Columns of f(source): shared where f is the identity, fixed where it is constant, else neurons.

        `place` is where the bounds `before` are filed: node name and flat positions.
        """
        lower, upper = before
        exact = curve.deployed_error == 0.0
        same = exact & (curve.identity[0] <= lower) & (upper <= curve.identity[1])
        result = np.where(same, source, 0)
        fixed = ~same & (after[0] == after[1])
        if np.any(fixed & (after[0] != 0.0)):
            result[fixed] = self.new_columns(after[0][fixed], after[1][fixed])
        keep = np.flatnonzero(~same & ~fixed)
        if keep.size:
            post = self.new_columns(after[0][keep], after[1][keep])
            pre = self.private(source[keep], lower[keep], upper[keep])
            neurons = Neurons(place[0], place[1][keep], pre, post, curve.at(keep))
            self.bend(neurons, lower[keep], upper[keep])
            result[keep] = post
        return result

    def private(self, source: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """The source columns, or exact copies of those that another neuron bends already."""
        pre = source.copy()
        taken = np.zeros(source.size, dtype=bool)
        for k, column in enumerate(source.tolist()):
            taken[k] = column in self.bent or column == 0
            self.bent.add(column)
        if np.any(taken):
            pre[taken] = self.new_columns(lower[taken], upper[taken])
            ones = np.ones(int(taken.sum()))
            zeros = np.zeros_like(ones)
            self.define([(pre[taken], ones), (source[taken], -ones)], zeros)
        return pre

    def bend(self, neurons: Neurons, lower: np.ndarray, upper: np.ndarray) -> None:
        """Register unstable neurons and add their enclosing lines as relaxation rows."""
        self.neurons.append(neurons)
        lines = enclose(neurons.curve, lower, upper)
        start = self.rows.count
        infinite = np.full(neurons.pre.size, np.inf)
        for slopes, offsets, below in (
            (lines.slope_lower, lines.offset_lower, True),
            (lines.slope_upper, lines.offset_upper, False),
        ):
            for k in range(slopes.shape[1]):
                # A repeated slope is a repeated line; a flat one is the column's own bound.
                new = ~np.any((slopes[:, :k] == slopes[:, k : k + 1]), axis=1) & (slopes[:, k] != 0.0)
                low = offsets[:, k] if below else -infinite
                high = infinite if below else offsets[:, k]
                terms = [(neurons.post[new], np.ones(int(new.sum()))), (neurons.pre[new], -slopes[new, k])]
                self.rows.append_terms(terms, low[new], high[new])
        self.relaxation.append((start, self.rows.count))

    def maximum(self, node: Node, source: np.ndarray) -> np.ndarray:
        """max(a, b) = a + relu(b - a), one element of the group at a time; plus result >= element."""
        groups = self.maps.groups[node.name]
        lower, upper = (b[groups] for b in self.bounds[node.inputs[0]])
        result, low, high = source[groups[:, 0]].copy(), lower[:, 0].copy(), upper[:, 0].copy()
        for k in range(1, groups.shape[1]):
            rival, rival_low, rival_high = source[groups[:, k]], lower[:, k], upper[:, k]
            wins, loses = rival_low >= high, rival_high <= low
            result[wins] = rival[wins]
            fight = np.flatnonzero(~wins & ~loses)
            if fight.size:
                ends = (low[fight], high[fight], rival_low[fight], rival_high[fight])
                pair = (result[fight], rival[fight])
                result[fight] = self.pair_maximum(f"{node.name}#max{k}", fight, pair, ends)
            low, high = np.maximum(low, rival_low), np.maximum(high, rival_high)
        return result

    def pair_maximum(self, name: str, positions, pair, ends) -> np.ndarray:
        """Columns of max(a, b) for columns (a, b) with bounds (a_low, a_high, b_low, b_high).

        The order of the elements never depends on bounds, so bounds given for a pair's
        difference mean the same in every model of the graph.
        """
        (a, b), (a_low, a_high, b_low, b_high) = pair, ends
        size = positions.size
        slack = dot_error(np.abs(a_low) + np.abs(a_high) + np.abs(b_low) + np.abs(b_high), 2)
        low, high = b_low - a_high - slack, b_high - a_low + slack
        if name in self.given:
            known_low, known_high = (np.asarray(v, dtype=np.float64).reshape(-1)[positions] for v in self.given[name])
            low, high = np.maximum(low, known_low), np.minimum(high, known_high)
        one, zero = np.ones(size), np.zeros(size)
        difference = self.new_columns(low, high)
        self.define([(difference, one), (b, -one), (a, one)], zero)
        relu = curve_of(Node(name, "Relu", (), (size,), {}))
        post = self.activation((name, positions), relu, difference, (low, high), relu.range(low, high))
        result = self.new_columns(np.maximum(a_low, b_low), np.maximum(a_high, b_high))
        self.define([(result, one), (a, -one), (post, -one)], zero)
        self.rows.append_terms([(result, one), (b, -one)], zero, np.full(size, np.inf))
        return result

    def finish(self, inputs: InputSet) -> LinearModel | None:
        """Input rows, output columns, and everything put together."""
        graph = self.maps.graph
        flat_inputs = np.concatenate([self.columns[i] for i in graph.inputs])
        add_input_rows(inputs, flat_inputs, self.rows, self.new_columns)
        outputs = self.outputs(np.concatenate([self.columns[o] for o in graph.outputs]))
        matrix, row_lower, row_upper = self.rows.finish(self.count)
        relaxation = np.zeros(matrix.shape[0], dtype=bool)
        for start, stop in self.relaxation:
            relaxation[start:stop] = True
        col_lower, col_upper = np.concatenate(self.lower), np.concatenate(self.upper)
        if np.any(col_lower > col_upper):
            return None
        return LinearModel(
            matrix=matrix,
            row_lower=row_lower,
            row_upper=row_upper,
            col_lower=col_lower,
            col_upper=col_upper,
            relaxation_rows=relaxation,
            definitions=tuple(self.definitions),
            neurons=tuple(self.neurons),
            inputs=flat_inputs,
            outputs=outputs,
            node_columns=dict(self.columns),
        )

    def outputs(self, columns: np.ndarray) -> np.ndarray:
        """Output columns, with a copy for every repeated one and for the zero column."""
        _, first = np.unique(columns, return_index=True)
        repeated = np.ones(columns.size, dtype=bool)
        repeated[first] = False
        repeated |= columns == 0
        if not np.any(repeated):
            return columns
        lower, upper = np.concatenate(self.lower), np.concatenate(self.upper)
        columns = columns.copy()
        old = columns[repeated]
        columns[repeated] = self.new_columns(lower[old], upper[old])
        one, zero = np.ones(old.size), np.zeros(old.size)
        self.define([(columns[repeated], one), (old, -one)], zero)
        return columns
