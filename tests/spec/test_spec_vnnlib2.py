"""VNN-LIB 2.0: declarations, several networks, hidden tensors, arithmetic, errors."""

import numpy as np
import pytest
from spec_models import linear_graph, relu_graph, two_tensor_graph

from verifier.errors import ShapeError, SpecError
from verifier.graph.evaluate import evaluate
from verifier.spec.load import hidden_tensors, parse_query

VERSION = "(vnnlib-version <2.0>)\n"
ONE = VERSION + "(declare-network f (declare-input X {t} [1,2]) (declare-output Y {t} [1,2]))\n"
BOX = "(assert (and (<= X[0,0] 1.0) (>= X[0,0] -1.0) (<= X[0,1] 1.0) (>= X[0,1] -1.0)))\n"
IDENTITY = linear_graph(np.eye(2))


def one(assertions, graph=IDENTITY, element="float32"):
    return parse_query(ONE.format(t=element) + BOX + assertions, graph)


def test_version_form_decides_the_language():
    query = one("(assert (< Y[0,0] Y[0,1]))")
    assert query.version == "2.0"
    clause = query.problem.cases[0].clauses[0]
    assert clause.coeffs.tolist() == [[1, -1]] and clause.strict.tolist() == [True]
    assert query.graph is IDENTITY


def test_separate_asserts_are_conjoined_and_ors_are_multiplied():
    query = one("(assert (or (< X[0,0] 0.0) (> X[0,1] 0.0)))(assert (or (< Y[0,0] 0.0) (> Y[0,1] 0.0)))")
    assert [len(case.clauses) for case in query.problem.cases] == [2, 2]
    assert query.problem.cases[0].inputs.upper[0] == -np.nextafter(np.float32(0), np.float32(1))
    assert query.problem.cases[1].inputs.upper[0] == 1


def test_equality_of_an_input_fixes_both_ends():
    box = one("(assert (== X[0,0] 0.25))").problem.cases[0].inputs
    assert box.lower[0] == box.upper[0] == 0.25


def test_disequality_is_two_strict_clauses():
    clauses = one("(assert (!= Y[0,0] 0.5))").problem.cases[0].clauses
    assert sorted(c.limits[0] for c in clauses) == [-0.5, 0.5]
    assert all(c.strict.all() for c in clauses)


def test_integer_literals_are_accepted_everywhere_but_in_indices():
    query = one("(assert (<= (* 2 Y[0, 1]) 3)) (assert (>= Y[ 0 ,0] -1))")
    clause = query.problem.cases[0].clauses[0]
    assert sorted(map(tuple, clause.coeffs.tolist())) == [(-1, 0), (0, 1)]
    assert sorted(clause.limits) == [1, 1.5]


def test_polynomials_become_mul_and_pow_nodes():
    query = one("(assert (<= (* X[0,0] X[0,1]) (+ (* Y[0,0] Y[0,0] Y[0,1]) 0.5)))")
    assert {"Mul", "Pow"} <= {node.op for node in query.graph.nodes.values()}
    x = np.array([[0.5, -0.25]])
    values = evaluate(query.graph, x)[0]
    clause = query.problem.cases[0].clauses[0]
    assert float(clause.coeffs[0] @ values - clause.limits[0]) == 0.5 * -0.25 - (0.5 * 0.5 * -0.25 + 0.5)


def test_several_inputs_and_outputs_with_a_scalar():
    text = VERSION + (
        "(declare-network n (declare-input A float32 [1,2]) (declare-input S float32 [])\n"
        " (declare-output U float32 [1,2]) (declare-output V float32 [1,1]))\n"
        "(assert (and (<= A[0,0] 1.0) (>= A[0,0] 0.0) (<= A[0,1] 2.0) (>= A[0,1] 0.0) (<= S 3.0) (>= S -3.0)))\n"
        "(assert (<= V[0,0] U[0,1]))"
    )
    query = parse_query(text, two_tensor_graph())
    assert query.problem.cases[0].inputs.upper.tolist() == [1, 2, 3]
    assert query.problem.cases[0].clauses[0].coeffs.tolist() == [[0, -1, 1]]
    assert [(v.name, v.kind, v.shape, v.offset) for v in query.variables] == [
        ("A", "input", (1, 2), 0), ("S", "input", (), 2), ("U", "output", (1, 2), 0), ("V", "output", (1, 1), 2),
    ]  # fmt: skip


TWO = VERSION + (
    "(declare-network f (declare-input X float32 [1,2]) (declare-output Y float32 [1,1]))\n"
    "(declare-network g ({relation} f) (declare-input U float32 [1,2]) (declare-output V float32 [1,1]))\n"
)


def test_equal_networks_share_one_graph_and_equated_inputs():
    text = (
        TWO.format(relation="equal-to")
        + BOX
        + ("(assert (== U[0,1] X[0,1]))(assert (and (>= U[0,0] X[0,0]) (<= U[0,0] 1)))(assert (< V[0,0] Y[0,0]))")
    )
    query = parse_query(text, relu_graph())
    assert query.graph.input_size == 3 and query.input_map.tolist() == [0, 1, 2, 1]
    assert query.equal_to == {"g": "f"}
    assert query.problem.cases[0].inputs.lower.tolist() == [-1, -1, -1]  # from U >= X
    assert query.problem.cases[0].clauses[0].coeffs.tolist() == [[-1, 1]]
    x = np.array([[0.5, -0.25, 0.75]])
    expected = [evaluate(relu_graph(), x[:, at])[0, 0] for at in ([0, 1], [2, 1])]
    assert evaluate(query.graph, x)[0].tolist() == expected


def test_isomorphic_networks_take_a_model_each():
    text = (
        TWO.format(relation="isomorphic-to")
        + BOX
        + ("(assert (and (== U[0,0] X[0,0]) (== X[0,1] U[0,1])))(assert (!= V[0,0] Y[0,0]))")
    )
    f, g = linear_graph([[1], [2]]), linear_graph([[3], [4]])
    query = parse_query(text, {"f": f, "g": g})
    assert query.graph.input_size == 2
    assert evaluate(query.graph, np.array([[1.0, 10.0]]))[0].tolist() == [21, 43]
    with pytest.raises(SpecError, match="needs models for the networks"):
        parse_query(text, {"f": f})
    with pytest.raises(SpecError, match="needs a model for each"):
        parse_query(text, f)


def test_a_superfluous_model_is_refused():
    with pytest.raises(SpecError, match=r"needs models for the networks \['f'\]"):
        parse_query(TWO.format(relation="equal-to") + BOX, {"f": relu_graph(), "g": relu_graph()})


HIDDEN = VERSION + (
    '(declare-network f (declare-input X float32 [1,2]) (declare-hidden H float32 [1,2] "h")\n'
    " (declare-output Y float32 [1,1]))\n"
)


def test_hidden_tensors_become_outputs():
    query = parse_query(HIDDEN + BOX + "(assert (<= (+ H[0,1] Y[0,0]) 0.25))", relu_graph())
    assert query.graph.output_size == 2 and query.model_output_size == 1
    assert evaluate(query.graph, np.array([[0.5, 0.25]]))[0].tolist() == [1.0, -0.25]


def test_hidden_tensors_appended_by_the_importer_are_no_outputs():
    from dataclasses import replace

    graph = relu_graph()
    graph = replace(graph, outputs=("y", "h"), output_names=("out", "hid"))
    query = parse_query(HIDDEN.replace('"h"', '"hid"') + BOX + "(assert (<= H[0,1] 0.25))", graph)
    assert query.model_output_size == 1
    assert evaluate(query.graph, np.array([[0.5, 0.25]]))[0, 1] == -0.25


def test_hidden_names_are_found_before_the_network_is_read(tmp_path):
    path = tmp_path / "h.vnnlib"
    path.write_text(HIDDEN + '(declare-network g (equal-to f) (declare-hidden K float32 [2] "k")) ; "(declare-hidden"')
    assert hidden_tensors(path) == {"f": ("h", "k")}
    path.write_text(ONE)
    assert hidden_tensors(path) == {}


def test_an_unknown_hidden_tensor_is_named():
    with pytest.raises(SpecError, match="no tensor 'nope'"):
        parse_query(HIDDEN.replace('"h"', '"nope"') + BOX, relu_graph())


def test_real_is_exact_and_rounds_outward():
    query = one("(assert (<= X[0,0] 0.1))(assert (== X[0,1] 0.3))(assert (< Y[0,0] 0.1))", element="real")
    assert query.problem.exact_real
    box = query.problem.cases[0].inputs
    assert box.upper[0] == 0.1  # the double above the decimal
    assert box.lower[1] == 0.3 < 0.30000000000000004 == box.upper[1]  # double(0.3) is below the decimal
    assert query.variables[0].element_type == "real"


def test_strict_input_bounds_over_the_reals_stay_strict_rows():
    box = one("(assert (< X[0,0] 0.5))", element="real").problem.cases[0].inputs
    assert box.upper[0] == 0.5
    assert box.row_coeffs.tolist() == [[1, 0]] and box.row_strict.tolist() == [True]


@pytest.mark.parametrize("element", ["float64", "float16", "int64", "bfloat16", "Real"])
def test_unsound_element_types_are_refused(element):
    with pytest.raises(SpecError):
        parse_query(ONE.format(t=element) + BOX, IDENTITY)


def test_float64_networks_take_float64_declarations():
    graph = linear_graph(np.eye(2), dtype="float64")
    assert one("", graph, "float64").graph.dtype == "float64"
    with pytest.raises(SpecError, match="computes in float64"):
        one("", graph, "float32")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ONE.format(t="float32") + "(assert (<= X[0,5] 1.0))", "line 3: Index out of bounds"),
        (ONE.format(t="float32") + "\n(assert (<= Z[0] 1.0))", "line 4: Undeclared variable"),
        (ONE.format(t="float32") + "(assert (<= X[0,0] 1.0)", "line 3: Parse error"),
        (ONE.format(t="float32") + "(assert (<= X[0,0] 1.0e5))", "line 3"),
        (ONE.format(t="float32") + "(assert (not (<= X[0,0] 1.0)))", "line 3"),
        (VERSION, "syntax error"),
        (ONE.format(t="float32").replace("[1,2]) (", "[1,2] initialized) (") + BOX, "line 2: `initialized`"),
        (ONE.format(t="float32") + "(assert " + "(and " * 9000 + "(<= X[0,0] 1.0)" + ")" * 9001, "nested"),
        (ONE.format(t="float32") + "\0", "NUL"),
        (ONE.format(t="float32") + "(assert (<= X[0,0] 1.0))", "X.0,0. has no lower bound"),
    ],
)
def test_errors_are_one_line(text, message):
    with pytest.raises(SpecError, match=message) as caught:
        parse_query(text, IDENTITY)
    assert "\n" not in str(caught.value)


def test_sizes_must_fit_the_network():
    with pytest.raises(ShapeError, match=r"input X of network 'f': declared \[1, 2\]"):
        one("", linear_graph(np.ones((3, 2))))
    with pytest.raises(ShapeError, match=r"output Y of network 'f'"):
        one("", linear_graph(np.ones((2, 3))))
    with pytest.raises(ShapeError, match="declares 1 inputs, the model has 2"):
        two = ONE.format(t="float32").replace("Y float32 [1,2]", "Y float32 [1,2]) (declare-output Z float32 [1,1]")
        parse_query(two + BOX, two_tensor_graph())
    from dataclasses import replace

    graph = replace(IDENTITY, outputs=("Y", "X"), output_names=("Y", "X"))
    with pytest.raises(ShapeError, match="declares 1 outputs, the model has 2"):
        one("", graph)


def test_other_layouts_of_the_same_size_are_noted():
    text = ONE.format(t="float32").replace("X float32 [1,2]", "X float32 [2,1]")
    box = BOX.replace("X[0,1]", "X[1,0]")
    assert parse_query(text + box, IDENTITY).problem.notes == ()
    wide = linear_graph(np.eye(4))
    text = text.replace("[2,1]", "[2,2]").replace("[1,2]", "[1,4]")
    box += "(assert (and (<= X[0,1] 1.0) (>= X[0,1] 0.0) (<= X[1,1] 1.0) (>= X[1,1] 0.0)))"
    assert "row-major" in parse_query(text + box, wide).problem.notes[0]
