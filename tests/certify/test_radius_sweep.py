"""Sweeps end to end: rows at once, resume after a kill, several processes, bad data, reports."""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from verifier.certify.ledger import Ledger, read_rows
from verifier.certify.placing import arrange
from verifier.certify.rows import Row
from verifier.certify.summary import shares_at, summarise
from verifier.cli.main import main
from verifier.errors import ShapeError, SpecError

NET = str(Path(__file__).parent.parent.parent / "specs" / "onnx" / "fc.onnx")
QUICK = ("--data", "digits", "--start", "1500", "--samples", "3", "--effort", "bounds", "--timeout", "60")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "out"
    assert main(["radius", NET, *QUICK, "--out", str(out)]) == 0
    return out


def test_rows_and_report_hold_the_same_facts(folder):
    rows = read_rows(folder / "samples.jsonl")
    found = json.loads((folder / "report.json").read_text())
    table = (folder / "samples.csv").read_text().splitlines()
    assert len(rows) == len(found["samples"]) == len(table) - 1 == 3
    assert [Row.from_json(v) for v in found["samples"]] == sorted(rows, key=lambda r: r.index)
    assert all(0 <= row.lower <= row.upper for row in rows)
    page = (folder / "report.html").read_text()
    assert found["model"]["sha256"] in page and "counterexample" in page
    assert not re.search(r"(src|href)=\"https?:", page), "the page must need no network"
    for row in rows:
        if row.right:
            assert f"{row.lower:.5g}" in page and f"{row.upper:.5g}" in page


def test_resume_after_a_kill_keeps_the_rows_and_does_the_rest(folder, tmp_path, verifier):
    out = tmp_path / "out"
    shutil.copytree(folder, out)
    lines = (out / "samples.jsonl").read_text().splitlines()
    (out / "samples.jsonl").write_text(lines[0] + "\n" + lines[1][: len(lines[1]) // 2])
    code, _, log = verifier("radius", NET, *QUICK, "--out", out, "--resume")
    assert code == 0
    again = (out / "samples.jsonl").read_text().splitlines()
    assert again[0] == lines[0] and len(again) == 3
    assert {json.loads(line)["index"] for line in again} == {json.loads(line)["index"] for line in lines}
    assert f"sample {json.loads(lines[0])['index']} " not in log
    assert len((out / "samples.csv").read_text().splitlines()) == 4


def test_another_question_may_not_go_on_with_the_rows(folder, verifier):
    code, _, log = verifier("radius", NET, *QUICK, "--out", folder, "--resume", "--norm", "l2")
    assert code == 2 and "norm" in log and log.count("\n") == 1
    code, _, log = verifier("radius", NET, *QUICK, "--out", folder)
    assert code == 2 and "--resume" in log


def test_certify_with_two_processes_agrees_with_one(tmp_path, verifier):
    args = ("certify", NET, *QUICK, "--eps", "0.001,0.5", "--norm", "linf")
    one = verifier(*args, "--out", tmp_path / "one")
    two = verifier(*args, "--out", tmp_path / "two", "--workers", "2")
    assert one[0] == two[0] == 0
    verdicts = [
        {row.index: (row.verdict(0.001), row.verdict(0.5)) for row in read_rows(tmp_path / name / "samples.jsonl")}
        for name in ("one", "two")
    ]
    assert verdicts[0] == verdicts[1]
    assert {v[1] for v in verdicts[0].values()} <= {"attacked", "wrong"}
    assert "certified" in {v[0] for v in verdicts[0].values()}
    assert "0.001" in one[1] and "certified" in one[1]


def test_smoothing_states_its_confidence(tmp_path, verifier):
    code, out, _ = verifier(
        "radius", NET, "--data", "digits", "--samples", "2", "--norm", "l2", "--method", "smoothing",
        "--sigma", "0.25", "--n", "1000", "--alpha", "0.01", "--out", tmp_path / "s",
    )  # fmt: skip
    assert code == 0 and "confidence 99 %" in out
    assert "confidence 99 %" in (tmp_path / "s" / "report.html").read_text()
    for row in read_rows(tmp_path / "s" / "samples.jsonl"):
        assert row.status in ("smoothed", "wrong", "abstained") and row.upper == math.inf
        # With p <= 1 - 0.01^(1/1000) nothing above sigma * Phi^-1 of it can be certified.
        assert row.lower <= 0.25 * 2.61


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "nothing.npz"), "nothing.npz"),
        (("--data", "iris"), "64 numbers"),
        (("--data", "digits", "--norm", "l3"), "l0, l1, l2 or linf"),
        (("--data", "digits", "--norm", "l0", "--valid", "none"), "valid range"),
        (("--data", "digits", "--mask", "3-99"), "0..63"),
        (("--data", "digits", "--valid", "0"), "2 numbers"),
        (("--data", "digits", "--start", "5000"), "0..1796"),
        (("--data", "digits", "--gap", "2"), "gap"),
        (("--data", "digits", "--method", "smoothing"), "l2 radii"),
        (("--data", "digits", "--target", "12"), "no class"),
        (("--data", "digits", "--resume"), "--out"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(words, said, verifier):
    code, out, log = verifier("radius", NET, "--samples", "1", *words)
    assert code == 2 and said in log and log.count("\n") == 1 and out == ""


def test_damaged_data_files_are_named(tmp_path, verifier):
    for name, content in (
        ("a.npz", b"PK\x03\x04 not a zip"),
        ("b.csv", b"1,2,\n"),
        ("c.bin", b"\0" * 100),
        ("d-idx3-ubyte", b"\0\0\x08\x03"),
        ("e.txt", b"1 2 3"),
    ):
        (tmp_path / name).write_bytes(content)
        code, _, log = verifier("radius", NET, "--data", tmp_path / name)
        assert code == 2 and name in log and log.count("\n") == 1, log
    np.savez(tmp_path / "nan.npz", x=np.full((2, 1, 8, 8), np.nan), y=np.array([0, 1]))
    code, _, log = verifier("radius", NET, "--data", tmp_path / "nan.npz")
    assert code == 2 and "NaN" in log
    np.savez(tmp_path / "classes.npz", x=np.zeros((2, 1, 8, 8)), y=np.array([0, 11]))
    code, _, log = verifier("radius", NET, "--data", tmp_path / "classes.npz")
    assert code == 2 and "labels go up to 11" in log


def test_channels_move_last_where_the_network_has_them_last():
    x = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    moved = arrange(x, [(1, 4, 5, 3)])
    assert np.array_equal(moved[0].reshape(4, 5, 3), x[0].transpose(1, 2, 0))
    assert np.array_equal(arrange(x, [(1, 3, 4, 5)]), x.reshape(2, -1))
    with pytest.raises(ShapeError, match=r"60 numbers"):
        arrange(x, [(1, 10)])


def test_rows_survive_json_and_count_once(tmp_path):
    rows = [
        Row(0, 1, 1, 0.5, 0.6, "bracketed", reason="gap_reached", counterexample=(0.25, math.pi)),
        Row(1, 1, 2, 0.0, 0.0, "wrong"),
        Row(2, 0, 0, math.inf, math.inf, "robust", reason="whole_range"),
        Row(3, 0, -1, math.nan, math.nan, "error", error="no"),
    ]
    back = [Row.from_json(json.loads(json.dumps(row.to_json()))) for row in rows]
    assert back[:3] == rows[:3] and math.isnan(back[3].lower)
    for radius, expected in (
        (0.5, (0.5, 0.0, 0.25, 0.25)),
        (0.55, (0.25, 0.0, 0.5, 0.25)),
        (0.6, (0.25, 0.25, 0.25, 0.25)),
    ):
        s = shares_at(rows, radius)
        assert (s.certified, s.attacked, s.open, s.wrong) == expected
    s = summarise(rows)
    assert (s.clean, s.errors, s.finished, s.median_lower) == (0.5, 1, 1.0, 0.5)
    setup = {"question": {"norm": "linf"}}
    with Ledger(tmp_path / "d", setup, resume=False) as ledger:
        ledger.add(rows[0])
    (tmp_path / "d" / "samples.jsonl").write_text("{}\n" + json.dumps(rows[0].to_json()) + "\n")
    with pytest.raises(SpecError, match=r"samples\.jsonl:1"):
        Ledger(tmp_path / "d", setup, resume=True)
