"""What ends a completion beside its room: a stop id, a string in its text, a run of tokens that comes over and over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

End = Literal["id", "text", "loop", "length"]
TextOf = Callable[[Sequence[int]], str]

_REPEATS = 3
"""How often a run must stand at the end, one behind the other, to be a loop: twice is a refrain."""
_MARGIN = 4
"""Characters in front of a string that is looked for: a decoder may drop the space or spoil the letter that it begins
with."""


@dataclass(frozen=True, kw_only=True)
class Endings:
    """When completions of one request end. `text_of` decodes ids, and is asked where there are strings only."""

    stop_ids: frozenset[int] = frozenset()
    texts: tuple[str, ...] = ()
    text_of: TextOf | None = None
    loop_tokens: int = 0

    def watch(self) -> LoopWatch | None:
        """For a new completion."""
        return LoopWatch(self.loop_tokens) if self.loop_tokens else None

    def stopped_by(self, token_ids: Sequence[int]) -> str | None:
        """The first of the strings in the text that ends with these ids; asked behind every token, so an end is new."""
        if not self.texts:
            return None
        assert self.text_of is not None, "strings need a tokenizer"
        # The last token may hold the end of a string and a long tail of its own behind it.
        wanted = max(map(len, self.texts)) + _MARGIN + len(self.text_of(token_ids[-1:]))
        count = 8
        text = self.text_of(token_ids[-count:])
        # Tokens may be pieces of letters or have no text at all, so that no fixed number of them is enough.
        while len(text) < wanted and count < len(token_ids):
            count *= 2
            text = self.text_of(token_ids[-count:])
        found = [(at, stop) for stop in self.texts if (at := text.find(stop)) >= 0]
        return min(found)[1] if found else None


class LoopWatch:
    """Notices when the last `tokens` ids of a completion are one run of at most a third of them, over and over."""

    def __init__(self, tokens: int) -> None:
        self._tokens, self._ids = tokens, np.full(tokens, -1, dtype=np.int64)
        self._alike = np.zeros(tokens // _REPEATS, dtype=np.int64)
        """By length of the run less 1: how many ids in a row equalled the one so far before them."""

    def note(self, token: int) -> bool:
        """Another id was drawn; whether it closes a loop."""
        periods = len(self._alike)
        before = self._ids[: -periods - 1 : -1]
        self._alike = np.where(before == token, self._alike + 1, 0)
        self._ids[:-1] = self._ids[1:]
        self._ids[-1] = token
        return bool((self._alike >= self._tokens - 1 - np.arange(periods)).any())
