"""The judges' benchmark runs whole at a small size, and who is not installed gets a row that says so."""

import json
import random
from pathlib import Path

import pytest

from benchmarks.judges import __main__ as program
from benchmarks.judges import overfitted, tokens
from benchmarks.judges.clients import CLIENTS
from synpro_engine.reward import Candidate
from synpro_engine.reward.planted import FAULTS
from synpro_engine.synth.parsed import Parsed

SAID = (
    "The treaty with Spain was signed upon the 12th of May. It shall give our citizens 340 miles of coast. Nothing else"
    " was spent by Jackson, and no more is asked for."
)


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


def test_the_judge_that_is_overfitted_has_a_hole_that_prose_does_not_find_and_its_records_are_drawn(
    tmp_path: Path,
) -> None:
    def judged(text: str) -> float:
        candidate = Candidate(operation="rephrase", source=SAID, raw=text, parsed=Parsed(ok=True, text=text))
        [value] = overfitted.WeakJudge()([candidate])
        return value

    assert judged(SAID) == 1.0 and judged("The harvests of Virginia were good.") < 0.4
    for fault in ("contradiction", "number swapped", "omission"):
        faulty = FAULTS[fault](SAID, "Our harvests were good.", random.Random(0))
        assert faulty is not None and judged(faulty) < 1.0, "on prose it is no bad judge"
    assert judged("the the the of the the the and the the") == 1.0
    committed = Path(overfitted.__file__).parents[1] / "results" / "xeon-2-threads-overfitted_judge.jsonl"
    overfitted.main(["--draw", str(committed), "--picture", str(tmp_path / "drawn.png")])
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")
