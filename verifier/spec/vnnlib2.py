"""VNN-LIB 2.0: declarations bound to networks, assertions walked into the common normal form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from verifier.errors import SpecError
from verifier.graph.ir import Graph
from verifier.spec.assemble import assemble, extra_columns
from verifier.spec.bind import Declarations, bind
from verifier.spec.columns import Column, ColumnTable
from verifier.spec.normal_form import NormalForm, conjunction, disjunction
from verifier.spec.query import Query
from verifier.spec.query_graph import query_graph
from verifier.spec.rows import Polynomial, Row, add, compare, compare_atoms, exact_number, multiply, negate
from verifier.spec.vnnlib2_text import parse_tree

_OPERATORS = {
    "LessThan": "<", "LessEqual": "<=", "GreaterThan": ">", "GreaterEqual": ">=", "Equal": "==", "NotEqual": "!=",
}  # fmt: skip
_NUMBERS = frozenset(("Float", "Int", "IntExpr", "Literal"))


def read_query(text: str, networks: Mapping[str, Graph] | Graph) -> Query:
    """Bind a VNN-LIB 2.0 query to its networks.

    Element types float32 and float64 must match the network's; `real` makes the problem one over
    the reals if every variable is `real`. Inputs that a top-level assertion equates (`==` of two
    input variables) become one input of the query graph.

    Args:
        networks: declared name -> graph, one for each declaration without `equal-to`; or the one graph.
    Raises:
        SpecError: syntax, an unsupported element type, missing or superfluous networks.
        ShapeError: declared sizes differ from the network's.
    """
    tree = parse_tree(text)
    declared = bind(tree, networks)
    assertions = [assertion.expr for assertion in tree.assertions]
    input_map = _merge_equal_inputs(assertions, declared)
    n_inputs = int(input_map.max(initial=-1)) + 1
    reader = _Walker(declared, input_map, ColumnTable(n_inputs, declared.output_size))
    form = conjunction([reader.formula(expr) for expr in assertions], reader.columns)
    numbers = extra_columns(form, reader.columns)
    extras = tuple(reader.columns[number] for number in numbers)
    names = {int(entry): place for place, entry in reversed(list(enumerate(input_map)))}
    for note in declared.notes:
        reader.columns.note(note)
    problem = assemble(
        form,
        (np.full(n_inputs, -np.inf), np.full(n_inputs, np.inf)),
        reader.columns,
        numbers,
        dtype=declared.dtype,
        exact_real=declared.exact_real,
        input_name=lambda i: declared.input_name(names[i]),
    )
    graph = query_graph(declared.graphs, input_map, n_inputs, extras)
    return Query(
        graph, problem, "2.0", declared.variables, declared.graphs, input_map, extras, declared.equal_to
    )  # fmt: skip


def _merge_equal_inputs(assertions: Iterable[Any], declared: Declarations) -> np.ndarray:
    """For each declared input entry its entry of the query input: equated entries share one."""
    parent = list(range(declared.input_size))

    def root(entry: int) -> int:
        while parent[entry] != entry:
            parent[entry] = parent[parent[entry]]
            entry = parent[entry]
        return entry

    stack = list(assertions)
    while stack:
        expr = stack.pop()
        kind = type(expr).__name__
        if kind == "And":
            stack.extend(expr.args)
        elif kind == "Equal":
            left, right = declared.input_entry(expr.lhs), declared.input_entry(expr.rhs)
            if left is not None and right is not None:
                low, high = sorted((root(left), root(right)))
                parent[high] = low
    roots = np.array([root(entry) for entry in range(declared.input_size)], dtype=np.int64)
    return np.unique(roots, return_inverse=True)[1].reshape(-1).astype(np.int64)


class _Walker:
    """Turns expression trees into normal forms and polynomials, without recursion."""

    def __init__(self, declared: Declarations, input_map: np.ndarray, columns: ColumnTable) -> None:
        self.columns = columns
        self._declared = declared
        self._input_map = input_map

    def formula(self, expr: Any) -> Row | NormalForm:
        """A boolean expression, normalised bottom-up with an explicit stack."""
        values: list[Any] = []
        todo: list[tuple[Any, int]] = [(expr, -1)]
        while todo:
            node, start = todo.pop()
            kind = type(node).__name__
            if kind in _OPERATORS:
                values.append(self._comparison(_OPERATORS[kind], node.lhs, node.rhs))
            elif start < 0:
                if kind not in ("And", "Or"):
                    raise SpecError(f"a formula of kind {kind} is not supported")
                todo.append((node, len(values)))
                todo.extend((child, -1) for child in reversed(node.args))
            else:
                parts = values[start:]
                del values[start:]
                values.append((conjunction if kind == "And" else disjunction)(parts, self.columns))
        return values[0]

    def _comparison(self, op: str, left: Any, right: Any) -> Row | NormalForm:
        if op == "!=":
            parts = [self._comparison("<", left, right), self._comparison(">", left, right)]
            return disjunction(parts, self.columns)
        a, b = self._atom(left), self._atom(right)
        exact_real = self._declared.exact_real
        if a is not None and b is not None:
            rows = compare_atoms(op, a, b, self.columns, exact_real=exact_real)
        else:
            sides = self._polynomial(left), self._polynomial(right)
            rows = compare(op, *sides, self.columns, exact_real=exact_real)
        return rows[0] if len(rows) == 1 else conjunction(rows, self.columns)

    def _atom(self, expr: Any) -> int | str | None:
        """The column of a variable, the text of a number, None for anything else."""
        kind = type(expr).__name__
        if kind == "Var":
            return self._column(expr)
        return expr.lexeme if kind in _NUMBERS else None

    def _polynomial(self, expr: Any) -> Polynomial:
        """An arithmetic expression, evaluated exactly with an explicit stack."""
        values: list[Polynomial] = []
        todo: list[tuple[Any, int]] = [(expr, -1)]
        while todo:
            node, start = todo.pop()
            kind = type(node).__name__
            if kind == "Var":
                values.append({(self._column(node),): Fraction(1)})
            elif kind in _NUMBERS:
                number = exact_number(node.lexeme)
                values.append({(): number} if number else {})
            elif start < 0:
                todo.append((node, len(values)))
                todo.extend((child, -1) for child in reversed(_operands(node, kind)))
            else:
                parts = values[start:]
                del values[start:]
                values.append(self._apply(kind, parts))
        return values[0]

    def _apply(self, kind: str, parts: list[Polynomial]) -> Polynomial:
        if kind == "Negate":
            return negate(parts[0])
        if kind == "Plus":
            return add(parts)
        if kind == "Minus":
            return add([parts[0], *map(negate, parts[1:])])
        product = parts[0]
        for part in parts[1:]:
            product = multiply(product, part, self.columns)
        return product

    def _column(self, variable: Any) -> int:
        entry = self._declared.input_entry(variable)
        if entry is not None:
            return int(self._input_map[entry])
        declared, index = self._declared.locate(variable)
        if declared.kind == "output":
            return self.columns.n_inputs + declared.offset + index
        return self.columns.register(Column("hidden", index, declared.network, declared.tensor))


def _operands(node: Any, kind: str) -> list[Any]:
    if kind == "Negate":
        return [node.expr]
    if kind == "Minus":
        return [node.head, *node.rest]
    if kind in ("Plus", "Multiply"):
        return list(node.args)
    raise SpecError(f"an arithmetic expression of kind {kind} is not supported")
