"""`verifier bounds` and `verifier range` as a user runs them: tables, files, and one-line errors."""

import json
from pathlib import Path

import numpy as np
import pytest

from verifier.cli.main import main
from verifier.graph.evaluate import evaluate
from verifier.graph.load import load_network

SPECS = Path(__file__).parents[2] / "specs"
NET, SPEC = str(SPECS / "onnx" / "fc.onnx"), str(SPECS / "vnnlib" / "fc_small.vnnlib")


def test_bounds_table_json_and_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    json_path, plot = tmp_path / "b.json", tmp_path / "b.png"
    files = ["--json", str(json_path), "--plot", str(plot)]
    assert main(["bounds", NET, SPEC, "--method", "ibp,crown,sdp-crown", *files]) == 0
    out = capsys.readouterr().out
    assert "crown" in out and "sdp-crown    no bound" in out and "attack" in out
    content = json.loads(json_path.read_text())
    ibp, crown = (np.array(content["methods"][m]["margins"], dtype=float) for m in ("ibp", "crown"))
    assert np.all(ibp <= crown) and np.all(crown <= np.array(content["attack"], dtype=float))
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_bounds_on_an_l2_ball(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.full(64, 0.4))
    assert main(["bounds", NET, f"{tmp_path / 'x.npy'}:0.05", "--norm", "l2", "--method", "crown,sdp-crown"]) == 0
    assert "sdp-crown" in capsys.readouterr().out


def test_range_encloses_samples(tmp_path, capsys):
    lower, upper = np.full(64, 0.3), np.full(64, 0.35)
    np.savez(tmp_path / "box.npz", lower=lower, upper=upper)
    found = tmp_path / "r.json"
    assert main(["range", NET, "--input", str(tmp_path / "box.npz"), "--json", str(found)]) == 0
    assert "attained" in capsys.readouterr().out
    (one,) = json.loads(found.read_text())["sets"]
    values = evaluate(load_network(NET), np.random.default_rng(0).uniform(lower, upper, size=(500, 64)))
    assert np.all(np.array(one["lower"]) <= values.min(axis=0)) and np.all(values.max(axis=0) <= np.array(one["upper"]))
    assert np.all(np.array(one["lower"]) <= np.array(one["attained_low"]))


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys):
    np.save(tmp_path / "short.npy", np.zeros(3))
    np.savez(tmp_path / "odd.npz", low=np.zeros(64))
    np.savez(tmp_path / "crossed.npz", lower=np.ones(64), upper=np.zeros(64))
    cases = [
        (["bounds", NET, SPEC, "--method", "crwn"], "did you mean 'crown'"),
        (["bounds", NET, SPEC, "--method", "sdp-crown"], "l2 ball"),
        (["bounds", NET, SPEC, "--norm", "l2"], "CENTRE.npy:EPS"),
        (["bounds", NET, SPEC, "--plot", "x.bmp"], ".pdf"),
        (["range", NET, "--input", f"{tmp_path / 'short.npy'}:0.1"], "expected 64 numbers"),
        (["range", NET, "--input", f"{tmp_path / 'short.npy'}:wide"], "radius"),
        (["range", NET, "--input", str(tmp_path / "odd.npz")], "'lower' and 'upper'"),
        (["range", NET, "--input", str(tmp_path / "crossed.npz")], "input 0 has lower"),
        (["range", NET, "--input", "nothing.txt"], "expected a .vnnlib file"),
        (["range", NET, "--input", "missing.npz"], "no such file"),
    ]
    for argv, message in cases:
        assert main(argv) == 2, argv
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert message in error, (argv, error)
