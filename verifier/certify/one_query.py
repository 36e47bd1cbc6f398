"""One ball decided by the search that answers properties, on the native engine: fast where it covers the network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from verifier.bounds.native_engine import supports
from verifier.certify.victim import Classifier, Rows
from verifier.outcome import Soundness, Verdict
from verifier.run import Run
from verifier.search.strategy import decide
from verifier.settings import Settings
from verifier.spec.problem import Case, InputSet, Problem
from verifier.spec.query import query_of


def decidable(classifier: Classifier, inputs: InputSet) -> bool:
    """Whether the native engine covers the network and the set is a box, as in l-infinity."""
    return inputs.is_box and classifier.engine.device.type == "cpu" and supports(classifier.graph)


def decided(
    classifier: Classifier, inputs: InputSet, rows: Rows, run: Run, confirm: Callable[[np.ndarray], bool]
) -> Verdict:
    """UNSAT where every input of a box keeps the class, SAT where `confirm` took a point [N_in] of it.

    Requires: `decidable`.
    """
    problem = Problem((Case(inputs, rows.clauses()),), classifier.graph.output_size)
    exact = classifier.soundness is Soundness.REAL_ARITHMETIC
    settings = Settings(threads=torch.get_num_threads(), soundness="real" if exact else "float32", engine="native")
    query = query_of(classifier.graph, problem)
    return decide(query, settings, run, lambda _, point: True if confirm(point) else None).verdict
