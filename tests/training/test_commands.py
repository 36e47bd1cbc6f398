"""The commands of the training phase, run in this process as a user would, errors included."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from verifier.cli.main import main
from verifier.data.packaged import digits
from verifier.training.architecture import load_model
from verifier.training.poisoned import load_poisoned


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a backdoored data set and model, made by the command itself."""
    place = tmp_path_factory.mktemp("commands")
    code = main([
        "backdoor", "digits", "--attack", "badnets", "--label", "3", "--rate", "0.08", "--out", str(place / "bd"),
        "--architecture", "mlp", "--width", "64", "--epochs", "15", "--html", str(place / "bd.html"), "--json",
        str(place / "bd.json"), "--quiet",
    ])  # fmt: skip
    assert code == 0
    return place


def check_page(path):
    """Self-contained: no script, no address outside the page; every picture is inside it."""
    text = path.read_text()
    assert "<script" not in text and not re.search(r'(src|href)="(?!data:)', text)
    return text


def test_backdoor_writes_what_it_measured(folder, capsys):
    attacked = load_poisoned(folder / "bd")
    record = json.loads((folder / "bd.json").read_text())
    assert attacked.target == 3 and record["budget"]["rows"] == len(attacked.touched) == round(0.08 * 1168)
    assert record["measurement"]["attack_success"]["mean"] > 0.8
    assert load_model(folder / "bd" / "model.pt").architecture.width == 64
    page = check_page(folder / "bd.html")
    assert "with the trigger" in page and page.count("data:image/png") >= 8
    assert (folder / "bd" / "trusted.npz").exists() and (folder / "bd" / "trials.jsonl").exists()


def test_scan_finds_the_target_and_proves_about_it(folder, capsys):
    code = main([
        "scan", str(folder / "bd" / "model.pt"), "--data", str(folder / "bd" / "trusted.npz"), "--detectors",
        "neural-cleanse", "--prove", "1", "--rows", "1", "--timeout", "5", "--label", "7", "--json",
        str(folder / "s.json"), "--html", str(folder / "s.html"), "--out", str(folder / "rev.npz"), "--quiet",
    ])  # fmt: skip
    out = capsys.readouterr().out
    record = json.loads((folder / "s.json").read_text())
    assert code == 0 and "class 3" in out and record["target"] == 3 and "Known mistakes" in out
    assert "attack success at most" in out and record["proved"][0]["shape"] == "1x1 patch at any place"
    assert set(record["proved"][0]["verdicts"]) <= {"unsat", "sat", "unknown", "timeout"}
    assert "reversed trigger" in check_page(folder / "s.html") and (folder / "rev.npz").exists()


def test_scan_data_finds_the_rows(folder, capsys):
    code = main([
        "scan-data", str(folder / "bd" / "data.npz"), "--model", str(folder / "bd" / "model.pt"), "--methods",
        "spectral", "clustering", "--truth", str(folder / "bd" / "poison.json"), "--out", str(folder / "kept.npz"),
        "--json", str(folder / "r.json"), "--html", str(folder / "r.html"), "--quiet",
    ])  # fmt: skip
    record = json.loads((folder / "r.json").read_text())
    assert code == 0 and "poisoned rows found" in capsys.readouterr().out
    assert min(v["found"] for v in record["truth"].values()) >= 0.9
    with np.load(folder / "kept.npz") as kept:
        assert len(kept["x"]) == 1168 - len(record["rows"])
    check_page(folder / "r.html")


def test_repair_removes_the_trigger_and_writes_a_model(folder, capsys):
    model, fixed = str(folder / "bd" / "model.pt"), folder / "fixed.pt"
    code = main([
        "repair", model, "--data", str(folder / "bd" / "trusted.npz"), "--test", str(folder / "bd" / "test.npz"),
        "--method", "unlearn", "--trigger", str(folder / "bd" / "trigger.npz"), "--label", "3", "--use-trigger",
        "--out", str(fixed), "--json", str(folder / "f.json"), "--html", str(folder / "f.html"), "--quiet",
    ])  # fmt: skip
    rows = json.loads((folder / "f.json").read_text())["rows"]
    assert code == 0 and rows[0]["success"] > 0.8 and rows[1]["success"] < 0.1
    assert load_model(fixed).architecture.name == "mlp" and "unlearn" in capsys.readouterr().out
    check_page(folder / "f.html")


def test_poison_counts_its_victims(tmp_path, capsys):
    code = main(["poison", "digits", "--attack", "random-flips", "--budget", "0.1", "--trials", "0", "--out",
                 str(tmp_path / "p"), "--html", str(tmp_path / "p.html")])  # fmt: skip
    attacked = load_poisoned(tmp_path / "p")
    assert code == 0 and attacked.budget.relabelled == 117 and "117 of 1168 rows" in capsys.readouterr().out
    assert not (tmp_path / "p" / "model.pt").exists()
    check_page(tmp_path / "p.html")


def test_federate_reads_toml_and_resumes(tmp_path, capsys):
    config = tmp_path / "attack.toml"
    text = 'data = "iris"\n[federation]\nclients = 5\nsampled = 3\nrounds = %d\n[local]\narchitecture = "linear"\n'
    config.write_text(text % 2)
    assert main(["federate", str(config), "--out", str(tmp_path / "o"), "--quiet"]) == 0
    config.write_text(text % 4)
    assert (
        main(["federate", str(config), "--out", str(tmp_path / "o"), "--quiet", "--html", str(tmp_path / "f.html")])
        == 0
    )
    assert len((tmp_path / "o" / "rounds.jsonl").read_text().splitlines()) == 4
    assert "accuracy" in capsys.readouterr().out and "<svg" in check_page(tmp_path / "f.html")


@pytest.mark.parametrize("method, extra", [
    ("dpa", ["--parts", "8", "--epochs", "2"]),
    ("rab", ["--models", "6", "--epochs", "2", "--sigma", "0.3"]),
    ("nearest", ["--rows", "4", "--sigma", "0.5"]),
    ("sanitise", ["--poison", "0.02"]),
])  # fmt: skip
def test_certificates_by_command(method, extra, tmp_path, capsys):
    data = "breast_cancer" if method == "sanitise" else "iris"
    page = tmp_path / "c.html"
    args = [
        "certify-training",
        data,
        "--method",
        method,
        *extra,
        "--json",
        str(tmp_path / "c.json"),
        "--html",
        str(page),
    ]
    assert main([*args, "--quiet"]) == 0
    assert json.loads((tmp_path / "c.json").read_text()) and "<svg" in check_page(page)
    assert ("loss at most" if method == "sanitise" else "certified accuracy") in capsys.readouterr().out


MISTAKES = [
    (["poison", "nowhere", "--attack", "random-flips", "--out", "x"], "packaged data set"),
    (["poison", "digits", "--attack", "gradient-matching", "--out", "x", "--epochs", "1"], "--target ROW"),
    (["poison", "digits", "--attack", "bullseye", "--target", "9999", "--out", "x"], "test part"),
    (["poison", "digits", "--attack", "random-flips", "--budget", "2", "--out", "x"], "fraction"),
    (["poison", "digits", "--attack", "targeted-flips", "--out", "x"], "--source"),
    (["poison", "digits", "--attack", "shift-features", "--out", "x"], "--radius"),
    (["backdoor", "digits", "--label", "eleven", "--out", "x"], "no class 'eleven'"),
    (["backdoor", "digits", "--label", "3", "--trigger", "none.png", "--out", "x"], "readable picture"),
    (["backdoor", "breast_cancer", "--label", "1", "--out", "x"], "--features"),
    (["backdoor", "breast_cancer", "--label", "1", "--features", "a=b", "--out", "x"], "COLUMN=VALUE"),
    (["backdoor", "sentences", "--label", "1", "--words", "xyzzy", "--out", "x"], "vocabulary"),
    (["backdoor", "digits", "--label", "3", "--rate", "0.99", "--out", "x"], "lower it"),
    (["federate", "missing.toml"], "cannot be read"),
    (["scan", "missing.pt", "--data", "digits"], "missing.pt"),
    (["scan-data", "digits", "--methods", "strip"], "--trusted"),
    (["repair", "missing.pt", "--data", "digits"], "missing.pt"),
    (["certify-training", "digits", "--method", "sanitise"], "two classes"),
    (["certify-training", "digits", "--method", "dpa", "--json", "no/such/folder/x.json"], "no folder"),
]


@pytest.mark.parametrize("argv, says", MISTAKES, ids=lambda v: "-".join(v[:4]) if isinstance(v, list) else "")
def test_mistakes_are_one_line_and_exit_2(argv, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if "%" not in line[:60] or says in line]
    assert says in err[-1] and "Traceback" not in "".join(err)


@pytest.mark.parametrize("text, says", [
    ("data = ", "cannot be read"),
    ("[federation]\nclients = 3", "name the data set"),
    ('data = "iris"\nsurprise = 1', "unknown surprise"),
    ('data = "iris"\n[federation]\naggregator = "mean"', "no aggregator"),
    ('data = "iris"\n[federation]\nclients = "many"', "expected a int"),
    ('data = "iris"\n[attack]\nkind = "distributed"', "name the class"),
    ('data = "iris"\n[attack]\nkind = "magic"\nlabel = "0"', "expected one of"),
])  # fmt: skip
def test_configurations_that_mean_nothing(text, says, tmp_path, capsys):
    (tmp_path / "c.toml").write_text(text)
    assert main(["federate", str(tmp_path / "c.toml"), "--quiet"]) == 2
    assert says in capsys.readouterr().err


def test_a_picture_becomes_a_trigger(tmp_path):
    from PIL import Image

    from verifier.cli.backdoor import picture_trigger

    pixels = np.array([[[255, 255], [0, 255]], [[255, 0], [128, 255]]], dtype=np.uint8)  # value, opacity
    Image.fromarray(pixels, "LA").save(tmp_path / "patch.png")
    patch = picture_trigger(str(tmp_path / "patch.png"), digits(), "top-left", None)
    assert patch.mask[0, :2, :2].tolist() == [[1, 1], [0, 1]] and patch.mask.sum() == 3
    assert patch.pattern[0, 0, 0] == 1 and patch.pattern[0, 0, 1] == 0
    faint = picture_trigger(str(tmp_path / "patch.png"), digits(), "bottom-right", 0.25)
    assert faint.mask[0, 6:, 6:].tolist() == [[0.25, 0.25], [0, 0.25]]


def test_scan_reads_onnx(capsys):
    code = main(["scan", "specs/onnx/fc.onnx", "--data", "digits", "--detectors", "neural-cleanse", "--quiet"])
    assert code == 0 and "verdict" in capsys.readouterr().out
