"""What a measure says about sources, kept so that each source is measured once.

A source comes back with every completion of its slice, while the measure of a source costs a forward pass or two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence


class SourceValues:
    """One number for each source that was measured. Keeps digests, not texts: a run may see a whole corpus."""

    def __init__(self) -> None:
        self._values: dict[bytes, float] = {}

    def unseen(self, sources: Iterable[str]) -> list[str]:
        """Those that have no value yet, each once, in order."""
        return [source for source in dict.fromkeys(sources) if _digest(source) not in self._values]

    def store(self, sources: Sequence[str], values: Sequence[float]) -> None:
        """Keep the values of `sources`, one for each."""
        self._values.update(zip(map(_digest, sources), values, strict=True))

    def __getitem__(self, source: str) -> float:
        """The value of a source that was stored."""
        return self._values[_digest(source)]


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
