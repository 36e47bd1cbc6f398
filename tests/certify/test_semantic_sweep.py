"""`verifier certify --transform`: rows, resuming, processes, mistakes."""

import json

import numpy as np
import pytest
from semantic_nets import SPECS, samples
from threads import one_thread  # noqa: F401

from verifier.certify.ledger import read_rows

NET = str(SPECS / "fc.onnx")
ASK = ("--data", "digits", "--start", "1500", "--samples", "3", "--timeout", "20")
BOX = ("--transform", "translation=-1:1,-1:1", "--eps", "0.05,1")


def test_rows_report_resume_and_processes(tmp_path, verifier):
    code, out, _ = verifier("certify", NET, *ASK, *BOX, "--out", tmp_path / "one")
    assert code == 0 and "0.05" in out and "certified" in out
    lines = (tmp_path / "one" / "samples.jsonl").read_text().splitlines()
    rows = read_rows(tmp_path / "one" / "samples.jsonl")
    assert {row.verdict(0.05) for row in rows} >= {"certified"}
    assert {row.verdict(1.0) for row in rows} <= {"attacked", "wrong"}
    for row in rows:
        if row.upper == 1.0:
            assert set(row.detail["parameters"]) == {"translation"} and len(row.counterexample) == 64
    page = (tmp_path / "one" / "report.html").read_text()
    assert "parameter box" in page and "-1 to 1 pixels down" in page and "real arithmetic" in page
    # A killed run goes on where it stopped, here with two processes.
    (tmp_path / "one" / "samples.jsonl").write_text(lines[0] + "\n")
    code, _, _ = verifier("certify", NET, *ASK, *BOX, "--out", tmp_path / "one", "--resume", "--workers", "2")
    again = read_rows(tmp_path / "one" / "samples.jsonl")
    assert code == 0 and {r.index: r.verdict(0.05) for r in again} == {r.index: r.verdict(0.05) for r in rows}
    code, _, log = verifier(
        "certify", NET, *ASK, "--transform", "brightness=0:0.1", "--out", tmp_path / "one", "--resume"
    )
    assert code == 2 and log.count("\n") == 1


def test_the_order_counts_and_one_is_the_default_share(tmp_path, verifier):
    steps = ("--transform", "contrast=0.95:1.05", "--transform", "pixels=0.002")
    code, out, _ = verifier("certify", NET, *ASK, *steps, "--out", tmp_path / "o")
    assert code == 0 and out.splitlines()[4].split()[0] == "1"
    run = json.loads((tmp_path / "o" / "run.json").read_text())
    assert run["question"]["transforms"]["steps"] == list(steps[1::2]) and "then a change" in run["threat"]


def test_any_order(tmp_path, verifier):
    steps = ("--transform", "contrast=0.95:1.05", "--transform", "brightness=-0.02:0.02", "--any-order")
    code, _, _ = verifier("certify", NET, *ASK, *steps, "--out", tmp_path / "o")
    assert code == 0 and "in any order" in json.loads((tmp_path / "o" / "run.json").read_text())["threat"]
    assert all(row.detail["pieces"] == 2 for row in read_rows(tmp_path / "o" / "samples.jsonl") if row.lower == 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--eps"),
        (("--eps", "0.1", "--any-order"), "--any-order"),
        (("--transform", "blur=0:1"), "blur"),
        (("--transform", "hue=-1:1", "--eps", "2"), "at most 1"),
        (("--transform", "brightness=0:0.1", "--norm", "l2"), "--norm"),
        (("--transform", "brightness=0:0.1", "--mask", "3"), "--mask"),
        (("--transform", "brightness=0:0.1", "--method", "smoothing"), "--method"),
        (("--transform", "brightness=0:0.1", "--soundness", "real"), "real arithmetic"),
        (("--transform", "brightness=0:0.1", "--valid", "none"), "one range"),
        (("--transform", "hue=-1:1"), "3 channels"),
        (("--transform", "rotation=-180:180", "--transform", "translation=-9:9,-9:9"), "pieces"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(words, said, verifier):
    code, out, log = verifier("certify", NET, "--data", "digits", "--samples", "1", *words)
    assert code == 2 and said in log and log.count("\n") == 1 and out == ""


def test_rows_that_are_no_images_are_refused(tmp_path, verifier):
    image, label = samples(1)[0]
    np.savez(tmp_path / "flat.npz", x=image.reshape(1, -1), y=np.array([label]))
    code, _, log = verifier("certify", NET, "--data", tmp_path / "flat.npz", "--transform", "brightness=0:0.1")
    assert code == 2 and "[C, H, W]" in log
