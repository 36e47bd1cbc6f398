"""The Report: plain data that survives JSON."""

import json

import numpy as np
import pytest

from verifier.outcome import Soundness, StopReason, Verdict
from verifier.report.model import Report, Witness


def report(**changes):
    fields = {"verdict": Verdict.UNSAT, "soundness": Soundness.IEEE_FLOAT, "reason": StopReason.PROVED_BY_BOUNDS}
    return Report(**{**fields, **changes})


def test_json_is_valid_and_complete():
    witness = Witness(np.array([0.1, 2], np.float32), np.array([1.5], np.float32), "((X_0 0.1)\n")
    full = report(
        verdict=Verdict.SAT, reason=StopReason.COUNTEREXAMPLE, witness=witness, bound_before=-np.inf, bound_after=0.5,
        seconds={"load": 0.25}, timeline=((0.1, "load", "done"),), network={"nodes": 3}, notes=("a",),
    )  # fmt: skip
    content = json.loads(json.dumps(full.to_json(), allow_nan=False))
    assert content["verdict"] == "sat" and content["reason"]["code"] == "counterexample"
    assert content["bound"] == {"before": "-inf", "after": 0.5}
    assert np.array_equal(np.array(content["witness"]["x"], np.float32), witness.x)
    assert content["timeline"] == [{"seconds": 0.1, "stage": "load", "text": "done"}]
    assert content["soundness"]["level"] == "ieee_float" and content["seconds"] == {"load": 0.25}


def test_sat_and_witness_belong_together():
    with pytest.raises(ValueError, match="witness"):
        report(verdict=Verdict.SAT)
    with pytest.raises(ValueError, match="witness"):
        report(witness=Witness(np.zeros(1), np.zeros(1), ""))


def test_a_report_does_not_change():
    seconds = {"load": 1.0}
    made = report(seconds=seconds)
    seconds["load"] = 2.0
    assert made.seconds["load"] == 1.0
    with pytest.raises(TypeError):
        made.seconds["load"] = 3.0
