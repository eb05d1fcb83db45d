"""Megadocs: what was made of a document, and the document itself, as one long document (Kim et al., arXiv 2603.18534).

Knows which texts stand in which document, and in which order; not how they are encoded. Texts pass by document after
document, as generation goes through the corpus, so that those of one document alone are held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from synpro_engine.config import Config, UserError
from synpro_engine.data import stable_hash, stable_permutation
from synpro_engine.synth.filters import Made


class MegadocConfig(Config):
    """All that was made of a document, and the document itself, as one long document (arXiv 2603.18534)."""

    generations: int = Field(gt=0)
    """Most generations in one; those beyond begin another one. A generation is what one operation and sample made of a
    document: the texts of all its slices, in their order. Of a document with fewer there is what there is."""
    with_source: bool = True
    """Whether the document itself is in it. Its tokens count as organic ones that are repeated."""
    order: Literal["source_first", "source_last", "shuffled"] = "source_first"
    """Where the document stands. Generations stand in the order of their samples, and of the operations in each;
    `shuffled`: all in an order by hash."""
    separator: str = "\n\n"
    """Text between two of them; it counts to the generation in front of it or behind it, and never as organic."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Of the documents, by hash, whose generations are stitched. Those of the others stay documents of their own."""


@dataclass(frozen=True, slots=True)
class StitchedPart:
    """A text within a document that is trained on."""

    id: str
    """Of the text that was made, or of the organic document."""
    operation: str | None
    """What made it; None of organic text."""
    ahead: int
    """Tokens of the separator in front of it."""
    tokens: int
    """Of it. A begin of the document counts to its first part, the end to its last."""


@dataclass(frozen=True, slots=True)
class Stitched:
    """A document that is trained on, and what it is made of."""

    id: str
    parts: tuple[StitchedPart, ...]

    def part_at(self, offset: int) -> tuple[int, int]:
        """Of a token of the document: the number of its part, and its place in it; below 0 within the separator."""
        for number, part in enumerate(self.parts):
            if offset < part.ahead + part.tokens:
                return number, offset - part.ahead
            offset -= part.ahead + part.tokens
        raise IndexError(offset)

    def spans(self) -> Iterator[tuple[StitchedPart, int, int]]:
        """Each part, and which tokens of the document are its own, the separator in front of it aside."""
        begin = 0
        for part in self.parts:
            yield part, begin + part.ahead, begin + part.ahead + part.tokens
            begin += part.ahead + part.tokens


@dataclass(frozen=True)
class Piece:
    """A text on its way into a document: one that was made, with its operation, or (None) the source itself."""

    operation: str | None = None
    made: Made | None = None


@dataclass(frozen=True, kw_only=True)
class OfDocument:
    """All that was made of a document."""

    number: int
    """Of the document, in the order of the corpus."""
    source: str
    """Its id."""
    made: list[tuple[str, Made]] = field(default_factory=list)
    """With the operation, slices of a sample in their order."""


def by_document(ids: Iterable[str], streams: Mapping[str, Iterator[Made]]) -> Iterator[OfDocument]:
    """What several operations made of each document, of which anything was made.

    ids: of all documents, in the order of the corpus, in which each operation's texts stand too. UserError where they
    do not.
    """
    ahead = {operation: next(texts, None) for operation, texts in streams.items()}
    for number, source in enumerate(ids):
        found = OfDocument(number=number, source=source)
        for operation, texts in streams.items():
            while (made := ahead[operation]) is not None and made.document == source:
                found.made.append((operation, made))
                ahead[operation] = next(texts, None)
        if found.made:
            yield found
    for operation, made in ahead.items():
        if made is not None:
            raise UserError(
                f"{operation}: {made.id} comes from a document {made.document!r} that the corpus does not hold, or in"
                " another order"
            )


def arranged(group: OfDocument, config: MegadocConfig, seed: int) -> Iterator[tuple[str, Sequence[Piece]]]:
    """The documents that are made of what was made of one, each with its id and its texts in their order."""
    if stable_hash(seed, "megadocs.share", group.source) >= config.share * 2**64:
        yield from ((made.id, [Piece(operation, made)]) for operation, made in group.made)
        return
    first = group.made[0][1].id
    # What stands before the source in an id of a later round.
    prefix = first[: first.index(f"{group.source}:")]
    generations = _generations(group, config, seed)
    for number, begin in enumerate(range(0, len(generations), config.generations)):
        chosen = generations[begin : begin + config.generations]
        if config.with_source:
            chosen.insert(_place(group.source, number, len(chosen), config, seed), [Piece()])
        yield f"{prefix}{group.source}:megadoc-{number}", [piece for generation in chosen for piece in generation]


def _generations(group: OfDocument, config: MegadocConfig, seed: int) -> list[list[Piece]]:
    found: dict[tuple[int, str], list[Piece]] = {}
    for operation, made in group.made:
        found.setdefault((made.member, operation), []).append(Piece(operation, made))
    # Samples first, so that the few that fit are of all operations. Sorting is stable: these keep their order.
    ordered = [found[key] for key in sorted(found, key=lambda key: key[0])]
    if config.order == "shuffled":
        places = stable_permutation(len(ordered), seed, "megadocs.order", group.source)
        ordered = [ordered[place] for place in places.tolist()]
    return ordered


def _place(source: str, number: int, others: int, config: MegadocConfig, seed: int) -> int:
    if config.order == "shuffled":
        return stable_hash(seed, "megadocs.source", f"{source}\0{number}") % (others + 1)
    return 0 if config.order == "source_first" else others
