"""Problems written as VNN-LIB text read back to the same sets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spec_models import linear_graph, two_tensor_graph

from verifier.errors import ShapeError, SpecError
from verifier.spec.load import parse_query
from verifier.spec.problem import Case, Clause, InputSet, Problem, classification_problem
from verifier.spec.write import write_vnnlib

GRAPH = linear_graph(np.eye(2))
numbers = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6, allow_subnormal=False), st.floats(1e-20, 1e-19))
vectors = st.tuples(numbers, numbers).map(np.array)
# A row of one variable is read back divided by its coefficient, so only signs round-trip literally.
rows = st.one_of(
    vectors.filter(lambda row: np.all(row != 0)),
    st.sampled_from([[1, 0], [-1, 0], [0, 1], [0, -1]]).map(lambda row: np.array(row, float)),
)


@st.composite
def clauses(draw):
    size = draw(st.integers(1, 3))
    return Clause(
        np.array([draw(rows) for _ in range(size)]),
        np.array([draw(numbers) for _ in range(size)]),
        np.array([draw(st.booleans()) for _ in range(size)]),
    )


@st.composite
def input_sets(draw):
    lower, width = draw(vectors), np.array(draw(st.tuples(st.floats(0.01, 9), st.floats(0.01, 9))))
    lower, upper = np.float32(lower).astype(float), np.float32(lower + width).astype(float)
    if not draw(st.booleans()):
        return InputSet(lower, upper)
    return InputSet(
        lower, upper, np.array([[1.0, draw(st.sampled_from([-1.0, 2.5]))]]), np.array([draw(numbers)]),
        row_strict=np.array([draw(st.booleans())]),
    )  # fmt: skip


problems = st.lists(
    st.builds(Case, input_sets(), st.lists(clauses(), min_size=1, max_size=3).map(tuple)), min_size=1, max_size=3
).map(lambda cases: Problem(tuple(cases), 2))


def as_sets(problem):
    """Cases as comparable sets: input set -> set of clauses -> set of rows."""
    found = {}
    for case in problem.cases:
        inputs = case.inputs
        extra = ()
        if inputs.row_coeffs is not None:
            extra = _rows(inputs.row_coeffs, inputs.row_limits, inputs.row_strict)
        key = (*inputs.lower, *inputs.upper, extra)
        found.setdefault(key, set()).update(_rows(c.coeffs, c.limits, c.strict) for c in case.clauses)
    return found


def _rows(coeffs, limits, strict):
    return frozenset((*c, l, bool(s)) for c, l, s in zip(coeffs.tolist(), limits.tolist(), strict, strict=True))


@settings(max_examples=100, deadline=None)
@given(problems, st.sampled_from(["1.0", "2.0"]))
def test_round_trip(problem, version):
    text = write_vnnlib(problem, [(1, 2)], [(1, 2)], version, comment="two lines\nof comment")
    assert as_sets(parse_query(text, GRAPH).problem) == as_sets(problem)


def test_tiny_coefficients_are_not_divided_away():
    box = InputSet(np.zeros(2), np.ones(2))
    problem = Problem((Case(box, (Clause(np.array([[0.0, 5e-324]]), np.array([1.0]), np.array([False])),)),), 2)
    again = parse_query(write_vnnlib(problem, [(1, 2)], [(1, 2)]), GRAPH).problem
    assert again.cases[0].clauses[0].coeffs.tolist() == [[0, 5e-324]]


def test_the_classification_problem_survives_both_languages():
    center = np.random.default_rng(0).uniform(0, 1, (1, 4, 4)).astype(np.float32)
    mask = np.arange(16).reshape(1, 4, 4) % 2 == 0
    problem = classification_problem(center, 0.1, np.inf, 2, 5, valid=(0, 1), mask=mask)
    graph = linear_graph(np.zeros((16, 5)))
    for version in ("1.0", "2.0"):
        again = parse_query(write_vnnlib(problem, [(1, 16)], [(1, 5)], version), graph).problem
        assert np.array_equal(again.cases[0].inputs.lower, problem.cases[0].inputs.lower)
        assert np.array_equal(again.cases[0].inputs.upper, problem.cases[0].inputs.upper)
        assert [c.coeffs.tolist() for c in again.cases[0].clauses] == [
            c.coeffs.tolist() for c in problem.cases[0].clauses
        ]
    assert problem.cases[0].inputs.lower[1] == problem.cases[0].inputs.upper[1]
    (targeted,) = classification_problem(center, 0.1, 2, 2, 5, target=4).cases[0].clauses
    assert targeted.coeffs.tolist() == [[0, 0, 1, 0, -1]]
    with pytest.raises(SpecError, match="label 5"):
        classification_problem(center, 0.1, 2, 5, 5)


def test_numbers_the_2_0_parser_cannot_hold_end_in_a_spec_error():
    box = InputSet(np.zeros(2), np.ones(2))
    problem = Problem((Case(box, (Clause(np.array([[1.0, 0.0]]), np.array([5e-324]), np.array([False])),)),), 2)
    assert parse_query(write_vnnlib(problem, [(1, 2)], [(1, 2)]), GRAPH).problem.cases[0].clauses[0].limits[0] == 5e-324
    with pytest.raises(SpecError, match="normal doubles"):
        parse_query(write_vnnlib(problem, [(1, 2)], [(1, 2)], "2.0"), GRAPH)


def test_several_tensors_and_scalars_in_version_2():
    box = InputSet(np.zeros(3), np.ones(3))
    clause = Clause(np.array([[0.1, 0, 1]]), np.array([0.3]), np.array([True]))
    problem = Problem((Case(box, (clause,)),), 3)
    text = write_vnnlib(problem, [(1, 2), ()], [(1, 2), (1, 1)], "2.0")
    again = parse_query(text, two_tensor_graph()).problem
    assert again.cases[0].clauses[0].coeffs.tolist() == [[0.1, 0, 1]]
    assert again.cases[0].clauses[0].limits.tolist() == [0.3] and again.cases[0].clauses[0].strict.tolist() == [True]


def test_exact_reals_are_not_widened_by_writing():
    box = InputSet(np.array([0.1, 0.3]), np.array([0.1, 0.7]))
    clause = Clause(np.array([[1.0, 0.0]]), np.array([0.1]), np.array([True]))
    problem = Problem((Case(box, (clause,)),), 2, exact_real=True)
    again = parse_query(write_vnnlib(problem, [(1, 2)], [(1, 2)], "2.0"), GRAPH).problem
    assert again.exact_real
    assert again.cases[0].inputs.lower.tolist() == [0.1, 0.3] and again.cases[0].inputs.upper.tolist() == [0.1, 0.7]
    assert again.cases[0].clauses[0].limits.tolist() == [0.1] and again.cases[0].clauses[0].strict.tolist() == [True]
    with pytest.raises(SpecError, match="real arithmetic"):
        write_vnnlib(problem, [(1, 2)], [(1, 2)], "1.0")


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_always_and_never_unsafe(version):
    box = InputSet(np.zeros(2), np.ones(2))
    always = Clause(np.zeros((0, 2)), np.zeros(0), np.zeros(0, bool))
    text = write_vnnlib(Problem((Case(box, (always,)),), 2), [(1, 2)], [(1, 2)], version)
    assert parse_query(text, GRAPH).problem.cases[0].clauses[0].coeffs.shape == (0, 2)
    for never in (Problem((Case(box, ()),), 2), Problem((), 2)):
        text = write_vnnlib(never, [(1, 2)], [(1, 2)], version)
        assert all(not case.clauses for case in parse_query(text, GRAPH).problem.cases)


def test_what_cannot_be_written_is_refused():
    problem = classification_problem(np.zeros(2), 0.1, 2, 0, 2)
    with pytest.raises(SpecError, match="l2 ball"):
        write_vnnlib(problem, [(1, 2)], [(1, 2)])
    plain = classification_problem(np.zeros(2), 0.1, np.inf, 0, 2)
    with pytest.raises(ShapeError, match="3 inputs"):
        write_vnnlib(plain, [(1, 3)], [(1, 2)])
    with pytest.raises(SpecError, match="version"):
        write_vnnlib(plain, [(1, 2)], [(1, 2)], "3.0")
