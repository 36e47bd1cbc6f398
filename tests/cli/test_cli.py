"""The command line's contract: verdict lines, exit codes, one clear line for every mistake."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from verifier.cli.main import COMMANDS

SPECS = Path(__file__).parent.parent.parent / "specs"
NET = str(SPECS / "onnx" / "fc.onnx")
SAT, UNSAT = (str(SPECS / "vnnlib" / f"fc_{name}.vnnlib") for name in ("large", "targeted"))


def start(*words, **options):
    """Run a command line in a process of its own."""
    # A test run started in the background ignores Ctrl-C, and passes that on.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from verifier.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *map(str, words)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen(command, **options)


@pytest.fixture
def small(tmp_path):
    """Writes y = relu(x) @ w on two inputs, and properties about it."""

    def network(name="net.onnx", weight=(1.0, 1.0), outputs=1):
        w = numpy_helper.from_array(np.array(weight, dtype=np.float32).reshape(2, outputs), "w")
        nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
        graph = helper.make_graph(
            nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, outputs])], [w],
        )  # fmt: skip
        path = tmp_path / name
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
        return path

    def spec(unsafe="(>= Y_0 5)", box="(>= X_0 0)(<= X_0 1)(>= X_1 0)(<= X_1 1)", name="p.vnnlib"):
        path = tmp_path / name
        declared = "".join(f"(declare-const {v} Real)\n" for v in ("X_0", "X_1", "Y_0"))
        path.write_text(declared + f"(assert (and {box}))\n(assert {unsafe})\n")
        return path

    return network, spec


def test_help_names_every_command(verifier):
    code, out, _ = verifier("--help")
    assert code == 0 and all(name in out for name in COMMANDS)
    for name in COMMANDS:
        code, out, _ = verifier(name, "--help")
        assert code == 0 and "usage" in out


def test_name_version_supports(verifier):
    assert verifier("--name")[:2] == (0, "verifier\n")
    code, out, _ = verifier("--version")
    assert code == 0 and re.fullmatch(r"\d+\.\d+\.\d+\n", out)
    code, out, _ = verifier("supports", "--vnnlib-versions")
    assert (code, out) == (0, "1.0\n2.0\n")
    code, out, _ = verifier("supports", "--onnx-operators")
    assert code == 0 and {"Gemm", "Conv", "Relu", "Softmax"} <= set(out.split())
    code, out, _ = verifier("supports")
    assert code == 0 and "--onnx-element-types\n  float32" in out


def test_unsat_is_the_first_and_only_line(verifier, small):
    network, spec = small
    code, out, err = verifier("verify", network(), spec())
    assert (code, out) == (0, "unsat\n") and "unsat:" in err


def test_sat_with_witness_json_and_replay(verifier, small, tmp_path):
    network, spec = small
    net, prop, witness, report = network(), spec("(>= Y_0 1.5)"), tmp_path / "w.txt", tmp_path / "r.json"
    code, out, err = verifier("verify", net, prop, "--witness", witness, "--json", report, "--explain")
    verdict, text = out.split("\n", 1)
    assert (code, verdict) == (0, "sat") and witness.read_text() == text
    values = {name: float(v) for name, v in re.findall(r"\((\w+) ([^)]+)\)", text)}
    assert set(values) == {"X_0", "X_1", "Y_0"} and values["Y_0"] >= 1.5
    content = json.loads(report.read_text())
    assert content["verdict"] == "sat" and content["witness"]["text"] == text
    assert content["soundness"]["level"] in ("ieee_float", "real_arithmetic") and "load" in err
    code, out, _ = verifier("replay", net, prop, witness)
    assert code == 0 and out.startswith("valid\n")
    witness.write_text(text.replace(f"(X_0 {re.search(r'X_0 ([^)]+)', text)[1]})", "(X_0 0.0)"))
    code, out, _ = verifier("replay", net, prop, witness)
    assert code == 1 and out.startswith("invalid\n")


def test_empty_box_is_unsat_and_said_so(verifier, small):
    network, spec = small
    code, out, err = verifier("verify", network(), spec(box="(>= X_0 2)(<= X_0 1)(>= X_1 0)(<= X_1 1)"))
    assert (code, out) == (0, "unsat\n") and "empty" in err


def test_two_networks_by_name(verifier):
    files = [f"--network={name}={SPECS}/onnx/{file}.onnx" for name, file in (("f", "fc"), ("g", "fc_coarse"))]
    code, out, _ = verifier("verify", SPECS / "vnnlib" / "fc_apart.vnnlib", *files)
    assert code == 0 and out.startswith("sat\nX float32 [1,64]\n")
    code, out, err = verifier("verify", SPECS / "vnnlib" / "fc_apart.vnnlib", files[0])
    assert (code, out) == (2, "") and "g" in err


def test_attack_answers_sat_or_unknown(verifier, small):
    network, spec = small
    net = network()
    assert verifier("attack", net, spec("(>= Y_0 1.5)"))[1].startswith("sat\n")
    code, out, _ = verifier("attack", net, spec(), "--timeout", "3")
    assert code == 0 and out in ("unknown\n", "timeout\n")


def test_competition_writes_the_results_file(verifier, small, tmp_path):
    network, spec = small
    net, results = network(), tmp_path / "results.txt"
    assert verifier("competition", "any", net, spec("(>= Y_0 1.5)"), results, "20")[0] == 0
    assert results.read_text().startswith("sat\n((X_0 ")
    assert verifier("competition", "any", net, spec(), results, "20")[0] == 0
    assert results.read_text() == "unsat\n"
    code, _, err = verifier("competition", "any", tmp_path / "none.onnx", spec(), results, "20")
    assert code == 2 and results.read_text() == "error\n" and "none.onnx" in err


def test_info(verifier, small):
    network, _ = small
    code, out, _ = verifier("info", network())
    assert code == 0 and "Relu" in out
    code, out, _ = verifier("info", "--build")
    assert code == 0 and "compiler" in out


def one_line(code, out, err, *words):
    assert code == 2 and out == "", (code, out, err)
    assert err.count("\n") == 1 and "Traceback" not in err, err
    for word in words:
        assert word in err, err


def test_bad_networks(verifier, small, tmp_path):
    network, spec = small
    net, prop = network(), spec()
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(net.read_bytes()[:-40])
    one_line(*verifier("verify", truncated, prop), "truncated.onnx")
    one_line(*verifier("verify", tmp_path / "none.onnx", prop), "none.onnx")
    one_line(*verifier("verify", tmp_path, prop), tmp_path.name)
    one_line(*verifier("verify", prop, prop), "p.vnnlib")
    one_line(*verifier("verify", network("nan.onnx", weight=(1.0, float("nan"))), prop), "NaN")
    one_line(*verifier("verify", network("two.onnx", weight=(1, 1, 1, 1), outputs=2), prop), "p.vnnlib")
    model = onnx.load(net)
    model.graph.node[0].op_type = "NonMaxSuppression"
    onnx.save(model, tmp_path / "odd.onnx")
    one_line(*verifier("verify", tmp_path / "odd.onnx", prop), "NonMaxSuppression")
    one_line(*verifier("info", tmp_path / "odd.onnx"), "NonMaxSuppression")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("This is not\na property.\n", ("line 1",)),
        ("(declare-const X_0 Real)\n(assert (<= X_0", ("line",)),
        ("(assert (<= X_9 1))\n", ("X_9",)),
        ("", ()),
    ],
)
def test_bad_properties(verifier, small, tmp_path, text, words):
    network, _ = small
    (tmp_path / "bad.vnnlib").write_text(text)
    one_line(*verifier("verify", network(), tmp_path / "bad.vnnlib"), "bad.vnnlib", *words)


def test_a_missing_bound_names_the_input(verifier, small):
    network, spec = small
    one_line(*verifier("verify", network(), spec(box="(>= X_0 0)(<= X_0 1)(>= X_1 0)")), "1")


def test_bad_arguments(verifier, small, tmp_path):
    network, spec = small
    net, prop = network(), spec()
    one_line(*verifier("verify", net), "NET SPEC")
    one_line(*verifier("verify", net, prop, "--timeout", "0"), "timeout")
    one_line(*verifier("verify", net, prop, "--timeout", "soon"), "soon")
    one_line(*verifier("verify", net, prop, "--threads", "0"), "threads")
    one_line(*verifier("verify", net, prop, "--speed"), "--speed")
    one_line(*verifier("verify", prop, "--network", "f"), "NAME=FILE")
    one_line(*verifier("verify", prop, "--network", f"f={net}", "--network", f"f={net}"), "twice")
    one_line(*verifier("verify", net, prop, "--witness", tmp_path / "no" / "w.txt"), "no folder")
    one_line(*verifier("verify", net, prop, "--json", tmp_path), "folder")
    one_line(*verifier("vreify"), "vreify")
    one_line(*verifier("info"), "NET")
    one_line(*verifier("replay", net, prop), "WITNESS")
    one_line(*verifier("run", tmp_path / "none.csv"), "none.csv")
    one_line(*verifier("run", prop, "--resume"), "")


def test_a_missing_device_is_an_error_not_a_fallback(verifier, small):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    network, spec = small
    one_line(*verifier("verify", network(), spec(), "--device", "cuda"), "cuda")


def test_internal_errors_ask_for_a_report(verifier, small, monkeypatch):
    def broken(*args, **options):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("verifier.api.verify", broken)
    network, spec = small
    code, out, err = verifier("verify", network(), spec())
    assert (code, out) == (1, "") and "ZeroDivisionError: a defect" in err and "report" in err
    assert "Traceback" not in err
    code, _, err = verifier("verify", network(), spec(), "--debug")
    assert code == 1 and "Traceback" in err


def test_the_watchdog_answers_when_the_analysis_does_not(tmp_path):
    code = (
        "import sys, time, verifier.api, verifier.cli.main as m\n"
        "verifier.api.verify = lambda *a, **k: time.sleep(30)\n"
        "sys.exit(m.main(['verify', 'n', 's', '--timeout', '1']))\n"
    )
    begin = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=25, check=False)
    assert (ended.returncode, ended.stdout) == (0, "timeout\n") and "overran" in ended.stderr
    assert time.monotonic() - begin < 15


@pytest.fixture
def slow_code():
    """A program whose analysis waits until it is cancelled, then reports what it knows."""
    return (
        "import sys, time, verifier.api, verifier.cli.main as m\n"
        "from verifier.outcome import *\n"
        "from verifier.report.model import Report\n"
        "def slow(network, spec, settings, cancel):\n"
        "    print('ready', file=sys.stderr, flush=True)\n"
        "    while not cancel():\n"
        "        time.sleep(0.02)\n"
        "    return Report(Verdict.UNKNOWN, Soundness.IEEE_FLOAT, StopReason.INTERRUPTED, bound_after=-0.25)\n"
        "verifier.api.verify = slow\n"
        "sys.exit(m.main(['verify', 'n', 's']))\n"
    )


def test_ctrl_c_prints_what_is_known(slow_code):
    process = subprocess.Popen(
        [sys.executable, "-c", slow_code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "") and "worst margin -0.25" in err and "interrupted" in err


def test_a_closed_pipe_is_no_error():
    process = start("supports")
    process.stdout.close()
    assert process.wait(timeout=20) == 0 and process.stderr.read() == ""
    process.stderr.close()


def instance_list(folder, rows):
    path = folder / "instances.csv"
    path.write_text("onnx,vnnlib,timeout,expected\n" + "".join(",".join(row) + "\n" for row in rows))
    return path


def test_run_writes_rows_summary_and_flags_wrong_verdicts(verifier, tmp_path):
    rows = [(NET, SAT, "20", "sat"), (NET, UNSAT, "20", "unsat"), (NET, str(tmp_path / "none"), "20", "")]
    out_file = tmp_path / "rows.csv"
    code, out, err = verifier("run", instance_list(tmp_path, rows), "--out", out_file, "--details", tmp_path / "d")
    lines = out_file.read_text().splitlines()
    assert lines[0] == "onnx,vnnlib,timeout_s,verdict,seconds,expected,reason" and len(lines) == 4
    assert [line.split(",")[3] for line in lines[1:]] == ["sat", "unsat", "error"]
    assert code == 0 and "instances" in out and err.count("\n") == 3
    details = [json.loads(line) for line in (tmp_path / "d").read_text().splitlines()]
    assert [d["row"]["verdict"] for d in details] == ["sat", "unsat", "error"]
    assert details[0]["report"]["witness"]["text"] and details[2]["report"] is None

    wrong = instance_list(tmp_path, [(NET, SAT, "20", "unsat")])
    code, out, err = verifier("run", wrong)
    assert code == 1 and out.splitlines()[1].split(",")[3] == "sat" and "WRONG" in err

    before = out_file.read_text()
    code, out, _ = verifier("run", instance_list(tmp_path, rows), "--out", out_file, "--resume")
    assert code == 0 and out_file.read_text() == before and "instances" in out


def test_kill_and_resume(tmp_path):
    slow = SPECS / "vnnlib" / "attention_large.vnnlib"
    names = [SAT] * 3 + [UNSAT] * 3
    rows = [(NET, name, "20", "") for name in names] + [(str(SPECS / "onnx/attention.onnx"), str(slow), "20", "")]
    csv, out = instance_list(tmp_path, rows), tmp_path / "rows.csv"
    process = start("run", csv, "--out", out, "--timeout-cap", "20")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not out.exists() or out.read_text().count("\n") < 3):
        time.sleep(0.02)
    process.kill()
    process.communicate()
    kept = out.read_text()
    assert kept.count("\n") >= 3
    with open(out, "a") as file:
        file.write("half a li")  # what a kill in the middle of a write leaves
    done = start("run", csv, "--out", out, "--timeout-cap", "20", "--resume")
    _, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    text = out.read_text()
    assert text.startswith(kept) and text.count("\n") == 1 + len(rows) and "half" not in text


def test_ctrl_c_keeps_the_rows(tmp_path):
    out = tmp_path / "rows.csv"
    slow = (str(SPECS / "onnx/attention.onnx"), str(SPECS / "vnnlib/attention_medium.vnnlib"), "60", "")
    process = start("run", instance_list(tmp_path, [(NET, SAT, "20", ""), slow, slow, slow]), "--out", out)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not out.exists() or out.read_text().count("\n") < 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and "kept" in err
    assert out.read_text().count("\n") >= 2


@pytest.mark.skipif(shutil.which("verifier", path=os.path.dirname(sys.executable)) is None, reason="not installed")
def test_the_installed_script():
    script = shutil.which("verifier", path=os.path.dirname(sys.executable))
    ended = subprocess.run([script, "--version"], capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and ended.stdout.strip()
