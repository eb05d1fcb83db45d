"""Parts of one text as token ids, with the tokens that running text has.

Tokenised apart they would have others where one ends with a blank: `Answer: ` and `darwin` become `: Ġ dar win`, and
running text has `: Ġdar win`. What a model was never trained on would then stand before every answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from synpro_engine.data.tokenizer import Tokenizer

_MOST_BLANKS = 16  # behind one part, each of which is tried


def encode_parts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each of the texts within all of them in a row, of which the parts' ids together are the encoding.

    Blanks at the end of a part whose token goes on in the next part are the next one's. Where a token has more than
    blanks of both parts (as of `foo` and `bar`), no border is one of running text, and all are tokenised apart.
    """
    text, whole = "".join(texts), tokenizer.encode("".join(texts))
    at, borders = 0, [0]
    for end in accumulate(map(len, texts[:-1])):
        found = next(_borders(tokenizer, text, end, whole, (at, borders[-1])), None)
        if found is None:
            return [tokenizer.encode(part) for part in texts]
        at, border = found
        borders.append(border)
    return [whole[begin:end] for begin, end in pairwise([*borders, len(whole)])]


def encode_answers(tokenizer: Tokenizer, asked: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """The ids of each prompt and of the answer behind it; all answers have the same of their prompts' blanks.

    Otherwise some would be scored with the blank before them and some without. Where `encode_parts` tokenises apart,
    so does this.
    """
    whole = [tokenizer.encode(prompt + answer) for prompt, answer in asked]
    prompts = list(dict.fromkeys(prompt for prompt, _ in asked))  # which is one, but of few tasks
    shortest = min(prompts, key=lambda prompt: len(prompt) - len(prompt.rstrip()))
    for cut in _cuts(shortest, len(shortest)):
        blanks = len(shortest) - cut
        before = {prompt: tokenizer.encode(prompt[: len(prompt) - blanks]) for prompt in prompts}
        given = [before[prompt] for prompt, _ in asked]
        if all(one[: len(ids)] == ids != one for ids, one in zip(given, whole, strict=True)):
            return [(ids, one[len(ids) :]) for ids, one in zip(given, whole, strict=True)]
    return [(tokenizer.encode(prompt), tokenizer.encode(answer)) for prompt, answer in asked]


def _borders(
    tokenizer: Tokenizer, text: str, end: int, whole: list[int], before: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """Where the part that ends at `end` may end, as a place in the text and in its ids, the last one first.

    before: the same of the border before it.
    """
    for cut in _cuts(text, end):
        # From the border before, so that long conversations take no longer for each turn; from the beginning for
        # tokenizers that put a space there.
        for start, first in dict.fromkeys([before, (0, 0)]):
            ids = tokenizer.encode(text[start:cut])
            if whole[first : first + len(ids)] == ids:
                yield cut, first + len(ids)


def _cuts(text: str, end: int) -> Iterator[int]:
    """Places from `end` back to the last character before it that is no blank."""
    bare = len(text[:end].rstrip())
    yield from range(end, max(bare, end - _MOST_BLANKS), -1)
    yield bare
