"""Witness files of both languages: exact numbers, declaration order, malformed text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spec_models import declare, linear_graph, relu_graph, unit_box

from verifier.errors import ShapeError, SpecError
from verifier.spec.load import parse_query
from verifier.spec.witness import read_witness, write_witness

QUERY_1 = parse_query(declare(2, 1) + unit_box(2), relu_graph())
QUERY_2 = parse_query(
    '(vnnlib-version <2.0>)(declare-network f (declare-input A float32 [1,2]) (declare-hidden H real [2] "h")'
    " (declare-output B float32 [1,1]))(declare-network g (equal-to f) (declare-input C float32 [1,2])"
    " (declare-output D float32 []))(assert (and (<= A[0,0] 1) (>= A[0,0] -1) (<= A[0,1] 1) (>= A[0,1] -1)"
    " (== C[0,0] A[0,1]) (== C[0,1] A[0,0])))".replace("[])", "[1,1])"),
    relu_graph(),
)
floats = st.floats(allow_nan=False, allow_infinity=False, width=32)


def test_format_of_version_1():
    text = write_witness(QUERY_1, np.float32([0.5, -0.1]), np.float32([1e-5]))
    assert text == "((X_0 0.5)\n(X_1 -0.10000000149011612)\n(Y_0 0.000009999999747378752))\n"


def test_format_of_version_2():
    text = write_witness(QUERY_2, np.float32([0.5, 0.25]), np.float32([1, 2]), {("f", "h"): np.float32([3, 4])})
    assert text.split("\n") == [
        "A float32 [1,2]", "0.5", "0.25", "H real [2]", "3.0", "4.0", "B float32 [1,1]", "1.0",
        "C float32 [1,2]", "0.25", "0.5", "D float32 [1,1]", "2.0", "",
    ]  # fmt: skip


@given(st.tuples(floats, floats), floats)
def test_float32_values_come_back_unchanged(x, y):
    x, y = np.float32(x), np.float32([y])
    text = write_witness(QUERY_1, x, y)
    for number in (np.float32, np.float64):
        read_x, read_y = read_witness(text, QUERY_1)
        assert np.array_equal(read_x.astype(number), x.astype(number))
        assert np.array_equal(read_y.astype(number), y.astype(number))
    two = write_witness(QUERY_2, x, np.float32([*y, 2]), {("f", "h"): x})
    read_x, read_y = read_witness(two, QUERY_2)
    assert np.array_equal(read_x, x) and np.array_equal(read_y, np.float32([*y, 2]))


def test_result_files_with_a_verdict_line_and_other_layouts():
    x, y = read_witness("sat\n((X_0 0.5)(X_1 1e-3)\n\n (Y_0 -2))")
    assert x.tolist() == [0.5, 1e-3] and y.tolist() == [-2]
    x, y = read_witness("((X_1 2)\n(X_0 1))", QUERY_1)
    assert x.tolist() == [1, 2] and y.size == 0


def test_inputs_that_the_query_equates_must_agree():
    text = "A float32 [1,2]\n0.5\n0.25\nC float32 [1,2]\n0.25\n0.75\n"
    with pytest.raises(SpecError, match="equates"):
        read_witness(text, QUERY_2)
    x, y = read_witness(text.replace("0.75", "0.5"), QUERY_2)
    assert x.tolist() == [0.5, 0.25] and y.size == 0


@pytest.mark.parametrize(
    ("text", "query", "message"),
    [
        ("((X_0 0.5)(X_2 1))", None, "largest index is 2"),
        ("((X_0 0.5) hello)", None, "expected"),
        ("((X_0 abc))", None, "not a number"),
        ("((X_0 0.5))", QUERY_1, "expected 2 inputs"),
        ("A float32 [1,2]\n0.5\n0.25\n", None, "needs the query"),
        ("A float32 [1,2]\n0.5\n", QUERY_2, "needs 2 values"),
        ("A float32 [1,2]\n0.5\nx\n", QUERY_2, "not a number"),
        ("Z float32 [1,2]\n0.5\n1\n", QUERY_2, "declared variable"),
        ("C float32 [1,2]\n0.5\n1\n", QUERY_2, "no values for input A"),
        ("", QUERY_1, "no values for input X"),
    ],
)
def test_malformed_witnesses(text, query, message):
    with pytest.raises(SpecError, match=message):
        read_witness(text, query)


def test_wrong_sizes_and_missing_hidden_values():
    with pytest.raises(ShapeError, match="expected 2 inputs and 1 outputs, got 1 and 1"):
        write_witness(QUERY_1, np.zeros(1), np.zeros(1))
    with pytest.raises(SpecError, match="no values for hidden variable H"):
        write_witness(QUERY_2, np.zeros(2), np.zeros(2))


def test_float64_networks():
    query = parse_query(declare(1, 1) + unit_box(1), linear_graph([[1.0]], dtype="float64"))
    text = write_witness(query, np.array([0.1]), np.array([1 / 3]))
    assert read_witness(text)[1].tolist() == [1 / 3]
