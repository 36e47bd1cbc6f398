"""VNN-LIB 1.0: forms, normal form, number reading, and errors that name their line."""

import gzip

import numpy as np
import pytest
from spec_models import declare, linear_graph, unit_box

from verifier.errors import ShapeError, SpecError
from verifier.spec.load import load_query, parse_query

IDENTITY = linear_graph(np.eye(2))
HEAD = declare(2, 2) + unit_box(2)


def rows_of(clause):
    return sorted(
        (tuple(c), limit, bool(s))
        for c, limit, s in zip(clause.coeffs.tolist(), clause.limits, clause.strict, strict=True)
    )


def only_case(text, graph=IDENTITY):
    query = parse_query(text, graph)
    assert len(query.problem.cases) == 1
    return query.problem.cases[0]


@pytest.mark.parametrize(
    ("formula", "row", "limit", "strict"),
    [
        ("(<= Y_0 0.5)", [1, 0], 0.5, False),
        ("(>= Y_0 0.5)", [-1, 0], -0.5, False),
        ("(<= 0.5 Y_0)", [-1, 0], -0.5, False),
        ("(< Y_0 Y_1)", [1, -1], 0, True),
        ("(> Y_0 Y_1)", [-1, 1], 0, True),
        ("(>= Y_1 Y_0)", [1, -1], 0, False),
        ("(<= (+ Y_0 1) (* 2 Y_1))", [1, -2], -1, False),
        ("(<= (- Y_0) -1.5e0)", [-1, 0], -1.5, False),
        ("(<= (- (* 3 Y_0) Y_1 1) Y_0)", [2, -1], 1, False),
        ("(<= (* 4 (- Y_0 0.25)) 0)", [1, 0], 0.25, False),
    ],
)
def test_constants_move_right_and_greater_is_negated(formula, row, limit, strict):
    (clause,) = only_case(HEAD + f"(assert {formula})").clauses
    assert rows_of(clause) == [(tuple(row), limit, strict)]


def test_equality_is_two_rows():
    (clause,) = only_case(HEAD + "(assert (= Y_0 0.25))").clauses
    assert rows_of(clause) == [((-1.0, 0.0), -0.25, False), ((1.0, 0.0), 0.25, False)]


def test_equality_inside_or_is_one_clause():
    case = only_case(HEAD + "(assert (or (= Y_0 0.25) (<= Y_1 0)))")
    assert sorted(len(clause.limits) for clause in case.clauses) == [1, 2]


def test_asserts_are_conjoined_and_output_ors_are_multiplied():
    text = HEAD + "(assert (or (<= Y_0 0) (<= Y_1 0)))(assert (or (>= Y_0 -1) (>= Y_1 -1)))"
    case = only_case(text)
    assert len(case.clauses) == 4
    assert all(len(clause.limits) == 2 for clause in case.clauses)


def test_no_output_constraint_makes_every_input_unsafe():
    (clause,) = only_case(HEAD).clauses
    assert clause.coeffs.shape == (0, 2)


def test_boxes_inside_or_become_cases_and_equal_boxes_are_grouped():
    branch = "(and (<= X_0 {b}) (>= X_0 {a}) (<= Y_{k} 0))"
    branches = [branch.format(a=0, b=0.5, k=0), branch.format(a=0.5, b=1, k=0), branch.format(a=0, b=0.5, k=1)]
    query = parse_query(HEAD + f"(assert (or {' '.join(branches)}))", IDENTITY)
    assert [len(case.clauses) for case in query.problem.cases] == [2, 1]
    assert query.problem.cases[0].inputs.lower.tolist() == [0, -1]
    assert query.problem.cases[0].inputs.upper.tolist() == [0.5, 1]


def test_an_or_over_inputs_times_an_or_over_outputs_stays_factored():
    boxes = " ".join(f"(and (>= X_0 {i / 512}) (<= X_0 {(i + 1) / 512}))" for i in range(512))
    outputs = " ".join(f"(>= Y_0 {i})" for i in range(300))
    query = parse_query(HEAD + f"(assert (or {boxes}))(assert (or {outputs}))", IDENTITY)
    assert len(query.problem.cases) == 512
    assert len({id(case.clauses) for case in query.problem.cases}) == 1
    assert len(query.problem.cases[0].clauses) == 300


def test_two_ors_over_the_same_input_keep_only_compatible_boxes():
    boxes = " ".join(f"(and (>= X_0 {i / 64}) (<= X_0 {(i + 0.5) / 64}))" for i in range(64))
    query = parse_query(HEAD + f"(assert (or {boxes}))" * 2, IDENTITY)
    assert len(query.problem.cases) == 64


def test_explosion_is_refused_with_a_reason():
    ors = "".join("(assert (or " + " ".join(f"(>= Y_0 {i}.{k})" for i in range(20)) + "))" for k in range(6))
    with pytest.raises(SpecError, match="clauses in normal form"):
        parse_query(HEAD + ors, IDENTITY)


def test_linear_input_rows_join_the_input_set():
    case = only_case(HEAD + "(assert (<= (+ X_0 X_1) 0.5))(assert (< X_0 X_1))(assert (<= Y_0 0))")
    assert case.inputs.row_coeffs.tolist() == [[1, 1], [1, -1]]
    assert case.inputs.row_limits.tolist() == [0.5, 0]
    assert case.inputs.row_strict.tolist() == [False, True]


def test_missing_bounds_follow_from_linear_rows():
    text = declare(2, 2) + "(assert (<= X_0 1))(assert (>= X_0 0))(assert (<= X_1 (+ X_0 0.1)))(assert (>= X_1 X_0))"
    case = only_case(text)
    assert case.inputs.lower.tolist() == [0, 0]
    assert 1.1 <= case.inputs.upper[1] <= np.nextafter(1.1, 2)


def test_mixed_rows_append_the_inputs_to_the_graph():
    query = parse_query(HEAD + "(assert (<= (+ Y_0 X_1) 0.5))", IDENTITY)
    assert query.graph.output_size == 3
    assert query.problem.cases[0].clauses[0].coeffs.tolist() == [[1, 0, 1]]
    assert query.extras[0].kind == "input" and query.extras[0].index == 1
    assert query.model_output_size == 2


def test_pure_output_rows_leave_the_graph_alone():
    assert parse_query(HEAD + "(assert (<= Y_0 0))", IDENTITY).graph is IDENTITY


def test_an_empty_region_is_kept_and_noted():
    query = parse_query(HEAD + "(assert (>= X_0 2))(assert (<= Y_0 0))", IDENTITY)
    assert query.problem.cases[0].inputs.is_empty_box
    assert "empty" in query.problem.notes[0]


def test_a_contradiction_of_constants_leaves_no_case():
    query = parse_query(HEAD + "(assert (<= 1 0))", IDENTITY)
    assert query.problem.cases == () and query.problem.notes


def test_strict_bound_is_closed_to_the_next_float32():
    case = only_case(HEAD + "(assert (< X_0 0.5))(assert (> X_1 0.125))")
    assert case.inputs.upper[0] == np.nextafter(np.float32(0.5), np.float32(0))
    assert case.inputs.lower[1] == np.nextafter(np.float32(0.125), np.float32(1))
    assert case.inputs.is_box


def test_point_box_holds_the_float32_the_program_is_given():
    text = declare(1, 1) + "(assert (<= X_0 0.208333))(assert (>= X_0 0.208333))"
    case = only_case(text, linear_graph([[1.0]]))
    assert case.inputs.lower[0] <= float(np.float32(0.208333)) <= case.inputs.upper[0]
    assert case.inputs.lower[0] <= 0.208333 <= case.inputs.upper[0]
    assert case.inputs.upper[0] - case.inputs.lower[0] < 1e-7


def test_point_box_of_a_float64_network_stays_a_point():
    text = declare(1, 1) + "(assert (<= X_0 0.208333))(assert (>= X_0 0.208333))"
    case = only_case(text, linear_graph([[1.0]], dtype="float64"))
    assert case.inputs.lower[0] == case.inputs.upper[0] == 0.208333


def test_decimal_coefficients_are_scaled_rather_than_rounded():
    (clause,) = only_case(HEAD + "(assert (<= (+ (* 0.1 Y_0) (* 0.25 Y_1)) 0.3))").clauses
    assert clause.coeffs.tolist() == [[2, 5]]
    assert clause.limits.tolist() == [6]


def test_strictness_is_given_up_where_the_double_is_below_the_decimal():
    below = "0.29999999999999999"  # nearest double: 0.299999999999999988..., below the decimal
    (clause,) = only_case(HEAD + f"(assert (< Y_0 {below}))").clauses
    assert not clause.strict[0] and clause.limits[0] == float(below)


def test_comments_crlf_exponents_and_unusual_layout():
    text = (
        "; (assert (<= X_0 7)) is a comment\r\n(set-logic QF_LRA)\r\n"
        + declare(2, 2).replace("\n", " ; c\r\n")
        + "( assert\n ( and ( <= X_0 1E-1 ) (>= X_0 -.5e+1)\t( >= 1. X_1 ) ; inner\n (<= -1 X_1)))\r\n"
        "(assert(or(and(<= Y_0 0))))(check-sat)"
    )
    case = only_case(text)
    assert case.inputs.lower.tolist() == [-5, -1]
    assert case.inputs.upper.tolist() == [0.1, 1]


def test_declare_fun_is_read_like_declare_const():
    text = declare(2, 2).replace("declare-const X_0 Real", "declare-fun X_0 () Real") + unit_box(2)
    assert len(parse_query(text, IDENTITY).problem.cases) == 1


def test_deep_nesting_needs_no_recursion():
    deep = "(and (or " * 30_000 + "(<= Y_0 0)" + "))" * 30_000
    assert len(only_case(HEAD + f"(assert {deep})").clauses) == 1


LINES = HEAD.count("\n")


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ("(assert (<= X_9 1))", "X_9: the network has 2 inputs"),
        ("(assert (<= Y_2 1))", "Y_2: the network has 2 outputs"),
        ("(assert (or (<= Y_0 1)", "never closed"),
        ("(assert (<= Y_0 1)))", "without an opening one"),
        ("(assert (not (<= Y_0 1)))", r"'\(not' is not a form"),
        ("(assert (<= Y_0 1e999))", "outside the range of a double"),
        ("(assert (<= (* 2 Y_0) 1e-99999999999))", "neither a number|not a number|outside"),
        ("(assert (<= Y_0 Z_1))", "neither a number nor a variable"),
        ("(assert (<= Y_0 1 2))", "two sides, got 3"),
        ("(assert (and))", "empty"),
        ("(assert Y_0)", "not a formula"),
        ("(assert (<= Y_0 (or Y_1)))", r"'\(or' is not legal inside '\(<='"),
        ("(assert (<= Y_0 0) (<= Y_1 0))", "one formula, got 2"),
        ("(<= Y_0 0)", "only legal inside assert"),
        ("hello", "outside of any parentheses"),
        ("(declare-const Z_0 Real)", "cannot read this declaration"),
        ("(assert (<= nan Y_0))", "neither a number"),
    ],
)
def test_errors_name_their_line(tail, message):
    with pytest.raises(SpecError, match=message) as caught:
        parse_query(HEAD + "\n\n" + tail, IDENTITY)
    assert f"line {LINES + 3}:" in str(caught.value)


def test_error_lines_count_across_comments():
    with pytest.raises(SpecError, match="line 4:"):
        parse_query("; a\n; b (assert\n\n(assert (<= X_5 1))", IDENTITY)


def test_wrong_network_is_a_shape_error():
    with pytest.raises(ShapeError, match="declares 2 inputs and 2 outputs, the network has 3 inputs and 1 outputs"):
        parse_query(declare(2, 2), linear_graph(np.ones((3, 1))))
    with pytest.raises(ShapeError, match="Y_1: the network has 1 outputs"):
        parse_query(HEAD + "(assert (<= Y_1 0))", linear_graph(np.ones((2, 1))))


def test_missing_bound_names_the_variable_and_the_region():
    with pytest.raises(SpecError, match="X_1 has no upper bound"):
        parse_query(declare(2, 2) + "(assert (<= X_0 1))(assert (>= X_0 0))(assert (>= X_1 0))", IDENTITY)
    text = unit_box(2).replace("(assert (<= X_1 1.0))\n", "")
    branches = "(assert (or (and (<= X_1 1) (<= Y_0 0)) (<= Y_1 0)))"
    with pytest.raises(SpecError, match="X_1 has no upper bound in input region 1 of 2"):
        parse_query(declare(2, 2) + text + branches, IDENTITY)


def test_files_plain_and_gzip(tmp_path):
    plain, packed = tmp_path / "a.vnnlib", tmp_path / "a.vnnlib.gz"
    plain.write_text(HEAD)
    packed.write_bytes(gzip.compress(HEAD.encode()))
    for path in (plain, packed):
        assert len(load_query(path, IDENTITY).problem.cases) == 1
    with pytest.raises(SpecError, match="missing"):
        load_query(tmp_path / "missing", IDENTITY)
    packed.write_bytes(gzip.compress(HEAD.encode())[:40])
    with pytest.raises(SpecError, match=r"a\.vnnlib\.gz"):
        load_query(packed, IDENTITY)
    plain.write_bytes(b"\xff\xfe\x00(")
    with pytest.raises(SpecError, match="cannot read"):
        load_query(plain, IDENTITY)
    plain.write_text("(assert")
    with pytest.raises(SpecError, match=r"a\.vnnlib: line 1"):
        load_query(plain, IDENTITY)


def test_one_property_needs_one_network():
    with pytest.raises(SpecError, match="one network"):
        parse_query(HEAD, {"f": IDENTITY, "g": IDENTITY})
    assert parse_query(HEAD, {"f": IDENTITY}).graph is IDENTITY


def test_a_large_file_takes_linear_time():
    import time

    def seconds(n):
        text = declare(n, 1) + unit_box(n)
        graph = linear_graph(np.zeros((n, 1)))
        start = time.process_time()
        parse_query(text, graph)
        return time.process_time() - start

    seconds(100)
    assert seconds(16_000) < 40 * max(seconds(1_000), 0.004)
