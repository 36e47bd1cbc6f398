"""`verifier verify --proof` and `verifier check`."""

import json
from pathlib import Path

import pytest

SPECS = Path(__file__).parents[2] / "specs"


def files(name):
    return SPECS / "onnx" / f"{name.split('_')[0]}.onnx", SPECS / "vnnlib" / f"{name}.vnnlib"


def test_a_proof_is_written_and_checked(verifier, tmp_path):
    path = tmp_path / "fc.proof"
    code, out, err = verifier("verify", *files("fc_medium"), "--proof", path, "--json", tmp_path / "fc.json")
    assert (code, out) == (0, "unsat\n") and "proof: 1 leaf, " in err
    report = json.loads((tmp_path / "fc.json").read_text())
    assert report["verdict"] == "unsat" and report["proof"]["leaves"] == 1
    assert report["proof"]["bytes"] == path.stat().st_size
    code, out, err = verifier("check", path, *files("fc_medium"))
    assert code == 0 and out.startswith("checked\n1 leaf, smallest margin") and "floating-point" in out and not err


def test_a_proof_of_something_else_is_rejected(verifier, tmp_path):
    path = tmp_path / "fc.proof"
    verifier("verify", *files("fc_small"), "--proof", path)
    code, out, _ = verifier("check", path, *files("fc_medium"))
    assert code == 1 and out.startswith("rejected\n") and "SHA-256" in out


def test_no_proof_of_a_refuted_property(verifier, tmp_path):
    code, out, _ = verifier("verify", *files("conv_large"), "--proof", tmp_path / "p")
    assert code == 0 and out.startswith("sat\n") and not (tmp_path / "p").exists()


def test_what_proofs_do_not_cover_is_said(verifier, tmp_path):
    code, out, err = verifier("verify", *files("gelu_small"), "--proof", tmp_path / "p")
    assert (code, out) == (0, "unsat\n") and "no proof was written" in err and "proofs cover" in err
    assert not (tmp_path / "p").exists()


def test_a_proof_in_real_arithmetic_says_so(verifier, tmp_path):
    path = tmp_path / "p"
    verifier("verify", *files("fc_small"), "--proof", path, "--soundness", "real")
    code, out, _ = verifier("check", path, *files("fc_small"))
    assert code == 0 and "exact real arithmetic" in out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["README.md", *files("fc_small")], "expected a proof"),
        (["nowhere.proof", *files("fc_small")], "nowhere.proof"),
        ([*files("fc_small")], "expected PROOF NET SPEC"),
    ],
)
def test_bad_input_is_explained(verifier, words, part, monkeypatch):
    monkeypatch.chdir(SPECS.parent)
    code, out, err = verifier("check", *words)
    assert code == 2 and not out and part in err


def test_a_proof_cannot_be_written_into_nowhere(verifier, tmp_path):
    code, _, err = verifier("verify", *files("fc_small"), "--proof", tmp_path / "no" / "p")
    assert code == 2 and "cannot write" in err
