"""A certified radius left its deadline on the classifier's engines, whose later bounds were then hurried or skipped."""

import math

import numpy as np
import pytest

from verifier.certify.radius import RadiusSettings, certified_radius
from verifier.certify.threat import Nearness
from verifier.certify.victim import Classifier
from verifier.graph.ir import Graph
from verifier.graph.load import load_network

FC = "specs/onnx/fc.onnx"


@pytest.fixture
def graph() -> Graph:
    return load_network(FC)


@pytest.mark.parametrize("norm", [2.0, math.inf])
def test_engines_forget_the_deadline(graph, norm):
    classifier = Classifier(graph)
    x = np.full(graph.input_size, 0.5)
    certified_radius(classifier, x, nearness=Nearness(norm), settings=RadiusSettings(timeout_s=0.3))
    assert classifier.engine.deadline == math.inf and classifier.native.deadline == math.inf


def test_engines_forget_the_deadline_after_a_failure(graph):
    classifier = Classifier(graph)

    def cancel() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        certified_radius(
            classifier, np.full(graph.input_size, 0.5), settings=RadiusSettings(timeout_s=5), cancel=cancel
        )
    assert classifier.engine.deadline == math.inf and classifier.native.deadline == math.inf
