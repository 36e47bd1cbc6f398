""".nnet files: against the format's own recipe, and malformed ones."""

import gzip

import numpy as np
import pytest

from verifier.errors import NetworkError
from verifier.graph.evaluate import evaluate
from verifier.graph.load import load_network
from verifier.graph.nnet import import_nnet

RNG = np.random.default_rng(3)
WEIGHTS = [RNG.normal(size=(4, 3)), RNG.normal(size=(5, 4)), RNG.normal(size=(2, 5))]
BIASES = [RNG.normal(size=4), RNG.normal(size=5), RNG.normal(size=2)]
MINIMA, MAXIMA = np.array([-1.0, 0.0, -2.0]), np.array([1.0, 3.0, 2.0])
MEANS, RANGES = np.array([0.1, 1.5, -0.2, 7.5]), np.array([2.0, 3.0, 4.0, 3.3])


def text():
    def row(values):
        return ",".join(repr(float(v)) for v in values) + ",\n"

    lines = ["// a comment\n", "3,3,2,5,\n", "3,4,5,2,\n", "0,\n", row(MINIMA), row(MAXIMA), row(MEANS), row(RANGES)]
    for weight, bias in zip(WEIGHTS, BIASES, strict=True):
        lines += [row(r) for r in weight] + [row([b]) for b in bias]
    return "".join(lines)


def recipe(x):
    h = (np.clip(x, MINIMA, MAXIMA) - MEANS[:3]) / RANGES[:3]
    for index, (weight, bias) in enumerate(zip(WEIGHTS, BIASES, strict=True)):
        h = h @ weight.T + bias
        h = np.maximum(h, 0) if index < 2 else h
    return h * RANGES[3] + MEANS[3]


@pytest.mark.parametrize("name", ["net.nnet", "net.nnet.gz", "net.txt"])
def test_agrees_with_the_recipe(tmp_path, name):
    data = text().encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    graph = load_network(tmp_path / name)
    x = RNG.uniform(-4, 4, size=(200, 3))
    np.testing.assert_allclose(evaluate(graph, x), recipe(x), rtol=1e-6, atol=1e-5)
    assert graph.input_names == ("X",) and graph.output_names == ("Y",)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda s: s[: len(s) // 2], "truncated"),
        (lambda s: s[:20], "ends before"),
        (lambda s: s.replace("3,4,5,2", "3,4,5,9"), "sizes"),
        (lambda s: s.replace("0,\n", "0,\n0.5,abc,\n", 1), "numbers"),
        (lambda s: s.replace(repr(float(WEIGHTS[1][0, 0])), "nan"), "finite"),
        (lambda s: s.replace("2.0,3.0,4.0,3.3", "2.0,0.0,4.0,3.3"), "range of 0"),
        (lambda s: "hello", "hello"),
        (lambda s: "", "ends before"),
    ],
)
def test_malformed_files_get_one_clear_error(change, word):
    with pytest.raises(NetworkError, match=word):
        import_nnet(change(text()).encode())
