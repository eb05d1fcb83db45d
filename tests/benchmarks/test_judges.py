"""The judges' benchmark runs whole at a small size, and who is not installed gets a row that says so."""

import json
from pathlib import Path

import pytest

from benchmarks.judges import __main__ as program
from benchmarks.judges import tokens
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


def test_one_request_a_text_has_at_most_a_quarter_of_the_tokens_of_one_an_entry(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the size of slices that the recipes of the paper's size have, and at half of it."""
    monkeypatch.setattr(tokens, "MAX_CHARS", (7000, 3500))
    rows = tokens.table(texts=12)
    assert [row["api"] for row in rows] == ["systemone", "decisions"] * 2
    for row in rows:
        assert row["requests"] == row["texts"] >= 10 and row["one an entry"] >= 7 * row["texts"]
        assert 0 < row["tokens"] <= row["tokens, one an entry"] / 4


def test_a_tree_of_eight_texts_of_four_entries_has_at_most_three_tenths_of_the_tokens_of_its_prompts() -> None:
    rows = tokens.tree_table(6)
    assert [row["slice, characters"] for row in rows] == list(tokens.MAX_CHARS)
    for row in rows:
        assert row["questions"] == row["groups"] * 32 >= 32
        assert 0 < row["tokens"] <= 0.3 * row["tokens, one by one"]
