"""Where a text must be cut so that nothing in it spells a special token."""

from __future__ import annotations

import re
from collections.abc import Iterable


def inside(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches, at no width, behind the first character of each of `tokens`; never for tokens of one character."""
    rests: dict[str, list[str]] = {}
    for token in tokens:
        if len(token) > 1:
            rests.setdefault(token[0], []).append(re.escape(token[1:]))
    # By first characters, which few of a text's are: else each token would be tried at all of them.
    cuts = (f"(?<={re.escape(first)})(?={'|'.join(those)})" for first, those in rests.items())
    return re.compile("|".join(cuts) or "(?!)")


EVERYWHERE = re.compile(r"(?<=\S)(?=\S)")
"""Matches, at no width, between characters: for tokens that a text spells only once it is normalised."""
