"""Damaged text ends in a VerifierError or a Query, never in another exception."""

import random

import pytest
from spec_models import declare, relu_graph, unit_box

from verifier.errors import VerifierError
from verifier.spec.load import parse_query
from verifier.spec.witness import read_witness

TEXT_1 = (
    declare(2, 1)
    + unit_box(2)
    + ("; comment\n(assert (or (and (<= X_0 0.5) (>= Y_0 X_1)) (= Y_0 (+ (* 2 X_0) -1e-3)) (and (< (- Y_0 1) 3.0))))\n")
)
TEXT_2 = (
    '(vnnlib-version <2.0>)\n(declare-network f (declare-input X float32 [1,2]) (declare-hidden H float32 [1,2] "h")\n'
    " (declare-output Y float32 [1,1]))\n(declare-network g (equal-to f) (declare-input U float32 [1,2])\n"
    " (declare-output V float32 [1,1]))\n(assert (and (<= X[0,0] 1) (>= X[0,0] -1.0) (<= X[0,1] 1.0) (>= X[0,1] -1)))\n"
    "(assert (and (== U[0,0] X[0,0]) (<= U[0,1] 1.0) (>= U[0,1] (* 2.0 X[0,1]))))\n"
    "(assert (or (!= Y[0,0] V[0,0]) (< (* H[0,0] X[0,1] 2.0) (- 1.0 Y[0,0]))))\n"
)
WITNESS = "((X_0 0.5)\n(X_1 -0.25)\n(Y_0 1e-3))\n"
SYMBOLS = '( ) and or assert X_0 Y_0 X_99 <= = 1e9999 - + * nan 0.5 ; [ ] " X[0,0] 1 \u00e9 e5 .'
PIECES = [
    *SYMBOLS.split(),
    "\n",
    "\t",
    "(assert (or",
    "(declare-const X_0 Real)",
]


def mutate(text, rng):
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(text) + 1)
        kind = rng.random()
        if kind < 0.3:
            text = text[:at]
        elif kind < 0.6:
            text = text[:at] + text[at + rng.randint(1, 12) :]
        elif kind < 0.8:
            text = text[:at] + rng.choice(PIECES) + text[at:]
        else:
            start = rng.randrange(len(text) + 1)
            text = text[:at] + text[start : start + 30] + text[at:]
    return text


@pytest.mark.parametrize(("text", "count"), [(TEXT_1, 1500), (TEXT_2, 600)])
def test_mutated_properties(text, count):
    rng = random.Random(20)
    graph = relu_graph()
    parse_query(text, graph)
    accepted = 0
    for _ in range(count):
        damaged = mutate(text, rng)
        try:
            parse_query(damaged, graph)
            accepted += 1
        except VerifierError as error:
            assert str(error) and "\n" not in str(error), damaged
        except Exception as error:
            raise AssertionError(f"{error!r} on {damaged!r}") from error
    assert 0 < accepted < count


def test_mutated_witnesses():
    rng = random.Random(21)
    query = parse_query(TEXT_1, relu_graph())
    for _ in range(1500):
        damaged = mutate(WITNESS, rng)
        try:
            read_witness(damaged, query)
        except VerifierError:
            continue
        except Exception as error:
            raise AssertionError(f"{error!r} on {damaged!r}") from error
