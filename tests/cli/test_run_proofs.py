"""`verifier run --proofs`: a file for each unsat verdict, an index, and going on where it ended."""

import csv
from pathlib import Path

import pytest

SPECS = Path(__file__).parents[2] / "specs"


@pytest.fixture
def listed(tmp_path):
    names = ("fc_small", "conv_large", "gelu_small", "conv_medium")
    lines = [f"{SPECS}/onnx/{n.split('_')[0]}.onnx,{SPECS}/vnnlib/{n}.vnnlib,20" for n in names]
    path = tmp_path / "list.csv"
    path.write_text("onnx,vnnlib,timeout\n" + "\n".join(lines) + "\n")
    return path


def index(folder):
    with (folder / "proofs.csv").open() as file:
        return list(csv.DictReader(file))


def test_unsat_verdicts_get_proofs_that_check(verifier, listed, tmp_path):
    folder, out = tmp_path / "proofs", tmp_path / "rows.csv"
    code, _, err = verifier("run", listed, "--out", out, "--proofs", folder)
    assert code == 0 and "proofs: 2 of 3 unsat verdicts" in err
    rows = index(folder)
    assert [bool(row["proof"]) for row in rows] == [True, False, True]  # the sat one is not asked
    assert "proofs cover" in rows[1]["reason"] and rows[0]["leaves"] == "1"
    for row in rows:
        if row["proof"]:
            code, told, _ = verifier("check", folder / row["proof"], row["onnx"], row["vnnlib"])
            assert code == 0 and told.startswith("checked")


def test_it_goes_on_where_it_ended(verifier, listed, tmp_path):
    folder, out = tmp_path / "proofs", tmp_path / "rows.csv"
    verifier("run", listed, "--out", out, "--proofs", folder)
    lines = (folder / "proofs.csv").read_text().splitlines(keepends=True)
    kept = folder / index(folder)[0]["proof"]
    before = kept.stat().st_mtime_ns
    (folder / "proofs.csv").write_text("".join(lines[:3]) + lines[3][:20])  # the last line was cut off
    verifier("run", listed, "--out", out, "--resume", "--proofs", folder)
    assert (folder / "proofs.csv").read_text().splitlines()[:3] == [line.rstrip() for line in lines[:3]]
    assert [bool(row["proof"]) for row in index(folder)] == [True, False, True]
    assert kept.stat().st_mtime_ns == before
    kept.unlink()  # a proof that is gone is found again
    _, _, err = verifier("run", listed, "--out", out, "--resume", "--proofs", folder)
    assert kept.exists() and "proofs: 2 of 3" in err
