"""Finds proofs: engines propose splits, slopes and multipliers, the checker's own bounds decide what is a leaf."""

from __future__ import annotations

from collections.abc import Iterator

from verifier.bounds.native_engine import NativeEngine
from verifier.outcome import Soundness
from verifier.proof.by_inputs import held, input_tree
from verifier.proof.by_neurons import NeuronProver
from verifier.proof.check import Checker
from verifier.proof.format import NeuronRows, Tree
from verifier.proof.growth import NotProved, one_leaf
from verifier.run import Run
from verifier.search.strategy import FEW_INPUTS, make_engine
from verifier.settings import Settings
from verifier.spec.groups import group_cases
from verifier.spec.query import Query


def parts(query: Query, settings: Settings, soundness: Soundness, run: Run) -> Iterator[Tree | NeuronRows]:
    """What proves a query, case after case: bounds of neurons, and trees that rest on them.

    Raises:
        NotProved: no proof was found.
        UnsupportedOperator: proofs do not cover the network.
    """
    groups = group_cases(query.problem)
    if not groups:
        return
    checker = Checker(query, soundness)
    engine = make_engine(query, groups, settings, soundness, run)
    for group in groups:
        few = int((group.upper > group.lower).any(axis=0).sum()) <= FEW_INPUTS
        for index in range(len(group.case)):
            if few:
                yield input_tree(checker, engine, group.only(index), run)
                continue
            case = int(group.case[index])
            if held(checker, case, group.lower[[index]], group.upper[[index]])[0]:
                yield one_leaf(case, checker.clauses_of(case))
            elif isinstance(engine, NativeEngine):
                yield from NeuronProver(checker, engine, group.only(index), run).parts()
            else:
                raise NotProved("splitting neurons needs the compiled engine, which does not cover this network")
