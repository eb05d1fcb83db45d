"""What surrounds an answer because of how models are served: reasoning, turns of a conversation, code fences.

Tags and tokens count where only such things stand, at the start or the end of a line; a text that mentions them is left
alone. What is taken away is counted.
"""

from __future__ import annotations

import re
from collections import Counter

from synpro_engine.synth.headings import BUILT_IN
from synpro_engine.synth.parsed import Cut, size

_THINK = r"(?:think|thinking|thought|reasoning)"
# At the start of a line or behind the prefill's key only: a text about HTML may name such tags.
_OPENED = re.compile(
    rf"(?:^|(?<=Topic:)|(?<=Question:)|(?<=Problem:)|(?<=Step 1:))[ \t]*<{_THINK}>", re.IGNORECASE | re.MULTILINE
)
_CLOSED = re.compile(rf"</{_THINK}>", re.IGNORECASE)
_CLOSED_ALONE = re.compile(rf"</{_THINK}>[ \t]*$", re.IGNORECASE | re.MULTILINE)
_HEADING_FIRST = re.compile(
    r"\s*(?:" + "|".join(re.escape(heading.text) for heading in BUILT_IN) + r")"
    r"(?:\s*(?:- Topic:|Question:|Problem:|Step 1:|\|))?",
    re.IGNORECASE,
)
# Decoding drops special ids: what stands here are letters that a model wrote, or tokens that its
# vocabulary does not mark special.
_TURN_ENDS = re.compile(
    r"(?:<\|(?:im_end|endoftext|end_of_text|eot_id|eom_id|end|eos)\|>|</s>|<end_of_turn>|<eos>)+[ \t]*$"
    r"|(?:<\|(?:im_end|endoftext|eot_id)\|>)+(?=<\||\s*\n)|</s>(?=\s*\[INST\])",
    re.MULTILINE,
)
_TURN_BEGINS = re.compile(
    r"^[ \t]*(?:<\|im_start\|>[ \t]*(?P<chatml>\w*)|<\|start_header_id\|>(?P<llama>\w*)<\|end_header_id\|>"
    r"|<\|(?P<olmo>assistant|user|system)\|>|<start_of_turn>[ \t]*(?P<gemma>\w*)|<s>|\[/?INST\])",
    re.MULTILINE,
)
_NEXT_SPEAKER = re.compile(r"\n[ \t]*\n(?:User|Human|System|### (?:Instruction|Input)):[ \t]*$", re.MULTILINE)
_HEADERS = 4  # tokens that a turn may begin with, and more than templates use
FENCE = re.compile(r"^[ \t]*(?:`{3,}|~{3,})[ \t]*[\w+-]*[ \t]*$", re.MULTILINE)


def cleaned(raw: str, cut: Counter[Cut]) -> tuple[str, bool]:
    """The answer itself with plain line ends, and whether the turn was seen to end behind it."""
    # Before turns are looked for, since a thought may quote any of them.
    text = _without_thinking(raw.replace("\r\n", "\n").replace("\r", "\n"), cut)
    for _ in range(_HEADERS):
        begin = _TURN_BEGINS.search(text)
        if begin is None or _says_something(text[: begin.start()]):
            break
        cut[Cut.CHAT_TOKEN] += size(begin.group())
        text = text[: begin.start()] + text[begin.end() :]
    return _first_turn(text, cut)


def _without_thinking(text: str, cut: Counter[Cut]) -> str:
    outside, at = [], 0
    while opened := _OPENED.search(text, at):
        closed = _CLOSED.search(text, opened.end())
        end = closed.end() if closed else len(text)  # never closed: the answer did not come
        outside.append(text[at : opened.start()])
        cut[Cut.THINKING] += size(text[opened.start() : end])
        at = end
    text = "".join([*outside, text[at:]])
    if not outside and (closed := _CLOSED_ALONE.search(text)):  # templates may open the block in the prompt
        heading = _HEADING_FIRST.match(text)
        start = heading.end() if heading and heading.end() <= closed.start() else 0
        cut[Cut.THINKING] += size(text[start : closed.end()])
        text = text[:start] + text[closed.end() :]
    return text


def _says_something(before: str) -> bool:
    heading = _HEADING_FIRST.match(before)
    return bool(before[heading.end() if heading else 0 :].strip())


def _first_turn(text: str, cut: Counter[Cut]) -> tuple[str, bool]:
    """The text up to where the turn ends or another begins, and whether there is such a place."""
    ends = [match for pattern in (_TURN_ENDS, _TURN_BEGINS, _NEXT_SPEAKER) if (match := pattern.search(text))]
    # A token at the very start begins the answer and does not end it.
    ends = [match for match in ends if _says_something(text[: match.start()])]
    if not ends:
        return text, False
    end = min(ends, key=lambda match: match.start())
    # "User:" is a word of the text that the model went on with, and no token.
    token = size(end.group()) if end.re is not _NEXT_SPEAKER else 0
    cut[Cut.CHAT_TOKEN] += token
    cut[Cut.NEXT_TURN] += size(text[end.start() :]) - token
    return text[: end.start()], True


def unfenced(body: str, cut: Counter[Cut]) -> str:
    """Without the marks of a code block that holds all of it, or of which only the closing one came."""
    fences = list(FENCE.finditer(body))
    ends = {*fences[:1], *fences[-1:]}  # no other has nothing before or behind it
    around = [f for f in fences if f in ends and not (body[: f.start()].strip() and body[f.end() :].strip())]
    whole, stray = len(fences) == len(around) == 2, len(fences) % 2 == 1 and len(around) == 1
    if not (whole or stray):  # blocks within the text stay
        return body
    # From the back, so that the places of those before stay as they were.
    for fence in reversed(around):
        cut[Cut.FENCE] += size(fence.group())
        body = body[: fence.start()] + body[fence.end() :]
    return body.strip()
