"""Guesses of a sequence's next tokens: what followed its last ones where they stood before, in prompt or completion.

Whoever rephrases a text repeats much of it. Tokens that are guessed right are fed together with the latest one and so
cost no step of their own (prompt lookup, Saxena 2023; speculative decoding, arXiv 2211.17192). A guess never decides
what is drawn: each position's token is drawn by its own random number, and a guess stands while it equals the draw.
"""

from __future__ import annotations

from collections.abc import Sequence

Pairs = dict[tuple[int, int], list[int]]
"""By two neighbouring ids: the places of the ids that follow them."""

_LONGEST = 8
"""Ids back to which two places are compared; longer matches are trusted alike."""
_PLACES = 16
"""Most places of a pair that are compared, of prompt and completion each."""
_RATE = 0.15
"""Weight of the latest outcome in the share of right guesses."""
_FREE_ROWS = {"cpu": 16, "cuda": 256}
"""Rows that a step computes in the time in which it reads the weights: while there are fewer, more cost little."""


def least_hope(rows: int, device: str) -> float:
    """How likely a guess must be to be worth its row, beside `rows` rows that are fed anyway.

    A step of N rows takes F + N in units of one row's products, F the reading of the weights, and brings as many
    tokens: one row more pays where it brings more than rows / (F + rows) of a token.
    """
    return rows / (rows + _FREE_ROWS.get(device, _FREE_ROWS["cuda"]))


def pairs_of(ids: Sequence[int]) -> Pairs:
    """The places behind each pair of neighbours, but for the last pair, behind which nothing stands yet."""
    pairs: Pairs = {}
    for place in range(2, len(ids)):
        pairs.setdefault((ids[place - 2], ids[place - 1]), []).append(place)
    return pairs


class Drafter:
    """Guesses for one sequence. How far it trusts a guess it learns from all that came before, fed or not."""

    def __init__(self, prompt: Sequence[int], pairs: Pairs) -> None:
        """`pairs` are those of the prompt, which its group shares."""
        self._ids = list(prompt)
        self._prompt, self._own = pairs, dict[tuple[int, int], list[int]]()
        self._right = [0.5] * (_LONGEST + 1)
        """By the ids that matched: how often the next one was right."""
        self._at, self._matched = 0, 0
        self._look()

    def note(self, token: int) -> None:
        """Another token was drawn."""
        followed = False
        if self._matched:
            followed = self._ids[self._at] == token
            self._right[self._matched] += _RATE * (followed - self._right[self._matched])
        if len(self._ids) >= 2:
            self._own.setdefault((self._ids[-2], self._ids[-1]), []).append(len(self._ids))
        self._ids.append(token)
        if followed:
            self._at, self._matched = self._at + 1, min(self._matched + 1, _LONGEST)
        else:
            self._look()

    def draft(self, most: int, least: float) -> list[int]:
        """At most so many tokens, each as likely to be right, with all before it, as `least`."""
        if not self._matched:
            return []
        count, hope = 0, 1.0
        while count < most:
            hope *= self._right[min(self._matched + count, _LONGEST)]
            if hope < least:
                break
            count += 1
        return self._ids[self._at : self._at + count]

    def _look(self) -> None:
        """Find the place whose ids before it match most of the last ones; in the prompt first, the earliest first."""
        self._matched = 0
        if len(self._ids) < 2:
            return
        pair = self._ids[-2], self._ids[-1]
        for place in [*self._prompt.get(pair, ())[:_PLACES], *self._own.get(pair, ())[-_PLACES:]]:
            matched = 2
            while matched < min(_LONGEST, place) and self._ids[place - 1 - matched] == self._ids[-1 - matched]:
                matched += 1
            if matched > self._matched:
                self._at, self._matched = place, matched
