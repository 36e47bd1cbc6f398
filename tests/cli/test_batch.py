"""Lists, rows and worker processes: every instance gets a row, whatever happens to its process."""

import io
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from verifier.batch import pool
from verifier.batch.instances import Instance, parse_networks, read_instances
from verifier.batch.pool import SweepSettings, sweep
from verifier.batch.results import Row, RowWriter, read_rows, remaining
from verifier.batch.score import score, score_by_network
from verifier.errors import SpecError, VerifierError

FAKE = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


def instances(*names, timeout_s=20.0):
    return [Instance("n.onnx", name, timeout_s, "", Path(".")) for name in names]


def run(*names, **settings):
    found = sweep(instances(*names, timeout_s=settings.pop("timeout_s", 20.0)), SweepSettings(command=FAKE, **settings))
    return {result.row.vnnlib: result for result in found}


@pytest.fixture
def csv_file(tmp_path):
    def write(text):
        path = tmp_path / "instances.csv"
        path.write_text(text)
        return path

    return write


def test_reads_lists_with_and_without_a_header(csv_file):
    plain = read_instances(csv_file("a.onnx,p.vnnlib,5\nb.onnx, q.vnnlib ,1.5,sat\n"))
    assert [(i.onnx, i.vnnlib, i.timeout_s, i.expected) for i in plain] == [
        ("a.onnx", "p.vnnlib", 5.0, ""), ("b.onnx", "q.vnnlib", 1.5, "sat"),
    ]  # fmt: skip
    named = read_instances(csv_file("\ufeffexpected,vnnlib,onnx,timeout_s,note\nUNSAT,p,n,,x\n"))
    assert (named[0].onnx, named[0].vnnlib, named[0].timeout_s, named[0].expected) == ("n", "p", None, "unsat")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "empty list"),
        ("onnx,vnnlib,timeout\n", None),
        ("a.onnx\n", ":1"),
        ("a.onnx,p.vnnlib,5\na.onnx,p.vnnlib,soon\n", ":2"),
        ("a.onnx,p.vnnlib,0\n", "> 0"),
        ("a.onnx,p.vnnlib,nan\n", "> 0"),
        ("a.onnx,p.vnnlib,inf\n", "> 0"),
        ("a.onnx,p.vnnlib,-3\n", "> 0"),
        ("onnx,timeout\na,3\n", "vnnlib"),
        ("a.onnx,p.vnnlib,5,perhaps\n", "perhaps"),
    ],
)
def test_bad_lists_name_their_line(csv_file, text, where):
    path = csv_file(text)
    if where is None:
        assert read_instances(path) == []
        return
    with pytest.raises(SpecError, match=r"instances\.csv") as error:
        read_instances(path)
    assert where in str(error.value)


def test_binary_list_is_an_error(tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes(b"\xff\xfe\x00\x01" * 50)
    with pytest.raises(SpecError, match="CSV"):
        read_instances(path)


def test_a_list_of_networks_and_a_compressed_file(tmp_path):
    (tmp_path / "g.onnx.gz").write_bytes(b"")
    instance = Instance('[("f", "f.onnx"), ("g", "g.onnx")]', "p.vnnlib", 1.0, "", tmp_path)
    assert instance.network == {"f": str(tmp_path / "f.onnx"), "g": str(tmp_path / "g.onnx.gz")}
    assert parse_networks("plain.onnx") == "plain.onnx"
    for bad in ("[", "[1, 2]", '[("f",)]', '[("f", 1)]', '[("f", "a"), ("f", "b")]', "[__import__('os')]"):
        with pytest.raises(SpecError, match="pairs"):
            parse_networks(bad)


def test_rows_survive_commas_newlines_and_a_cut_last_line(tmp_path):
    rows = [
        Row('[("f", "a,b.onnx")]', "p", 5.0, "sat", 1.25, "sat", 'a "quoted"\nreason'),
        Row("n", "q", None, "error", 0.0, "", "why, indeed"),
    ]
    text = io.StringIO()
    writer = RowWriter(text, header=True)
    for row in rows:
        writer.write(row)
    path = tmp_path / "rows.csv"
    path.write_text(text.getvalue() + "n,r,5,uns")
    assert read_rows(path) == [replace(rows[0], reason='a "quoted" reason'), rows[1]]
    path.write_text("some,other,file\n1,2,3\n")
    with pytest.raises(SpecError, match="header"):
        read_rows(path)


def test_an_instance_listed_twice_needs_two_rows():
    both = instances("p", "p", "q")
    done = [Row("n.onnx", "p", 5.0, "sat", 1.0, "", "")]
    assert [i.vnnlib for i in remaining(both, done)] == ["p", "q"]


def test_score_counts_wrong_and_late_answers():
    rows = [
        Row("a", "1", 10, "unsat", 1.0, "unsat", ""),
        Row("a", "2", 10, "sat", 2.0, "unsat", ""),  # wrong
        Row("a", "3", 10, "sat", 10.5, "", ""),  # late
        Row("b", "4", 10, "sat", 3.0, "unknown", ""),
        Row("b", "5", 10, "timeout", 10.0, "sat", ""),
        Row("b", "6", 10, "error", 0.5, "", ""),
        Row("b", "7", 10, "unknown", 0.5, "", ""),
    ]
    s = score(rows)
    assert (s.instances, s.sat, s.unsat, s.wrong, s.unknown, s.timeouts, s.errors) == (7, 1, 1, 1, 1, 2, 1)
    assert s.instances == s.solved + s.wrong + s.unknown + s.timeouts + s.errors
    assert s.points == 2 * 10 - 150
    assert list(score_by_network(rows)) == ["a", "b"]
    assert score([]).points == 0 and score([]).median_seconds == 0


def test_one_process_serves_many_instances_with_their_settings():
    found = run("settings_1", "settings_2", timeout_cap_s=7.0, threads=3, analysis={"seed": 5})
    told = [json.loads(found[k].row.reason.partition("(")[2][:-1]) for k in ("settings_1", "settings_2")]
    assert told[0]["pid"] == told[1]["pid"]
    assert {k: told[0][k] for k in ("timeout_s", "threads", "seed")} == {"timeout_s": 7.0, "threads": 3, "seed": 5}
    assert found["settings_1"].row.timeout_s == 7.0


def test_a_lost_process_costs_one_row():
    found = run("a_sat", "crash", "kill", "raise", "exhaust", "b_unsat", workers=2)
    assert {k: v.row.verdict for k, v in found.items()} == {
        "a_sat": "sat", "b_unsat": "unsat", "crash": "error", "kill": "error", "raise": "error", "exhaust": "error",
    }  # fmt: skip
    assert "code 3: the last words" in found["crash"].row.reason
    assert "SIGKILL" in found["kill"].row.reason
    assert "RuntimeError: a defect" in found["raise"].row.reason
    assert "memory" in found["exhaust"].row.reason


def test_an_overrunning_process_is_killed(monkeypatch):
    monkeypatch.setattr(pool, "OVERRUN_S", 0.5)
    begin = time.monotonic()
    found = run("sleep", "b_unsat", timeout_s=0.5)
    assert found["sleep"].row.verdict == "timeout"
    assert found["b_unsat"].row.verdict == "unsat"
    assert time.monotonic() - begin < 15


def test_closing_a_sweep_ends_its_processes(monkeypatch):
    stopped = []
    stop = pool.Worker.stop
    monkeypatch.setattr(pool.Worker, "stop", lambda self: (stopped.append(self._process), stop(self)))
    results = sweep(instances("a_sat", "sleep"), SweepSettings(command=FAKE, workers=2))
    assert next(results).row.verdict == "sat"
    begin = time.monotonic()
    results.close()
    assert time.monotonic() - begin < 5
    assert all(process is None or process.poll() is not None for process in stopped)


def test_a_worker_program_that_does_not_start_is_one_clear_error():
    with pytest.raises(VerifierError, match=r"did not start.*No module named"):
        list(sweep(instances("a"), SweepSettings(command=(sys.executable, "-m", "no_such_module"))))


def test_an_empty_list_needs_no_process():
    assert list(sweep([], SweepSettings(command=("/nonexistent",)))) == []
