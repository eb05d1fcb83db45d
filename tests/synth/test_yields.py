"""Counting what generation gave: completions by outcome, and what was cut from those that were kept."""

from typing import Any

from synpro_engine.synth import OPERATIONS
from synpro_engine.synth.yields import YieldCounter

TEXT = "The mill in the valley was lost to a fire that spring."
ENTRY = "- Topic: The fire. Content: The mill was lost to a fire."


def record(operation: str, answer: str) -> dict[str, Any]:
    parsed = OPERATIONS[operation].parse(f"{OPERATIONS[operation].heading}\n{answer}")
    return {
        "text": parsed.text, "reason": parsed.reason, "cut": dict(parsed.cut), "rewards": {}, "prompt_tokens": 9,
        "completion_tokens": 20, "text_tokens": 15, "provenance": {"operation": operation, "start": 0, "end": 50},
    }  # fmt: skip


def test_what_was_cut_from_accepted_answers_is_counted_by_cause() -> None:
    counter = YieldCounter()
    for answer in (
        TEXT,
        f"{TEXT}\n\nI hope this helps!",
        f"```\n{TEXT}\n```\nLet me know if it does not.",
        "I hope this helps!",
    ):
        counter.add(record("rephrase", answer))
    counter.add(record("reformat", f"{ENTRY}\n{ENTRY}"))
    report = counter.report()
    rephrase = report.by_operation["rephrase"]
    assert (rephrase.accepted, rephrase.rejected) == (3, {"commentary": 1})
    assert rephrase.cut_chars["commentary"] == len("Ihopethishelps!") + len("Letmeknowifitdoesnot.")
    assert rephrase.cut_answers["commentary"] == 2
    assert report.by_operation["reformat"].cut_chars == {"duplicate": 45}
    assert report.cut_answers == {"commentary": 2, "duplicate": 1, "fence": 1}
    assert "accepted without: commentary 2" in report.summary
