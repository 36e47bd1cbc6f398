"""Fixtures of several rooms."""

from __future__ import annotations

import pytest

from verifier.cli.main import main


@pytest.fixture
def verifier(capsys):
    """Run a command line in this process: (exit code, stdout, stderr)."""

    def call(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    return call
