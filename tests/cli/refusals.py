"""Commands in this process: a refused one has exit code 2 and one line of error, one that succeeds says no more."""

import pytest

from synpro_engine.cli.main import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that the command line answers these arguments with; no traceback stands beside it."""
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    [line] = [line for line in error.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in error
    return line


def succeeded(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command line prints to these arguments, which it takes."""
    capsys.readouterr()
    status, told = main(arguments), capsys.readouterr()
    assert status == 0, told.err
    return told.out
