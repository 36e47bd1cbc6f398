"""Proofs of true properties are found and checked; forged, changed and misplaced ones are rejected."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.proof.nets import asking, leaf, mixed_net, proof_of
from tests.tighten.nets import dense_net
from verifier import api
from verifier.graph.evaluate import evaluate
from verifier.outcome import Soundness, Verdict
from verifier.proof.bounder import Bounder
from verifier.proof.check import Checker, check
from verifier.proof.format import LEAF, NEURON, NeuronRows, Tree
from verifier.proof.growth import NotProved
from verifier.proof.program import Program
from verifier.proof.tree import Rejected, leaves
from verifier.settings import Settings
from verifier.spec.problem import Ball, Case, Clause, InputSet, Problem
from verifier.spec.query import query_of

SPECS = Path(__file__).parents[2] / "specs"
GRAPH = mixed_net(5)


def least_met(graph, radius, count=4000):
    rng = np.random.default_rng(0)
    x = 0.5 + radius * rng.uniform(-1, 1, size=(count, graph.input_size))
    y = evaluate(graph, x)
    return float((y[:, 0] - y[:, 1]).min())


def first_bound(graph, radius):
    bounder, ends = (
        Bounder(Program(graph, rounded=True)),
        (np.full((1, graph.input_size), 0.5 + s * radius) for s in (-1, 1)),
    )
    return float(bounder.forms(bounder.enclose(*ends), np.array([[1.0, -1.0, 0.0]]))[0, 0])


#: A limit that no input reaches, but that bounds of the whole box do not show: it takes splits.
RADIUS = 0.3
LIMIT = 0.4 * first_bound(GRAPH, RADIUS) + 0.6 * least_met(GRAPH, RADIUS)


@pytest.fixture(scope="module")
def proved():
    query = asking(GRAPH, RADIUS, LIMIT)
    proof = api.prove(GRAPH, query, Settings(timeout_s=60, threads=1))
    assert proof.leaf_count > 1, "a harder property is needed for the tests below"
    return query, proof


def test_a_proof_is_found_and_holds(proved):
    query, proof = proved
    found = api.check(proof, GRAPH, query)
    assert found.leaves == proof.leaf_count and found.margin > 0


@pytest.mark.parametrize("name", ["fc_medium", "conv_medium", "residual_medium", "batchnorm_medium", "leaky_medium"])
def test_shipped_properties(tmp_path, name):
    from verifier.proof.format import read, save

    net, spec = SPECS / "onnx" / f"{name.split('_')[0]}.onnx", SPECS / "vnnlib" / f"{name}.vnnlib"
    proof = api.prove(net, spec, Settings(timeout_s=60, threads=1))
    save(proof, tmp_path / "p")
    assert api.check(tmp_path / "p", net, spec).leaves == read(tmp_path / "p").leaf_count
    with pytest.raises(Rejected, match="other networks"):
        api.check(proof, SPECS / "onnx" / "avgpool.onnx", spec)
    with pytest.raises(Rejected, match="other specification"):
        api.check(proof, net, SPECS / "vnnlib" / f"{name.split('_')[0]}_large.vnnlib")


def test_few_inputs_are_split(tmp_path):
    graph = dense_net((2, 12, 12, 1), seed=3)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 60)] * 2), -1).reshape(-1, 2)
    limit = float(evaluate(graph, grid).min()) - 0.05
    inputs = InputSet(np.full(2, -1.0), np.full(2, 1.0))
    query = query_of(graph, Problem((Case(inputs, (Clause(np.ones((1, 1)), [limit], [False]),)),), 1))
    proof = api.prove(graph, query, Settings(timeout_s=60, threads=1))
    (tree,) = proof.trees
    assert (tree.kind == 1).any() and not (tree.kind == NEURON).any()
    assert api.check(proof, graph, query).leaves == proof.leaf_count
    moved = replace(tree, at=np.where(tree.kind == 1, -1.0, 0.0))  # all is in the right children then
    with pytest.raises(Rejected):
        api.check(replace(proof, trees=(moved,)), graph, query)


def test_a_leaf_does_not_depend_on_the_others(proved):
    """What is bounded together differs between finding and checking, and between versions."""
    query, proof = proved
    (tree,) = proof.trees
    checker, inputs = Checker(query, Soundness.IEEE_FLOAT), query.problem.cases[0].inputs
    checker.use(proof.rows[0])
    some = list(leaves(tree, inputs.lower, inputs.upper, checker.program.neuron_count))
    alone = [checker.margins(tree, [leaf])[0] for leaf in some]
    assert np.allclose(checker.margins(tree, some), alone, rtol=0, atol=1e-10)


def test_without_its_splits_it_does_not_hold(proved):
    query, proof = proved
    with pytest.raises(Rejected, match="misses the proof"):
        check(query, proof_of(leaf()))
    (tree,) = proof.trees
    first = tree.kind.tolist().index(LEAF)
    depth = first  # the first leaf is the end of the leftmost path
    without = replace(tree, multipliers=np.concatenate([np.zeros(depth, np.float32), tree.multipliers[depth:]]))
    weaker = replace(without, slopes=np.zeros_like(tree.slopes))
    with pytest.raises(Rejected, match="misses the proof"):
        check(query, replace(proof, trees=(weaker,), rows=()))


def test_a_tighter_limit_does_not_hold(proved):
    """The same proof does not prove more than there is: at a limit that is met it is rejected."""
    _, proof = proved
    met = asking(GRAPH, RADIUS, least_met(GRAPH, RADIUS))
    with pytest.raises(Rejected, match="misses the proof"):
        check(met, proof)


def test_another_network_does_not_hold(proved):
    _, proof = proved
    other = mixed_net(3)
    assert least_met(other, RADIUS) < LIMIT
    with pytest.raises(Rejected, match="misses the proof"):
        check(asking(other, RADIUS, LIMIT), proof)


def test_every_clause_and_case_must_be_proved(proved):
    query, proof = proved
    two = asking(GRAPH, RADIUS, LIMIT, rows=((1.0, -1.0, 0.0), (0.0, 1.0, 0.0)))
    with pytest.raises(Rejected, match="nothing is said of clause 1"):
        check(two, proof)
    case = query.problem.cases[0]
    twice = query_of(GRAPH, Problem((case, case), 3))
    with pytest.raises(Rejected, match="case 1: nothing is said"):
        check(twice, proof)
    with pytest.raises(Rejected, match="nothing is said"):
        check(query, proof_of())
    empty = replace(case.inputs, lower=case.inputs.upper + 1.0)
    assert check(query_of(GRAPH, Problem((Case(empty, case.clauses),), 3)), proof_of()).leaves == 0


WRONG = {
    "case 7 of 1": lambda p: replace(p, trees=(*p.trees, leaf(case=7))),
    "names clauses": lambda p: replace(p, trees=(*p.trees, leaf(clauses=(0, 9)))),
    "names clauses ": lambda p: replace(p, trees=(*p.trees, leaf(clauses=()))),
    "do not fit": lambda p: tree_with(p, free=p.trees[0].free[:-1]),
    "do not fit ": lambda p: tree_with(p, free=np.zeros_like(p.trees[0].free)),
    "are named": lambda p: tree_with(p, free=p.trees[0].free + 1000),
    "asks for row": lambda p: tree_with(p, leaf=p.trees[0].leaf + 1),
    "an estimate": lambda p: replace(p, soundness=Soundness.HEURISTIC),
    "do not fit together": lambda p: replace(p, rows=p.rows * 2),
    "do not fit together ": lambda p: rows_with(p, slopes=p.rows[0].slopes[:, :-1]),
    "from below or above": lambda p: rows_with(p, side=p.rows[0].side * 0),
    "are named ": lambda p: rows_with(p, neuron=p.rows[0].neuron - 1000),
}


def tree_with(proof, **changes):
    return replace(proof, trees=(replace(proof.trees[0], **changes),))


def rows_with(proof, **changes):
    return replace(proof, rows=(replace(proof.rows[0], **changes),))


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_is_rejected(proved, message):
    query, proof = proved
    with pytest.raises(Rejected, match=message.strip()):
        check(query, WRONG[message](proof))


def test_multipliers_that_are_no_numbers_count_as_zero(proved):
    query, proof = proved
    for value in (np.nan, np.inf, -1.0):
        changed = tree_with(proof, multipliers=np.full_like(proof.trees[0].multipliers, value))
        try:
            assert check(query, changed).margin > 0
        except Rejected as reason:
            assert "misses the proof" in str(reason)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_no_forged_proof_of_a_false_property_is_accepted(seed):
    """Random trees, slopes, multipliers and bounds of neurons never prove what an input refutes."""
    rng = np.random.default_rng(seed)
    query = asking(GRAPH, RADIUS, least_met(GRAPH, RADIUS, 300))
    kind, number, open_count = [], [], 1
    while open_count:
        split = len(kind) < 30 and rng.random() < 0.6
        kind.append(NEURON if split else LEAF)
        number.append(int(rng.integers(72)) if split else 0)
        open_count += 1 if split else -1
    leaves = kind.count(LEAF)
    tree = Tree(
        0, np.zeros(1, np.int32), np.array(kind, np.uint8), np.array(number, np.int32), np.zeros(len(kind)),
        np.arange(72, dtype=np.int32), rng.integers(0, 256, (leaves, 72), dtype=np.uint8),
        np.arange(leaves, dtype=np.int32), (rng.random(1000) * 10 ** rng.uniform(-3, 3)).astype(np.float32),
    )  # fmt: skip
    need = above(tree)
    tree = replace(tree, multipliers=tree.multipliers[:need])
    rows = NeuronRows(
        0, rng.integers(0, 72, 30, dtype=np.int32), rng.choice([-1, 1], 30).astype(np.int8),
        np.arange(72, dtype=np.int32), rng.integers(0, 256, (30, 72), dtype=np.uint8),
    )  # fmt: skip
    with pytest.raises(Rejected):
        check(query, proof_of(tree, rows=(rows,)))


def above(tree):
    """Splits above leaves, all leaves together."""
    waiting, total = [0], 0
    for kind in tree.kind.tolist():
        depth = waiting.pop()
        if kind == LEAF:
            total += depth
        else:
            waiting += [depth + 1, depth + 1]
    return total


def test_a_false_property_is_not_proved():
    query = asking(GRAPH, RADIUS, least_met(GRAPH, RADIUS, 300))
    with pytest.raises(NotProved):
        api.prove(GRAPH, query, Settings(timeout_s=2, threads=1))


def test_verdicts_and_proofs_agree():
    """Over properties around what is attained: what is proved is not refuted, and what `verify` proves has a proof."""
    least = least_met(GRAPH, RADIUS)
    for limit in (LIMIT - 1.0, LIMIT, least + 0.05):
        query = asking(GRAPH, RADIUS, limit)
        verdict = api.verify(GRAPH, query, Settings(timeout_s=30, threads=1)).verdict
        if verdict is Verdict.UNSAT:
            assert check(query, api.prove(GRAPH, query, Settings(timeout_s=60, threads=1))).margin > 0
        else:
            assert verdict is Verdict.SAT


def test_strict_rows_may_be_met_at_the_limit():
    """y < 0 is refuted by y >= 0 exactly, y <= 0 is not."""
    from verifier.graph.ir import GraphBuilder

    builder = GraphBuilder()
    builder.add("Input", (), (1, 2), "x")
    builder.add("Relu", ("x",), (1, 2), "y")
    graph = builder.finish(("x",), ("y",))
    inputs = InputSet(np.zeros(2), np.ones(2))
    for strict in (True, False):
        clause = Clause(np.array([[1.0, 0.0]]), np.array([-0.5]), np.array([strict]))
        assert check(query_of(graph, Problem((Case(inputs, (clause,)),), 2)), proof_of(leaf())).margin > 0
        met = replace(clause, limits=np.array([0.5]))
        with pytest.raises(Rejected):
            check(query_of(graph, Problem((Case(inputs, (met,)),), 2)), proof_of(leaf()))


BOX = asking(GRAPH, RADIUS, LIMIT).problem.cases[0]
POINTS = 0.5 + RADIUS * np.random.default_rng(0).uniform(-1, 1, size=(20_000, 16))
VALUES = evaluate(GRAPH, POINTS) @ np.array([1.0, -1.0, 0.0])


def cut(kind):
    """The box without the inputs where the row is least: by a half-space, or by a ball around the largest."""
    away = POINTS[VALUES.argmin()] - 0.5
    if kind == "half-space":
        return replace(BOX.inputs, row_coeffs=away[None], row_limits=np.array([away.sum() * 0.5 - 0.6 * away @ away]))
    return replace(BOX.inputs, ball=Ball(POINTS[VALUES.argmax()], 0.4, 2.0 if kind == "l2" else 1.0))


def asked(*cases):
    """Whether the row falls to a limit, over each (input set, limit)."""
    (clause,) = BOX.clauses
    made = tuple(Case(inputs, (replace(clause, limits=np.array([limit])),)) for inputs, limit in cases)
    return query_of(GRAPH, Problem(made, 3))


@pytest.mark.parametrize("kind", ["half-space", "l2", "l1"])
def test_sets_that_are_more_than_a_box(kind):
    """A proof over the cut set holds there; over the whole box, where an input reaches the limit, it does not."""
    limit = float(VALUES.min())
    query = asked((cut(kind), limit))
    proof = api.prove(GRAPH, query, Settings(timeout_s=60, threads=1))
    assert check(query, proof).margin > 0
    with pytest.raises(Rejected, match="misses the proof"):
        check(asked((BOX.inputs, limit)), proof)


def test_cases_with_the_same_box_keep_their_own_sets():
    """What is known of a case's box is not used for another case that shares it."""
    limit = first_bound(GRAPH, RADIUS) + 0.05
    assert check(asked((cut("half-space"), limit)), proof_of(leaf())).margin > 0
    with pytest.raises(Rejected, match="case 1"):
        check(asked((cut("half-space"), limit), (BOX.inputs, limit)), proof_of(leaf(), leaf(case=1)))


def test_the_checker_stands_alone():
    """Checking imports no engine, no kernels, no search and no torch."""
    code = (
        "import sys, verifier.api, verifier.proof.check, verifier.proof.format\n"
        "print([m for m in sys.modules if m.split('.')[0] == 'torch' or m.startswith(('verifier.bounds', "
        "'verifier.kernels', 'verifier.tighten', 'verifier.ops', 'highspy'))])"
    )
    alone = code.replace("verifier.api, ", "")
    done = subprocess.run([sys.executable, "-c", alone], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
