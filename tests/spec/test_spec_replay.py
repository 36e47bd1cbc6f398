"""Replay: zero tolerance, exact comparisons, the user's own network."""

import gzip
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spec_models import declare, linear_graph, onnx_bytes, relu_graph, unit_box

from verifier.errors import NetworkError, ShapeError, SpecError
from verifier.graph.ir import GraphBuilder
from verifier.spec.exact import clause_margin, row_slacks
from verifier.spec.load import parse_query
from verifier.spec.problem import Case, Clause, InputSet, Problem, misclassified
from verifier.spec.query import query_of
from verifier.spec.replay import Replay

pytest.importorskip("onnxruntime")

HEAD = declare(2, 1) + unit_box(2)


def test_onnx_file_plain_gzip_and_bytes(tmp_path):
    plain, packed = tmp_path / "n.onnx", tmp_path / "n.onnx.gz"
    plain.write_bytes(onnx_bytes(free_batch=True))
    packed.write_bytes(gzip.compress(onnx_bytes()))
    for source in (plain, str(packed), onnx_bytes()):
        y = Replay(source).run(np.float32([0.5, 0.25]))
        assert y.dtype == np.float32 and y.tolist() == [1.0]


def test_float64_models_are_fed_float64():
    y = Replay(onnx_bytes("float64")).run(np.array([0.1, 0.0]))
    assert y.dtype == np.float64 and y.tolist() == [0.1]


def test_a_counterexample_is_confirmed_and_reported():
    query = parse_query(HEAD + "(assert (or (>= Y_0 99) (>= Y_0 1)))", relu_graph())
    result = Replay(onnx_bytes(), query).check(query, np.float32([0.5, 0.25]))
    assert result.valid and (result.case, result.clause, result.margin) == (0, 1, 0.0)
    assert result.y.tolist() == [1.0] and "ONNX Runtime" in result.message


def test_one_unit_in_the_last_place_is_not_enough():
    query = parse_query(HEAD + "(assert (>= Y_0 1))", relu_graph())
    replay = Replay(onnx_bytes(), query)
    short = np.float32([0.5 - 2.0**-24, 0.25])  # y = 1 - 2**-24, the float below 1
    result = replay.check(query, short)
    assert not result.valid and 0 < result.margin < 1e-6
    assert "misses" in result.message


def test_strict_rows_need_a_strict_violation():
    query = parse_query(HEAD + "(assert (> Y_0 1))", relu_graph())
    assert not Replay(relu_graph(), query).check(query, np.float32([0.5, 0.25])).valid


def test_inputs_outside_the_set_never_count():
    query = parse_query(HEAD + "(assert (<= (+ X_0 X_1) 0.5))(assert (>= Y_0 -9))", relu_graph())
    replay = Replay(relu_graph(), query)
    assert replay.check(query, np.float32([0.5, 0.0])).valid
    assert "row 0" in replay.check(query, np.float32([0.5, 0.25])).message
    assert "input 1" in replay.check(query, np.float32([0.5, -1.25])).message


def test_inputs_must_be_numbers_of_the_program():
    query = parse_query(HEAD, relu_graph())
    replay = Replay(relu_graph(), query)
    assert replay.check(query, np.float64([0.5, 0.25])).valid
    for bad in (0.1, 1e300, np.nan):
        result = replay.check(query, np.float64([bad, 0.25]))
        assert not result.valid
    assert "float32 number" in replay.check(query, np.float64([0.1, 0.25])).message
    with pytest.raises(ShapeError, match="expected 2 inputs, got 3"):
        replay.check(query, np.zeros(3, np.float32))


def test_nan_outputs_are_never_unsafe():
    builder = GraphBuilder()
    x = builder.add("Input", (), (1, 1), "X")
    y = builder.add("Sqrt", (x,), (1, 1), "Y")
    graph = builder.finish((x,), (y,))
    either = "(assert (or (<= Y_0 0) (>= Y_0 0)))"
    query = parse_query(declare(1, 1) + unit_box(1) + either, graph)
    replay = Replay(graph, query)
    assert replay.check(query, np.float32([0.25])).valid
    result = replay.check(query, np.float32([-1]))
    assert np.isnan(result.y[0]) and not result.valid


def test_infinite_outputs_are_not_unsafe_either():
    clause = Clause(np.array([[1.0, 0.0]]), np.array([0.0]), np.array([False]))
    assert clause_margin(clause, np.array([-np.inf, 0.0])) == (False, np.inf)
    assert clause_margin(clause, np.array([-1.0, np.nan]))[0]  # the NaN is not read


def test_a_clause_without_rows_always_holds():
    clause = Clause(np.zeros((0, 2)), np.zeros(0), np.zeros(0, bool))
    assert clause_margin(clause, np.array([np.nan, 1.0])) == (True, -np.inf)


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6)), min_size=1, max_size=6),
    st.floats(-1e6, 1e6),
    st.booleans(),
)
def test_row_signs_are_exact(pairs, limit, on_the_limit):
    values = np.array([v for v, _ in pairs])
    coeffs = np.array([[c for _, c in pairs]])
    if on_the_limit:
        limit = float(coeffs[0] @ values)
    exact = sum(Fraction(c) * Fraction(v) for v, c in pairs) - Fraction(limit)
    slack = row_slacks(coeffs, np.array([limit]), values)[0]
    assert (slack > 0) == (exact > 0) and (slack < 0) == (exact < 0)


def test_row_signs_survive_overflow():
    coeffs, values = np.array([[1e300, -1e300]]), np.array([1e30, 1e30])
    assert row_slacks(coeffs, np.array([0.0]), values) == [0]


def test_the_violated_case_is_found_among_many():
    cases = []
    for k in range(4):
        box = InputSet(np.array([k / 4, -1.0]), np.array([(k + 1) / 4, 1.0]))
        cases.append(Case(box, (Clause(np.array([[-1.0]]), np.array([-3.0 + k]), np.array([False])),)))
    query = query_of(relu_graph(), Problem(tuple(cases), 1))
    result = Replay(relu_graph()).check(query, np.float32([0.75, 0.25]))
    assert result.valid and result.case == 2  # 0.75 lies in cases 2 and 3; y = 1.25
    assert Replay(relu_graph()).check(query, np.float32([0.25, 0.0])).valid is False
    assert Replay(relu_graph()).check(query, np.float32([0.75, 0.25]), case=3).case == 3
    assert not Replay(relu_graph()).check(query, np.float32([0.75, 0.25]), case=0).valid


def test_products_and_mixed_rows_use_the_replayed_outputs_exactly():
    text = HEAD + "(assert (= (* X_0 X_1 Y_0) 0.125))(assert (= (- Y_0 X_0) 0.5))"
    query = parse_query(text, relu_graph())
    result = Replay(onnx_bytes(), query).check(query, np.float32([0.5, 0.25]))
    assert result.valid
    tiny = np.float32([np.nextafter(np.float32(0.5), np.float32(1)), 0.25])
    assert not Replay(onnx_bytes(), query).check(query, tiny).valid


def test_products_beyond_the_precision_of_a_double_are_exact():
    x = np.float32([1 - 2.0**-24, 1 - 2.0**-23])
    graph = linear_graph(np.eye(2))
    product = Fraction(float(x[0])) ** 3 * Fraction(float(x[1]))
    assert Fraction(float(product)) != product
    above, below = sorted([float(product), np.nextafter(float(product), 2 if float(product) < product else 0)])[::-1]
    for limit, expected in ((below, True), (above, False)):
        text = declare(2, 2) + unit_box(2) + f"(assert (>= (* X_0 X_0 Y_0 Y_1) {Decimal(float(limit)):f}))"
        query = parse_query(text, graph)
        assert Replay(graph, query).check(query, x).valid is expected


V2 = (
    '(vnnlib-version <2.0>)(declare-network f (declare-input X float32 [1,2]) (declare-hidden H float32 [1,2] "hid")'
    " (declare-output Y float32 [1,1]))(declare-network g (equal-to f) (declare-input U float32 [1,2])"
    ' (declare-hidden K float32 [1,2] "hid") (declare-output V float32 [1,1]))'
    "(assert (and (<= X[0,0] 1) (>= X[0,0] -1) (<= X[0,1] 1) (>= X[0,1] -1) (== X[0,1] U[0,1])"
    " (<= U[0,0] 1) (>= U[0,0] -1)))(assert (> (+ Y[0,0] H[0,1]) (+ V[0,0] K[0,1])))"
)


def test_hidden_tensors_and_shared_models_in_onnx_runtime():
    from dataclasses import replace

    graph = replace(relu_graph(), outputs=("y", "h"), output_names=("out", "hid"))
    query = parse_query(V2, graph)
    x = np.float32([-0.5, 0.5, 0.5])  # X0, X1 = U1, U0
    for models in (onnx_bytes(), {"f": onnx_bytes()}, graph):
        result = Replay(models, query).check(query, x)
        assert result.valid  # Y + H1 = 1.5 + 1, V + K1 = 1.5 + 0
        assert result.y.tolist() == [1.5, 1.5]
        assert result.hidden["f", "hid"].tolist() == [0.5, 1.0]
        assert result.hidden["g", "hid"].tolist() == [1.5, 0.0]
        assert not Replay(models, query).check(query, x[[2, 1, 0]]).valid
    with pytest.raises(SpecError, match=r"expected models for \['f'\]"):
        Replay({"g": onnx_bytes()}, query)


def test_hidden_tensors_of_an_imported_file(tmp_path):
    from verifier.graph.load import load_network
    from verifier.spec.load import hidden_tensors, load_query

    model, spec = tmp_path / "n.onnx", tmp_path / "p.vnnlib"
    model.write_bytes(onnx_bytes())
    spec.write_text(V2)
    graph = load_network(model, hidden=hidden_tensors(spec)["f"])
    query = load_query(spec, graph)
    x = np.float32([-0.5, 0.5, 0.5])
    for models in (model, graph):
        assert Replay(models, query).check(query, x).valid


def test_unknown_hidden_tensor_and_broken_models():
    from dataclasses import replace

    graph = replace(relu_graph(), outputs=("y", "h"), output_names=("out", "other"))
    query = parse_query(V2.replace('"hid"', '"other"'), graph)
    with pytest.raises(NetworkError, match="no tensor 'other'"):
        Replay(onnx_bytes(), query)
    with pytest.raises(NetworkError, match="cannot load"):
        Replay(b"no model")
    with pytest.raises(NetworkError, match="cannot read"):
        Replay("/does/not/exist.onnx")
    with pytest.raises(ShapeError, match="take 2 inputs"):
        Replay(onnx_bytes()).run(np.zeros(3, np.float32))


def test_a_graph_is_evaluated_and_the_message_says_so():
    query = query_of(
        linear_graph(np.eye(2)), Problem((Case(InputSet(np.zeros(2), np.ones(2)), misclassified(0, 2)),), 2)
    )
    result = Replay(linear_graph(np.eye(2)), query).check(query, np.float32([0.25, 0.75]))
    assert result.valid and "no ONNX file" in result.message


def test_query_of_checks_sizes_and_widens_points():
    graph = linear_graph(np.eye(2))
    point = InputSet(np.full(2, 0.208333), np.full(2, 0.208333))
    query = query_of(graph, Problem((Case(point, ()),), 2))
    assert query.problem.cases[0].inputs.upper[0] >= float(np.float32(0.208333))
    with pytest.raises(ShapeError):
        query_of(graph, Problem((), 3))
    with pytest.raises(ShapeError):
        query_of(linear_graph(np.ones((3, 2))), Problem((Case(point, ()),), 2))
