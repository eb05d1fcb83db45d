"""An operation of your own: here a glossary, of terms and what a text says that they mean.

An operation is a prompt, a chunk rule, a parser from an answer to entries (or the reason of a refusal), and the rewards
that its generator is tuned by. A recipe names it as `path/to/file.py:NAME`; all that the built-in ones have (tuning,
generation, filters, report, provenance, trace) goes by NAME from there on. Naming a file in a recipe runs it.

    OWN='generate.operations=[rephrase, examples/own_operation.py:glossary]'
    synpro run quickstart tune={} "$OWN"
    torchrun --nproc-per-node 2 -m synpro_engine run quickstart tune={} "$OWN"
    python examples/own_operation.py                # what is asked, and what is read from an awkward answer

This file, run as a program, prints the conversation that asks for a glossary of a text, and then what the parser makes
of an answer with a greeting, a slot that was never filled in, the same term twice, and an end that was cut off.
"""

import re
import sys
from collections import Counter

from synpro_engine import run_script
from synpro_engine.synth import Cut, Entry, Operation, Parsed, Reject

HEADING = "Here are the terms of the text:"
TEXT = (
    "A tide is the rise and fall of the sea. It is made by the pull of the moon. Where sun and moon pull as one, the "
    "rise is largest: that is a spring tide. Between them lies the neap tide, which hardly lifts a boat."
)
ANSWER = (
    f"{HEADING}\n- tide: The rise and fall of the sea.\n- spring tide: The largest rise, when sun and moon pull as one."
)
_LINE = re.compile(r"\s*(?:[-*\u2022]|\d{1,2}[.)])\s*(?P<term>[^:\n]{1,60}):\s*(?P<meaning>\S.*)")
_SLOT = re.compile(r"[\[<].*[\]>]|\.\.\.")


def read(raw: str, *, min_chars: int, finished: bool = True) -> Parsed:
    """Terms and meanings, each once; never raises. Characters that are not in the text are counted by their cause.

    finished: False where the answer's tokens were used up, so that its last line may lack its end.
    """
    before, heading, body = raw.partition(HEADING)
    if not heading:
        return Parsed(ok=False, text="", reason=Reject.NO_HEADING, exact=False)
    cut: Counter[Cut] = Counter({Cut.PREAMBLE: _size(before)})
    lines = [line for line in body.split("\n") if line.strip()]
    if not finished and lines:
        cut[Cut.UNFINISHED] += _size(lines.pop())
    entries: dict[Entry, None] = {}
    for line in lines:
        match = _LINE.fullmatch(line)
        entry = Entry(topic=match["term"].strip("* "), content=match["meaning"].strip()) if match else None
        if entry is None:
            cut[Cut.OUTSIDE] += _size(line)
        elif _SLOT.fullmatch(entry.content):
            cut[Cut.PLACEHOLDER] += _size(line)
        elif entry in entries:
            cut[Cut.DUPLICATE] += _size(line)
        else:
            entries[entry] = None
    if not entries:
        return Parsed(ok=False, text="", reason=Reject.NO_ENTRIES if finished else Reject.TRUNCATED, exact=False)
    text = "\n".join(f"{entry.topic}: {entry.content}" for entry in entries)
    if len(text) < min_chars:
        return Parsed(ok=False, text="", reason=Reject.TOO_SHORT, exact=False)
    counted = {cause: size for cause, size in sorted(cut.items()) if size}
    # `exact` is what tuning rewards: the heading first, and once. What is only read is trained on all the same.
    return Parsed(ok=True, text=text, entries=tuple(entries), exact=not before and HEADING not in body, cut=counted)


def _size(text: str) -> int:
    return sum(map(len, text.split()))


def paragraphs(text: str) -> list[tuple[int, int]]:
    """The chunk rule: each paragraph of 64 characters or more is a slice. Leave it out to cut as `generate` says."""
    return [match.span() for match in re.finditer(r"\S(?:.|\n(?!\s*\n))*", text) if match.end() - match.start() >= 64]


glossary = Operation(
    name="glossary",
    heading=HEADING,
    instructions=(
        "You write a glossary of the input text: its terms, and what the text says that they mean. Use only what the "
        "text says. One term a line: - term: meaning"
    ),
    prefill=f"{HEADING}\n-",
    example=(TEXT, ANSWER),
    min_chars=20,
    parser=read,
    rewards={"influence": 3.0, "faithfulness": 1.0, "format": 1.0},
    cut=paragraphs,
)


def main() -> None:
    """Show what is asked and what is read."""
    for message in glossary.messages("The ebb is the falling tide."):
        print(f"{message.role}: {message.content}\n")
    awkward = (
        f"Sure!\n{HEADING}\n- ebb: The falling tide.\n- flood: [meaning]\n- ebb: The falling tide.\n1. slack: Still wat"
    )
    parsed = glossary.parse(awkward, finished=False)
    print(f"read: {[(entry.topic, entry.content) for entry in parsed.entries]}, exact: {parsed.exact}")
    print("cut:  " + ", ".join(f"{cause} {size}" for cause, size in parsed.cut.items()))
    print(f"of nothing but a greeting: {glossary.parse('Sure, I can help!').reason}")


if __name__ == "__main__":
    sys.exit(run_script(main))
