"""Telling talk about an answer from the answer: what models say before and after it.

It is recognised by English phrases of assistants. They count at the start and the end of a text only, and only where
they speak of the rewriting or to the user, so that a text *about* grammar, texts or constitutions keeps every line.
What is taken for talk is counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from synpro_engine.synth.parsed import Cut, size

_LOOKED_AT = 400  # characters of a line
_VERBS = (
    r"(?:made|changed|rephrased|rewrote|rewritten|reworded|paraphrased|edited|revised|added|replaced|removed|adjusted"
    r"|kept|preserved|maintained|retained|tried|aimed|used|simplified|corrected|omitted|combined)"
)
_OBJECTS = (
    r"(?:(?:changes?|edits|adjustments)\b.{0,80}\b(?:text|wording|clarity|readability|grammar|flow|meaning|tone)"
    r"|(?:the|your|this|its|some)\s+(?:(?:original|input|provided|given|rephrased|whole|entire)\s+)*"
    r"(?:text|passage|sentences?|paragraphs?|wording|phrasing|meaning|tone|layout|structure|message|words|version)\b"
    r"|\w+\s+(?:words|synonyms|wording|phrasing)\b|for\s+(?:clarity|readability))"
)
_RESULT = r"(?:above|paraphrased|rephrased|rewritten|revised|reworded|edited)"
_THING = r"(?:version|text|passage|paragraph|paraphrase|rewrite|rewriting|rendition)"
_KEEPS = (
    r"(?:keeps?|maintains?|preserves?|retains?|conveys?|captures?|aims?|uses?|avoids?|simplifies|has been|should"
    r"|follows|makes|is (?:more|written|meant|intended|a paraphrase))"
)
_TALK = re.compile(
    r"\W{0,8}(?:(?:please\s+)?note(?:\s+that|:)\s*)?(?:"
    rf"I(?:['\u2019]ve|\s+have|\s+will)?(?:\s+also)?\s+{_VERBS}\b.{{0,60}}?\b{_OBJECTS}"
    rf"|(?:this|the|in\s+this|in\s+the)\s+{_RESULT}\s+{_THING}(?:,\s+I\b|\s+(?:above\s+)?{_KEEPS}\b)"
    rf"|this\s+(?:paraphrase|rewrite|rewriting|rendition)\s+{_KEEPS}\b"
    r"|in\s+this\s+(?:version|paraphrase|rewrite|rewriting|rendition),?\s+I\b"
    r"|the\s+original\s+(?:meaning|tone|message|intent|layout|structure|text)(?:\s+and\s+\w+)*\s+(?:is|are|was|were|has"
    r"\s+been|have\s+been|remains?)\s+(?:preserved|maintained|kept|retained|unchanged|intact)"
    r"|(?:(?:main|key|the)\s+)*(?:changes|edits)\s+(?:I\s+)?made\W*$|explanation\s+of\s+(?:the\s+|my\s+)?changes\W*$"
    r"|(?:word|character)\s+count\W+\d+\W*(?:(?:words|characters)\W*)?$"
    r"|(?:these|the|the\s+above)\s+(?:structured\s+)?entries\s+(?:cover|capture|summari[sz]e|are\s+based|provide|highlight)"
    r"|(?:please\s+|just\s+)?let\s+me\s+know\s+(?:if|whether|what|how)\b"
    r"|(?:I\s+)?hope\s+(?:this|that|it|these)\s+(?:helps?|is\s+helpful|meets|works)\b|(?:please\s+)?feel\s+free\s+to\s+\w+"
    r"\s+(?:me|if|the|this|any|out)\b|(?:would|do)\s+you\s+(?:like|want)\s+me\s+to\b"
    r"|is\s+there\s+anything\s+else\s+(?:I|you)\b"
    r"|if\s+you(?:['\u2019]d\s+like|\s+(?:need|want|have|would\s+like))\s+(?:any|me|more|further|another|additional|the)\s"
    r"(?:.{0,40}\b(?:changes|questions|entries|version|rephrase|help|assistance|let\s+me\s+know)\b))",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"\W{0,4}(?:sure|certainly|of\s+course|okay|ok|absolutely|great)(?:\s+thing)?[!,.:\u2014-](?:.{0,80}:|.{0,40}"
    r"(?:help|version|text|go)[.!:]?)?\s*$",
    re.IGNORECASE,
)
_LIST_ITEM = re.compile(r"[ \t]*(?:[-*+\u2022\u2013]|\(?\d{1,3}[.)])[ \t]")
_RULE = re.compile(r"[ \t]*(?:-{3,}|\*{3,}|_{3,}|={3,})[ \t]*$")


def is_talk(line: str) -> bool:
    """Whether a line speaks of the answer or to the user."""
    # A bounded head: the patterns have gaps of up to 80 characters, and a line may be a whole document.
    return bool(_TALK.match(line[:_LOOKED_AT]))


def without_commentary(body: str, cut: Counter[Cut]) -> tuple[str, bool]:
    """The text without talk before and after it, and whether there was some after it (the text is then whole)."""
    lines = body.split("\n")
    first = 0
    while first < len(lines) and (not lines[first].strip() or is_talk(lines[first]) or _OPENING.match(lines[first])):
        first += 1
    last = _end_of_text(lines[first:]) + first
    cut[Cut.COMMENTARY] += size("\n".join([*lines[:first], *lines[last:]]))
    return "\n".join(lines[first:last]).strip(), any(line.strip() for line in lines[last:])


def _end_of_text(lines: Sequence[str]) -> int:
    """Where closing talk begins: a line of it, from which on there is only more of it, its paragraph, or its list."""
    end, talks = len(lines), False
    for index, line in enumerate(lines):
        if is_talk(line):
            end, talks = min(end, index), True
        elif not line.strip() or _RULE.match(line):
            continue
        # Real text behind talk means that the talk stood within the text, which then keeps all of it.
        elif not (talks and (_LIST_ITEM.match(line) or lines[index - 1].strip())):
            end, talks = len(lines), False
    while end and (not lines[end - 1].strip() or _RULE.match(lines[end - 1])) and end < len(lines):
        end -= 1
    return end
