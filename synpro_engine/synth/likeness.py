"""Which texts are near-duplicates, and which language a text is in: by libraries of the extra `filters`.

They are imported when first used, so that who filters neither need not have them.
"""

from __future__ import annotations

from typing import Any

from synpro_engine.data.ngrams import ngrams_of, words_of

_SHINGLE = 5  # words
_PERMUTATIONS = 128  # the estimate's standard error is 0.04 at the most
_SURE_CHARS, _LOOKED_AT_CHARS = 100, 2000


class Pool:
    """Texts by their MinHash (Broder 1997), asked for near-duplicates by locality-sensitive hashing.

    threshold: least Jaccard similarity of the sets of 5-grams of words; shorter texts count as one n-gram, texts
    without a word are like no other.
    """

    def __init__(self, threshold: float) -> None:
        from rensa import RMinHashDeduplicator  # pyright: ignore[reportAttributeAccessIssue] - compiled, no stubs

        # With a seed: the same texts are found whatever the process.
        self._known = RMinHashDeduplicator(threshold=threshold, num_perm=_PERMUTATIONS, use_lsh=True, seed=1)
        self._count = 0

    def add(self, text: str) -> None:
        """Remember a text; one that is near a known one adds nothing."""
        sketch = _sketch(text)
        if sketch is not None:
            self._known.add(str(self._count), sketch)
            self._count += 1

    def has(self, text: str) -> bool:
        """Whether a near-duplicate was added."""
        sketch = _sketch(text)
        return sketch is not None and self._known.is_duplicate("", sketch)


def _sketch(text: str) -> Any:
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue]

    words = words_of([text])
    keys, _ = ngrams_of(words, min(_SHINGLE, len(words.keys_N)))
    if not len(keys):
        return None
    data, sketch = keys.tobytes(), RMinHash(num_perm=_PERMUTATIONS, seed=1)
    sketch.update([data[at : at + 8] for at in range(0, len(data), 8)])
    return sketch


def language_of(text: str) -> str | None:
    """The ISO 639-1 code of a text's language; None where it is too short to tell."""
    if len(text) < _SURE_CHARS:
        return None
    import py3langid

    return py3langid.classify(text[:_LOOKED_AT_CHARS])[0]
