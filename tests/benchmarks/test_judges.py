"""The judges' benchmark runs whole at a small size, and who is not installed gets a row that says so."""

import json
from pathlib import Path

import pytest

from benchmarks.judges import __main__ as program
from benchmarks.judges.clients import CLIENTS


def test_a_small_run_measures_ours_and_writes_a_line_for_each_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def not_here(endpoint: str, concurrency: int) -> None:
        raise ImportError("no module")

    monkeypatch.setitem(CLIENTS, "openai", not_here)
    options = ["--calls", "16", "--concurrency", "4", "--latency", "0.02", "--rounds", "1"]
    program.main([*options, "--output", str(tmp_path / "rows.jsonl")])
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["contender"]: row["status"] for row in rows} == dict.fromkeys(CLIENTS, "ok") | {"openai": "not run"}
    assert rows[0]["timing"]["median"] >= 0.08, "nobody is faster than the endpoint"
    assert rows[0]["settings"]["calls"] == 16 and "ours: " in capsys.readouterr().out
