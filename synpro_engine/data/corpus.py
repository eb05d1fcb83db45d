"""A tokenised corpus in memory (usually mapped): documents' ids end to end, EOS after each."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from synpro_engine.config import UserError
from synpro_engine.data.documents import Document
from synpro_engine.data.tokenizer import Tokenizer, document_ids


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenCorpus:
    """tokens [T] integer ids; offsets [D + 1] int64, document i is tokens[offsets[i]:offsets[i + 1]]."""

    tokens: NDArray[np.integer]
    offsets: NDArray[np.int64]
    eos_id: int
    text_bytes: int
    """UTF-8 bytes of all texts, for bits per byte."""
    fingerprint: str
    """The tokenizer's."""
    read_ids: Callable[[], Iterable[str]]
    """The documents' ids in their order, read as they are asked for: a hundred million of them take gigabytes."""
    learnt: NDArray[np.bool_] | None = None
    """Which tokens are targets, [T]; None for all. Prompts of tasks are none (see `prompted`)."""

    @classmethod
    def from_documents(cls, documents: Iterable[Document], tokenizer: Tokenizer) -> TokenCorpus:
        """Tokenise a small corpus without files."""
        listed = list(documents)
        ids = [document_ids(tokenizer, document.text) for document in listed]
        return cls(
            tokens=np.array([id for document in ids for id in document], dtype=np.int32),
            offsets=np.cumsum([0, *map(len, ids)], dtype=np.int64),
            eos_id=tokenizer.eos_id,
            text_bytes=sum(len(document.text.encode()) for document in listed),
            fingerprint=tokenizer.fingerprint,
            read_ids=lambda: [document.id for document in listed],
        )

    @property
    def num_tokens(self) -> int:
        """T, with the EOS of each document."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """D."""
        return len(self.offsets) - 1

    def document_tokens(self, index: int) -> NDArray[np.integer]:
        """Return the ids of one document, its EOS included: a view, [tokens of it]."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def document_learnt(self, index: int) -> NDArray[np.bool_]:
        """Return which tokens of one document are targets, [tokens of it]."""
        begin, end = self.offsets[index], self.offsets[index + 1]
        return np.ones(end - begin, dtype=bool) if self.learnt is None else self.learnt[begin:end]

    @property
    def num_learnt(self) -> int:
        """Tokens that are targets."""
        return self.num_tokens if self.learnt is None else int(np.count_nonzero(self.learnt))

    @functools.cached_property
    def _ids(self) -> list[str]:
        return list(self.read_ids())

    def document_id(self, index: int) -> str:
        """Return the id of one document; the list of ids is read when the first is asked for."""
        return self._ids[index]

    def head(self, tokens: int) -> TokenCorpus:
        """The first documents, as many as so many tokens hold, as views. UserError where not one is so short.

        Bytes of its text are not known (0), so that nothing is said per byte of it.
        """
        documents = int(np.searchsorted(self.offsets, tokens, side="right")) - 1
        if documents == 0:
            raise UserError(f"{tokens} tokens do not hold the first document, which has {self.offsets[1]}")
        end, read_ids = int(self.offsets[documents]), self.read_ids
        return replace(
            self,
            tokens=self.tokens[:end],
            offsets=self.offsets[: documents + 1],
            text_bytes=self.text_bytes if documents == self.num_documents else 0,
            read_ids=lambda: itertools.islice(read_ids(), documents),
            learnt=None if self.learnt is None else self.learnt[:end],
        )

    def numbers_of(self, ids: Collection[str]) -> dict[str, int]:
        """Return the numbers of documents by their ids, of those that are there; no list of all ids is held for it."""
        return {id: number for number, id in enumerate(self.read_ids()) if id in ids}
