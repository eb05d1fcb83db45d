"""Reading answers: what the table says, nothing cut in silence, and an end to every text."""

import itertools
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from synpro_engine.data import read_documents
from synpro_engine.synth import BUILT_IN, OPERATIONS, Cut, Parsed, Reject, headings
from synpro_engine.synth.parsed import size
from tests.synth.answers_page import page, rows

HEADINGS = [heading.text for heading in headings.BUILT_IN]
TEXT = "The mill in the valley was lost to a fire that spring."
ENTRY = "- Topic: The fire. Content: The mill was lost to a fire."
ROWS = rows()


def read(row: dict[str, Any]) -> tuple[str, Parsed]:
    operation = OPERATIONS[row["operation"]]
    raw = row["whole"] if "whole" in row else f"{operation.heading}\n{row['answer']}"
    return raw, operation.parse(raw, finished=row.get("finished", True))


@pytest.mark.parametrize("row", ROWS, ids=[f"{row['operation']}: {row['name']}" for row in ROWS])
def test_an_awkward_answer_gives_what_the_table_says(row: dict[str, Any]) -> None:
    raw, parsed = read(row)
    assert parsed.reason == row.get("refused")
    if "refused" in row:
        assert not parsed.ok and not parsed.exact
        return
    if "entries" in row:
        assert [[entry.topic, entry.content] for entry in parsed.entries] == row["entries"]
        if row["operation"] == "reformat":
            assert parsed.text == "\n".join(map(str, parsed.entries))
    if "text" in row:
        assert parsed.text == row["text"]
    assert parsed.cut == row.get("cut", {})
    assert parsed.exact == row.get("exact", True)
    assert_all_is_accounted_for(raw, row["operation"], parsed)


def test_the_table_is_large_has_every_cause_and_is_in_the_docs() -> None:
    assert len(ROWS) >= 100
    assert len({(row["operation"], row["name"], row["group"]) for row in ROWS}) == len(ROWS)
    assert {cause for row in ROWS for cause in row.get("cut", {})} == set(Cut)
    assert {row["refused"] for row in ROWS if "refused" in row} == set(Reject) - {Reject.PROMPT_TOO_LONG}
    docs = Path(__file__).parents[2] / "docs" / "answers.md"
    assert docs.read_text(encoding="utf-8") == page()


def assert_all_is_accounted_for(raw: str, operation: str, parsed: Parsed) -> None:
    """The text, its heading and what was cut are the whole answer; keys, bars and bullets may be ours."""
    counted = size(OPERATIONS[operation].heading) + size(parsed.text) + sum(parsed.cut.values())
    bars = sum(map(size, re.findall(r"\||-{3}", parsed.text)))
    form = {"reformat": 1, "faq": size("Question:Answer:"), "problems": size("Problem:Solution:")}.get(operation, 0)
    ours = bars if operation == "table" else form * len(parsed.entries)
    ours += 0 if parsed.exact else size(OPERATIONS[operation].heading)
    assert size(raw) <= counted <= size(raw) + ours, (raw, parsed)


PIECES = [
    *HEADINGS, ENTRY, TEXT, "- Topic:", "Content:", "[topic]", "[", "]", "<", "\n", "\n\n", " ", "\x00", "\ud800", "é",
    "Let me know if you want more.", "I made a few changes to the text for clarity.", "<think>", "</think>", "```",
    "<|im_end|>", "User:", "**", "1. ", "...", "\r\n", "•", "：",
]  # fmt: skip


def test_parse_never_raises_and_never_cuts_in_silence() -> None:
    rng = random.Random(0)
    accepted = 0
    for _ in range(6000):
        noise = "".join(chr(rng.randrange(0x3000)) for _ in range(rng.randrange(12)))
        raw = "".join(rng.choices([*PIECES, noise], k=rng.randrange(12)))
        for name in BUILT_IN:
            operation = OPERATIONS[name]
            parsed = operation.parse(raw, finished=rng.random() < 0.7)
            assert parsed.ok == (parsed.reason is None) == bool(parsed.text)
            assert len(parsed.entries) <= (30 if name in ("table", "tutorial") else 8)
            if parsed.ok:
                accepted += 1
                assert not any(heading in parsed.text for heading in HEADINGS)
                assert_all_is_accounted_for(raw, name, parsed)
                once = sum(raw.lower().count(heading.lower()) for heading in HEADINGS) == 1
                assert parsed.exact == (once and raw.lstrip().lower().startswith(operation.heading.lower()))
    assert accepted > 300


def test_honest_text_is_left_as_it_is() -> None:
    for document in itertools.islice(read_documents("embedded:sotu"), 0, None, 8):
        text = document.text[:20_000].strip()
        parsed = OPERATIONS["rephrase"].parse(f"{OPERATIONS['rephrase'].heading}\n{text}")
        assert (parsed.text, parsed.cut) == (text, {}), document.id
        sentences = " ".join(text.split())[:1000].strip(" *")
        entry = OPERATIONS["reformat"].parse(f"{OPERATIONS['reformat'].heading}\n- Topic: 1 Content: {sentences}")
        assert ([entry.entries[0].content], entry.cut) == ([sentences], {}), document.id


HOSTILE = (
    "[", "- Topic: ", "I have made ", " \n", "\t|", "<think>\n", "</think>\n", "```\n", "Content: ", "- ", "**", "1. ",
    "Entry 1: ", "<|im_end|>\n", "<s>\n", "[topic ", " ", "Here is a ", "Let me know ", "*_`", "\n\nUser:",
    "- Topic: a Content: b ", "- Topic: a Content: b\n", "note: ", "the original meaning and ", "#", "Sure! ",
)  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
def test_the_time_of_reading_grows_as_the_text_does(piece: str) -> None:
    # Patterns that backtrack would take a hundred times as long for ten times the text, and never come back from more.
    for operation in map(OPERATIONS.__getitem__, BUILT_IN):
        begin = time.process_time()
        parsed = operation.parse(f"{operation.heading}\n" + piece * (100_000 // len(piece)))
        assert time.process_time() - begin < 5.0, operation.name
        assert parsed.ok == (parsed.reason is None) == bool(parsed.text)


@pytest.mark.parametrize(
    "line", ["- Topic: a {}x", "- Topic: a\n- Content{}x", "- Topic{}x", "Topic: a\n{}x", "{}Topic"]
)
@pytest.mark.parametrize("piece", [" ", "-", "\t-", "| ", ". ", "1.", "</s>", "["])
def test_the_time_of_reading_a_line_grows_as_the_line_does(line: str, piece: str) -> None:
    for operation in map(OPERATIONS.__getitem__, BUILT_IN):
        raw = f"{operation.heading}\n" + line.format(piece * (10_000 // len(piece)))
        begin = time.process_time()
        operation.parse(raw)
        assert time.process_time() - begin < 3.0, operation.name
