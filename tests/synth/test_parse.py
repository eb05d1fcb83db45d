import random

import pytest

from synpro_engine.synth import HEADINGS, OPERATIONS, REFORMAT, REPHRASE, Reject

TEXT = "The mill in the valley was lost to a fire that spring."
ENTRY = "- Topic: The fire. Content: The mill was lost to a fire."


def test_parse_never_raises_and_never_accepts_without_exactly_one_heading() -> None:
    rng = random.Random(0)
    pieces = [
        *HEADINGS,
        ENTRY,
        "- Topic:",
        "Content:",
        "[topic]",
        "[",
        "]",
        "<",
        "\n",
        "\n\n",
        " ",
        "\x00",
        "\ud800",
        "é",
    ]
    for _ in range(3000):
        noise = "".join(chr(rng.randrange(0x3000)) for _ in range(rng.randrange(12)))
        raw = "".join(rng.choices([*pieces, noise, TEXT], k=rng.randrange(9)))
        for operation in OPERATIONS.values():
            parsed = operation.parse(raw, finished=rng.random() < 0.7)
            assert parsed.ok == (parsed.reason is None)
            assert parsed.ok == bool(parsed.text)
            assert len(parsed.entries) <= 8
            if parsed.ok:
                assert sum(raw.lower().count(heading.lower()) for heading in HEADINGS) == 1
                assert not any(heading in parsed.text for heading in HEADINGS)


@pytest.mark.parametrize(
    "raw", ["[" * 50_000, "- Topic: " * 20_000, "I have made " * 20_000, " \n" * 50_000, "\t|" * 50_000]
)
def test_parse_decides_on_hostile_text(raw: str) -> None:
    # Patterns that backtrack would not come back from these.
    for operation in OPERATIONS.values():
        parsed = operation.parse(f"{operation.heading}\n{raw}")
        assert parsed.ok == (parsed.reason is None) == bool(parsed.text)


@pytest.mark.parametrize(
    ("raw", "finished", "reason"),
    [
        (TEXT, True, Reject.NO_HEADING),
        (f"{REFORMAT.heading}\n{TEXT}", True, Reject.WRONG_HEADING),
        (f"{REPHRASE.heading}\n{TEXT}\n{REPHRASE.heading}\n{TEXT}", True, Reject.TWO_HEADINGS),
        (f"{REPHRASE.heading}\n{TEXT}\n{REFORMAT.heading.lower()}", True, Reject.TWO_HEADINGS),
        (f"Sure!\n{REPHRASE.heading}\n{TEXT}", True, Reject.PREAMBLE),
        (f"{REPHRASE.heading}\n{TEXT}", False, Reject.TRUNCATED),
        (f"{REPHRASE.heading}\n \n", True, Reject.EMPTY),
        (f"{REPHRASE.heading}\nThe mill.", True, Reject.TOO_SHORT),
        (f"{REPHRASE.heading}\nThe fire of [insert date] took the mill.", True, Reject.PLACEHOLDER),
        (f"{REPHRASE.heading}\nI made a few changes for clarity.\n\n{TEXT}", True, Reject.COMMENTARY),
        (f"{REPHRASE.heading}\n{TEXT}\n\nI have made up my mind: the mill stays.", True, None),
        (f"{REPHRASE.heading}\n{TEXT} [applause]", True, None),
        (f"\n{REPHRASE.heading} {TEXT}", True, None),
    ],
)
def test_each_fault_of_a_paraphrase_has_its_reason(raw: str, finished: bool, reason: Reject | None) -> None:
    assert REPHRASE.parse(raw, finished=finished).reason == reason


@pytest.mark.parametrize("finished", [True, False])
def test_closing_commentary_is_cut_off_a_paraphrase_that_is_whole_without_it(finished: bool) -> None:
    raw = f"{REPHRASE.heading}\n{TEXT}\n\nIt stood again.\n \nI made some changes to the original text. I also"
    assert REPHRASE.parse(raw, finished=finished).text == f"{TEXT}\n\nIt stood again."


def test_entries_are_read_line_by_line_once_each_and_eight_at_most() -> None:
    lines = [f"- Topic: Matter {i}. Content: Fact number {i} of the text." for i in range(12)]
    body = "\n".join([lines[0], "chatter", "- Topic: half an entry", lines[0], *lines[1:]])
    parsed = REFORMAT.parse(f"{REFORMAT.heading}\n{body}")
    assert parsed.text == "\n".join(lines[:8])
    assert [entry.content for entry in parsed.entries] == [f"Fact number {i} of the text." for i in range(8)]


def test_an_entry_that_says_nothing_beyond_its_topic_or_the_prompt_is_left_out() -> None:
    assert REFORMAT.example is not None
    of_example = REFORMAT.example[1].split("\n")[1]
    echo = "- Topic: The new law of 1901. Content: The new law of 1901."
    assert REFORMAT.parse(f"{REFORMAT.heading}\n{of_example}\n{echo}").reason == Reject.NO_ENTRIES
    assert REFORMAT.parse(f"{REFORMAT.heading}\n{of_example}\n{ENTRY}").text == ENTRY


@pytest.mark.parametrize(
    ("body", "finished", "reason"),
    [
        (TEXT, True, Reject.NO_ENTRIES),
        ("- Topic: [Topic] Content: [Content of the entry]", True, Reject.PLACEHOLDER),
        (ENTRY, False, Reject.TRUNCATED),
        (f"{ENTRY}\n- Topic: The val", False, None),
        (f"{ENTRY}\n- Topic: The valley. Content: It was", True, None),
    ],
)
def test_each_fault_of_a_list_has_its_reason(body: str, finished: bool, reason: Reject | None) -> None:
    assert REFORMAT.parse(f"{REFORMAT.heading}\n{body}", finished=finished).reason == reason


def test_the_last_line_of_an_unfinished_list_is_left_out() -> None:
    parsed = REFORMAT.parse(f"{REFORMAT.heading}\n{ENTRY}\n- Topic: The valley. Content: It was", finished=False)
    assert parsed.text == ENTRY
