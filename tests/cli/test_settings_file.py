"""`--settings FILE` and `--effort`: what a file may say, who wins, and how far an analysis goes."""

from __future__ import annotations

import pytest

NET, SPEC = "specs/onnx/conv.onnx", "specs/vnnlib/conv_medium.vnnlib"


@pytest.fixture
def settings_file(tmp_path):
    path = tmp_path / "mine.toml"

    def write(text: str) -> str:
        path.write_text(text)
        return str(path)

    return write


def test_a_file_speaks_for_options_and_later_options_win(verifier, settings_file):
    path = settings_file('timeout = 30\nthreads = 1\neffort = "bounds"\nengine = "torch"\nseed = 3\n')
    code, out, err = verifier("verify", NET, SPEC, "--settings", path)
    assert (code, out) == (0, "unsat\n")
    assert "torch on cpu" in err
    code, out, err = verifier("verify", NET, SPEC, "--settings", path, "--engine", "native")
    assert (code, out) == (0, "unsat\n")
    assert "native on cpu" in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("= =", "not a TOML file"),
        ("colour = 1", "unknown setting 'colour'"),
        ('threads = "two"', "threads: expected int"),
        ("threads = true", "threads: expected int"),
        ("threads = 0", "threads: expected a whole number >= 1, got '0'"),
        ("timeout = -1", "timeout: expected seconds > 0"),
        ('effort = "all"', "effort: expected one of bounds, slopes, search"),
    ],
)
def test_mistakes_in_the_file_are_named(verifier, settings_file, text, said):
    path = settings_file(text)
    code, out, err = verifier("verify", NET, SPEC, "--settings", path)
    assert (code, out) == (2, "")
    assert path in err and said in err
    assert len(err.strip().splitlines()) == 1


def test_a_setting_of_another_command_is_refused(verifier, settings_file):
    path = settings_file("timeout = 5")
    code, _, err = verifier("run", "specs/instances.csv", "--settings", path)
    assert code == 2
    assert "'timeout' is not an option of this command" in err


def test_a_missing_file_is_said(verifier, tmp_path):
    code, _, err = verifier("verify", NET, SPEC, "--settings", tmp_path / "none.toml")
    assert code == 2
    assert "none.toml" in err
