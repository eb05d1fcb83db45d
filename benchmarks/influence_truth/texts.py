"""The texts of the influence benchmark: what is trained on, the shifted reference, and candidates to rank.

Organic text is presidential messages before 1930 (written reports to Congress), the reference those since 1980
(speeches to an audience). All are cut into pieces of a few hundred characters; no speech lends pieces to two purposes,
but for candidates of the kind `seen`. Knows texts and token ids; no model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.influence_truth.settings import TruthSettings
from synpro_engine.data import Document, Tokenizer, chunk_documents, read_documents, stable_hash, stable_permutation

ORGANIC_UNTIL, REFERENCE_FROM = 1930, 1980
PIECE_CHARS = 480
SHORTEST = 24
"""Tokens; shorter pieces are left out."""
CORRUPTED = 0.15
"""Share of a corrupted text's letters that are replaced."""
KINDS = {"organic": 4, "seen": 2, "reference-like": 4, "shuffled": 2, "corrupted": 2, "repeated": 2}
"""Kinds of candidate and their parts in sixteen: unseen and trained-on organic text, text like the reference, and three
that are worth little: reference-like text with its words shuffled, organic text with wrong letters, one phrase again
and again."""
NATURAL = ("organic", "seen", "reference-like")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One text to train on. `ids` are its tokens; the kind says how it was made."""

    kind: str
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Pieces by purpose; no speech is in two of them."""

    train: list[Document]
    held_back: list[Document]
    """Organic, not trained on: for candidates."""
    reference: list[Document]
    """What directions are made from."""
    reference_held: list[Document]
    """What they are made to predict on, besides the reference itself."""
    reference_like: list[Document]
    """For candidates."""


def read_texts(source: str, seed: int) -> Texts:
    """Cut the corpus's speeches into pieces and deal the speeches to their purposes, each list in a random order."""
    organic, recent = [], []
    for document in read_documents(source):
        year = int(document.id.split("/")[1][:4])
        if year < ORGANIC_UNTIL:
            organic.append(document)
        elif year >= REFERENCE_FROM:
            recent.append(document)
    train, held_back = _dealt(organic, (3, 1), seed)
    reference, held, like = _dealt(recent, (2, 1, 1), seed)
    return Texts(train=train, held_back=held_back, reference=reference, reference_held=held, reference_like=like)


def _dealt(speeches: Sequence[Document], parts: Sequence[int], seed: int) -> list[list[Document]]:
    """Speeches in turns by their parts, so that each purpose gets all years; then pieces, shuffled."""
    turns = [index for index, part in enumerate(parts) for _ in range(part)]
    dealt: list[list[Document]] = [[] for _ in parts]
    for place, speech in enumerate(speeches):
        dealt[turns[place % len(turns)]].append(speech)
    pieces = (chunk_documents(part, PIECE_CHARS) for part in dealt)
    return [sorted(part, key=lambda piece: stable_hash(seed, "order", piece.id)) for part in pieces]


def make_candidates(texts: Texts, tokenizer: Tokenizer, settings: TruthSettings) -> list[Candidate]:
    """`settings.candidates` of them, by kind and within a kind by speech: neighbours are alike, so they make groups.

    Each has between half a window and a window of tokens, as far as its piece goes.
    """
    rng = np.random.default_rng([settings.seed, 1])
    pools = {"organic": texts.held_back, "seen": texts.train, "reference-like": texts.reference_like}
    pools |= {"shuffled": texts.reference_like[::-1], "corrupted": texts.held_back[::-1], "repeated": texts.held_back}
    found = []
    for kind, count in _counts(settings.candidates, settings.group).items():
        own: list[tuple[str, Candidate]] = []
        for piece in pools[kind]:
            if len(own) == count:
                break
            ids = tokenizer.encode(_made(piece.text, kind, rng))
            length = int(rng.integers(settings.seq_len // 2, settings.seq_len + 1))
            if len(ids) >= SHORTEST:
                own.append((piece.id, Candidate(kind=kind, ids=tuple(ids[:length]))))
        assert len(own) == count, f"too little text for {count} candidates of kind {kind}"
        found += [candidate for _, candidate in sorted(own, key=lambda pair: pair[0])]
    return found


def _counts(total: int, group: int) -> dict[str, int]:
    """Candidates of each kind, whole groups; what rounding leaves goes to the first kind."""
    parts = sum(KINDS.values())
    counts = {kind: total * part // parts // group * group for kind, part in KINDS.items()}
    counts["organic"] += total - sum(counts.values())
    return counts


def _made(text: str, kind: str, rng: np.random.Generator) -> str:
    if kind == "shuffled":
        words = text.split()
        return " ".join(words[i] for i in rng.permutation(len(words)))
    if kind == "corrupted":
        letters = [chr(97 + int(rng.integers(26))) if c.isalpha() and rng.random() < CORRUPTED else c for c in text]
        return "".join(letters)
    if kind == "repeated":
        words = re.findall(r"\S+", text)
        return " ".join(words[: int(rng.integers(4, 13))] * 40)[:PIECE_CHARS]
    return text


def pool_of_groups(settings: TruthSettings) -> list[range]:
    """Candidates of the groups that subsets draw from, by index: twice as many groups as a subset trains on."""
    order = stable_permutation(settings.candidates // settings.group, settings.seed, "pool", "groups")
    chosen = sorted(order[: 2 * settings.groups_of_a_subset].tolist())
    return [range(g * settings.group, (g + 1) * settings.group) for g in chosen]
