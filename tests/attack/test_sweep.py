"""`verifier attack --data`: the table, the files, resuming, and errors; the sanity flags."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Victim, make_linear

from verifier.attack.model import Model
from verifier.attack.registry import build
from verifier.attack.sanity import inspect
from verifier.attack.sweep import Plan, sweep
from verifier.cli.main import main
from verifier.report.attacks import WORST, render_attacks, summarise

SPECS = Path(__file__).parent.parent.parent / "specs"
NET = str(SPECS / "onnx" / "fc.onnx")


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["attack", *map(str, words)])
    return code, *capsys.readouterr()


def raised(model: Model, x: torch.Tensor, y: torch.Tensor) -> set[str]:
    return {flag.name for flag in inspect(model, x, y) if flag.raised}


def test_the_five_flags(digits: Victim) -> None:
    x, y = digits.x, digits.y

    def of(function) -> Model:  # type: ignore[no-untyped-def]
        class Victims(torch.nn.Module):
            def forward(self, v: torch.Tensor) -> torch.Tensor:
                return function(v)

        return Model.from_torch(Victims())

    net = digits.module
    assert raised(of(net), x, y) == set()
    assert "randomised" in raised(of(lambda v: net(v) + 0.01 * torch.randn(len(v), 10)), x, y)
    assert "softmax" in raised(of(lambda v: net(v).softmax(1)), x, y)
    assert "constant_logits" in raised(of(lambda v: 0 * v[:, :10] + torch.arange(10.0)), x, y)
    assert "nan" in raised(of(lambda v: net(v) * torch.nan), x, y)
    assert "vanishing_gradients" in raised(of(lambda v: 1e6 * net(v)), x, y)
    assert "vanishing_gradients" in raised(of(lambda v: net((v * 4).round() / 4)), x, y)
    labels = Model.from_callable(lambda rows: np.zeros(len(rows), np.int64), output="labels")
    assert raised(labels, x, y) == set()


def test_budgets_share_work_and_agree_with_single_runs(digits: Victim) -> None:
    x, y = digits.x[:8].numpy(), digits.y[:8].numpy()
    attacks = {"pgd": build("pgd", steps=10), "fab": build("fab", steps=10)}
    plan = Plan(attacks, float("inf"), (0.02, 0.08, 0.2), batch=3)
    records = list(sweep(Model.from_torch(digits.module), x, y, plan))
    assert len(records) == 8 * 2 * 3 and len({r.key for r in records}) == len(records)
    for r in records:
        if not r.success:
            continue
        adversarial = np.frombuffer(base64.b64decode(r.adversarial_f32), "<f4")
        assert np.abs(adversarial.astype(np.float64) - x[r.index].astype(np.float64)).max() <= r.eps
        with torch.no_grad():
            scores = digits.module(torch.tensor(adversarial[None]))[0]
        # FAB stops on the boundary itself, where one row alone may round otherwise than in its batch.
        assert r.prediction != r.label and scores[r.prediction] >= scores.max() - 1e-5
    for name in attacks:  # a success stays one at every larger budget
        for i in range(8):
            wins = [r.success for r in records if r.attack == name and r.index == i]
            assert wins == sorted(wins)


def test_the_summary_takes_the_worst_case_sample_by_sample() -> None:
    def record(index: int, attack: str, success: bool, size: float, clean: int = 0) -> dict:
        return {
            "index": index, "label": 0, "attack": attack, "norm": "linf", "eps": 0.1, "clean_prediction": clean,
            "prediction": int(success), "success": success, "distortion": {"linf": size}, "queries": 10,
            "gradients": 1, "restarts": 0, "seconds": 0.5, "target": None, "adversarial_f32": None,
        }  # fmt: skip

    records = [
        record(0, "a", True, 0.05), record(1, "a", False, 0.0),
        record(2, "a", False, 0.0), record(3, "a", True, 0.0, clean=1),
        record(0, "b", True, 0.03), record(1, "b", True, 0.09),
        record(2, "b", False, 0.0), record(3, "b", True, 0.0, clean=1),
    ]  # fmt: skip
    summary = summarise(records)
    assert summary.clean == 0.75 and summary.samples == 4
    got = {line.attack: (line.robust, line.broken, line.distortion, line.queries) for line in summary.lines}
    assert got == {"a": (0.5, 1, 0.05, 10), "b": (0.25, 2, 0.06, 10), WORST: (0.25, 2, 0.06, 20)}


def test_command_writes_table_results_and_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    words = (
        NET, "--data", "digits", "--eps", "0.05,0.2", "--attack", "fgsm,fab", "--samples", 6,
        "--out", tmp_path / "out", "--report", page,
    )  # fmt: skip
    code, out, err = call(capsys, *words)
    assert code == 0, err
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["fgsm", "fab", "worst"] * 2
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert lines[0]["sweep"]["eps"] == [0.05, 0.2] and len(lines) == 1 + 6 * 2 * 2
    html = page.read_text()
    assert html.count("data:image/png;base64") >= 3 and "http" not in html.replace("http-equiv", "")
    assert "worst case" in html and "clean accuracy" in html

    code, _, err = call(capsys, *words)
    assert code == 2 and "--resume" in err
    code, again, err = call(capsys, *words, "--resume")
    assert code == 0 and again == out, err


def test_a_cut_off_file_is_continued_without_redoing_or_losing_records(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = (NET, "--data", "digits", "--eps", "0.1", "--attack", "fgsm,bim", "--samples", 6, "--batch", 2)
    assert call(capsys, *words, "--out", tmp_path / "whole")[0] == 0
    whole = (tmp_path / "whole" / "results.jsonl").read_text().splitlines()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "results.jsonl").write_text("\n".join(whole[:6]) + "\n" + whole[6][:40])
    code, _, err = call(capsys, *words, "--out", tmp_path / "cut", "--resume")
    assert code == 0, err
    cut = [json.loads(line) for line in (tmp_path / "cut" / "results.jsonl").read_text().splitlines()]
    keys = [(r["index"], r["attack"]) for r in cut[1:]]
    assert sorted(keys) == sorted((r["index"], r["attack"]) for r in map(json.loads, whole[1:]))
    code, _, err = call(
        capsys, NET, "--data", "digits", "--eps", "0.2", "--samples", 6, "--out", tmp_path / "cut", "--resume"
    )
    assert code == 2 and "other settings" in err and "eps" in err


def test_start_names_the_first_row_of_the_data_set(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = (NET, "--data", "digits", "--eps", "0.1", "--attack", "fgsm")
    rows = {}
    for name, part in (("all", ("--samples", 6)), ("late", ("--start", 2, "--samples", 4))):
        code, _, err = call(capsys, *words, *part, "--out", tmp_path / name)
        assert code == 0, err
        found = map(json.loads, (tmp_path / name / "results.jsonl").read_text().splitlines()[1:])
        rows[name] = [(r["index"], r["label"], r["success"], r["adversarial_f32"]) for r in found]
    assert [r[0] for r in rows["late"]] == [2, 3, 4, 5] and rows["late"] == rows["all"][2:]
    code, _, err = call(capsys, *words, "--start", 3, "--samples", 3, "--out", tmp_path / "late", "--resume")
    assert code == 2 and "other settings" in err and "start" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((NET, "--data", "digits"), "--eps"),
        ((NET, "--data", "digits", "--eps", "-1"), "numbers > 0"),
        ((NET, "--data", "digits", "--eps", "0.1", "--attack", "pdg"), "no attack named 'pdg'"),
        ((NET, "--data", "digits", "--eps", "0.1", "--attack", "cw"), "does not work in norm linf"),
        ((NET, "--data", "digits", "--eps", "0.1", "--attack", "composite"), "use the library"),
        ((NET, "--data", "nowhere.npz", "--eps", "0.1"), "nowhere.npz"),
        ((NET, "--data", "iris", "--eps", "0.1"), "expected 64 features"),
        ((NET, "--data", "digits", "--eps", "0.1", "--resume"), "--out"),
        ((NET, "--data", "digits", "--eps", "0.1", "--start", "1797"), "--start: expected a row in 0..1796, got 1797"),
        ((NET, str(SPECS / "vnnlib" / "fc_large.vnnlib"), "--eps", "0.1"), "only with --data"),
        ((NET, str(SPECS / "vnnlib" / "fc_large.vnnlib"), "--attack", "pgd"), "need --data"),
        ((NET, str(SPECS / "vnnlib" / "fc_large.vnnlib"), "--data", "digits", "--eps", "0.1"), "no specification"),
    ],
)
def test_mistakes_are_one_clear_line(words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, *words)
    assert code == 2 and out == "" and message in err and len(err.strip().splitlines()) <= 2


def test_property_mode_is_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, NET, str(SPECS / "vnnlib" / "fc_large.vnnlib"), "--attack", "auto")
    assert code == 0 and out.startswith("sat\n")


def test_targeted_sweeps_aim_at_other_classes() -> None:
    linear = make_linear(3, count=6)
    plan = Plan({"apgd": build("apgd", steps=10)}, float("inf"), (0.3,), targeted=True)
    records = list(sweep(Model.from_torch(linear.module), linear.x.numpy(), linear.y.numpy(), plan))
    assert all(r.target is not None and r.target != r.label for r in records)
    assert all(r.prediction == r.target for r in records if r.success) and any(r.success for r in records)


def test_a_page_without_pictures_or_successes_is_still_a_page() -> None:
    linear = make_linear(2, count=2)
    plan = Plan({"fgsm": build("fgsm")}, float("inf"), (1e-6,))
    records = [r.to_json() for r in sweep(Model.from_torch(linear.module), linear.x.numpy(), linear.y.numpy(), plan)]
    page = render_attacks("t", records, [("nan", False, "fine")], {}, classes=("a", "b"))
    assert "Smallest changes" not in page and "fgsm" in page
