"""One ball decided by the search that answers properties, on the native engine: fast where it covers the network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from verifier.certify.victim import Classifier, Rows
from verifier.outcome import Verdict
from verifier.run import Run
from verifier.search.strategy import decide
from verifier.settings import Settings
from verifier.spec.problem import Case, InputSet, Problem
from verifier.spec.query import query_of


def decidable(classifier: Classifier, inputs: InputSet) -> bool:
    """Whether the native engine covers the network and the set, as in l-infinity and l2."""
    return classifier.native is not None and classifier.native.splits_on(inputs)


def decided(
    classifier: Classifier,
    inputs: InputSet,
    rows: Rows,
    run: Run,
    confirm: Callable[[np.ndarray], bool],
) -> Verdict:
    """UNSAT where every input of the set keeps the class, SAT where `confirm` took a point [N_in] of it.

    No attack comes first: the caller has attacked.
    Requires: `decidable`.
    """
    problem = Problem((Case(inputs, rows.clauses()),), classifier.graph.output_size)
    query = query_of(classifier.graph, problem)
    # Asked again and again, so the engine that holds the weights is the same each time.
    with classifier.until(run.deadline):
        found = decide(
            query, Settings(), run, lambda _, point: True if confirm(point) else None, prove_only=True,
            engine=classifier.native,
        )  # fmt: skip
    return found.verdict
