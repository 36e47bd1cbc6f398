"""Random formulas, evaluated at points of a grid: a point satisfies the text iff the Problem calls it unsafe.

Every value on the grid and every network output is a small multiple of 1/4, so the float32
evaluation is exact and comparisons meet equality often.
"""

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from spec_models import linear_graph

from verifier.graph.evaluate import evaluate
from verifier.spec.load import parse_query
from verifier.spec.replay import Replay

WEIGHT = np.array([[1.0, 1.0], [1.0, -2.0]])
GRAPH = linear_graph(WEIGHT)
QUARTERS = st.integers(-8, 8).map(lambda k: k / 4)
OPERATORS_1 = ["<=", ">=", "<", ">", "="]
OPERATORS_2 = ["<=", ">=", "<", ">", "==", "!="]
VARIABLES = ["X0", "X1", "Y0", "Y1"]

number = QUARTERS.map(lambda v: ("number", v))
variable = st.sampled_from(VARIABLES).map(lambda v: ("variable", v))
atom = st.one_of(number, variable, variable)
arithmetic = st.recursive(
    atom,
    lambda inner: st.one_of(
        st.tuples(st.just("-"), inner),
        st.tuples(st.just("-"), inner, inner),
        st.tuples(st.just("+"), inner, inner),
        st.tuples(st.just("*"), number, inner),
    ),
    max_leaves=4,
)
product = st.one_of(
    st.tuples(st.just("*"), variable, variable),
    st.tuples(st.just("*"), variable, st.tuples(st.just("*"), variable, variable)),
)


def formulas(operators, sides):
    comparison = st.tuples(st.sampled_from(operators), sides, sides)
    return st.recursive(
        comparison,
        lambda inner: st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=1, max_size=3)),
        max_leaves=6,
    )


def truth(formula, values):
    kind = formula[0]
    if kind in ("and", "or"):
        return (all if kind == "and" else any)(truth(part, values) for part in formula[1])
    left, right = arith(formula[1], values), arith(formula[2], values)
    return {
        "<=": left <= right, ">=": left >= right, "<": left < right, ">": left > right,
        "=": left == right, "==": left == right, "!=": left != right,
    }[kind]  # fmt: skip


def arith(term, values):
    kind, *parts = term
    if kind == "number":
        return Fraction(parts[0])
    if kind == "variable":
        return values[parts[0]]
    numbers = [arith(part, values) for part in parts]
    if kind == "+":
        return sum(numbers)
    if kind == "*":
        return numbers[0] * numbers[1]
    return -numbers[0] if len(numbers) == 1 else numbers[0] - numbers[1]


def text_of(formula, names):
    kind, *parts = formula
    if kind == "number":
        return str(parts[0])
    if kind == "variable":
        return names[parts[0]]
    if kind in ("and", "or"):
        parts = parts[0]
    return f"({kind} " + " ".join(text_of(part, names) for part in parts) + ")"


NAMES_1 = {"X0": "X_0", "X1": "X_1", "Y0": "Y_0", "Y1": "Y_1"}
NAMES_2 = {"X0": "X[0,0]", "X1": "X[0,1]", "Y0": "Y[0,0]", "Y1": "Y[0,1]"}
HEAD_1 = "".join(f"(declare-const {name} Real)\n" for name in NAMES_1.values())
HEAD_2 = "(vnnlib-version <2.0>)(declare-network f (declare-input X float32 [1,2]) (declare-output Y float32 [1,2]))\n"
BOX = [
    ("and", [("<=", ("variable", x), ("number", 2.0)), (">=", ("variable", x), ("number", -2.0))]) for x in ("X0", "X1")
]


def agree(head, names, asserted, points):
    """Compare the text's truth with the replay's verdict at every point."""
    everything = [*BOX, *asserted]
    text = head + "\n".join(f"(assert {text_of(formula, names)})" for formula in everything)
    query = parse_query(text, GRAPH)
    replay = Replay(GRAPH, query)
    for x0, x1 in points:
        y = np.array([x0, x1]) @ WEIGHT
        values = dict(zip(VARIABLES, map(Fraction, [x0, x1, *y.tolist()]), strict=True))
        expected = all(truth(formula, values) for formula in everything)
        given = np.float32([x0, x1])[query.input_positions]
        if not np.array_equal(given[query.input_map], np.float32([x0, x1])):
            assert not expected  # the property equates inputs that differ here
            continue
        assert replay.check(query, given).valid == expected, (text, x0, x1)
        appended = [column_value(column, given, y) for column in query.extras]
        outputs = evaluate(query.graph, given[None], "float64")[0]
        assert outputs.tolist() == [*y.tolist(), *appended], text


def column_value(column, x, y):
    if column.kind == "product":
        return float(np.prod([column_value(factor, x, y) for factor in column.factors]))
    return float((x if column.kind == "input" else y)[column.index])


points = st.lists(st.tuples(QUARTERS, QUARTERS), min_size=4, max_size=8)


@settings(max_examples=150, deadline=None)
@given(st.lists(formulas(OPERATORS_1, arithmetic), min_size=1, max_size=3), points)
def test_vnnlib_1_linear(asserted, points):
    agree(HEAD_1, NAMES_1, asserted, points)


@settings(max_examples=150, deadline=None)
@given(st.lists(formulas(OPERATORS_1, atom), min_size=1, max_size=3), points)
def test_vnnlib_1_atoms(asserted, points):
    agree(HEAD_1, NAMES_1, asserted, points)


@settings(max_examples=150, deadline=None)
@given(st.lists(formulas(OPERATORS_2, st.one_of(atom, arithmetic, product)), min_size=1, max_size=3), points)
def test_vnnlib_2_polynomial(asserted, points):
    agree(HEAD_2, NAMES_2, asserted, points)
