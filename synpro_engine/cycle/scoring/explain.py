"""One document's influence taken apart into its tokens', with the piece of text that each of them spells.

How tokens and shares are shown is the command line's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from synpro_engine.config import UserError
from synpro_engine.cycle.scoring.model_pair import ModelPair
from synpro_engine.data import Document, ReadConfig, Tokenizer, read_documents
from synpro_engine.dist import Topology, on_main
from synpro_engine.influence import EstimatorConfig, SequenceScore
from synpro_engine.influence.estimator import SharesBy

_LONGEST = 8  # tokens of one character: UTF-8 takes 4 bytes, vocabularies without byte pairs a token each


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A document's score and its pieces of text, each with the share (nats per token) of what spells it."""

    id: str
    score: SequenceScore
    estimator: str
    shares_by: SharesBy
    pieces: tuple[tuple[str, float], ...]


def explain_document(
    pair: ModelPair,
    config: EstimatorConfig,
    documents: str,
    id: str,
    topology: Topology,
    *,
    reading: ReadConfig | None = None,
) -> Explanation:
    """Score the document `id` of the input alone. Collective.

    Raises UserError when it is not there, and for a bad document before it unless `reading` leaves those out.
    """
    config = pair.resolved(config, topology)
    document = on_main(topology, lambda: _document(documents, id, reading))
    estimator, ids = pair.estimator(config, topology), pair.tokenizer.encode(document.text)
    [score] = estimator.score([ids])
    return Explanation(
        id=id,
        score=score,
        estimator=config.estimator,
        shares_by=estimator.shares_by,
        pieces=tuple(token_pieces(pair.tokenizer, ids, score.shares)),
    )


def _document(documents: str, id: str, reading: ReadConfig | None) -> Document:
    for document in read_documents(documents, reading):
        if document.id == id:
            return document
    raise UserError(f"{documents}: no document with id {id!r}")


def token_pieces(tokenizer: Tokenizer, ids: Sequence[int], shares: Sequence[float]) -> list[tuple[str, float]]:
    """The text that each token adds to those before it, beside its share.

    Tokens that only together spell a character make one piece, with the sum of their shares.
    """
    pieces, before, at = [], 0, 0
    while at < len(ids):
        # The fewest tokens that spell whole characters; a fixed number would join what can be told apart.
        for stop in range(at + 1, min(at + _LONGEST, len(ids)) + 1):
            text = _added(tokenizer, ids[before:at], ids[at:stop])
            if "\ufffd" not in text:
                break
        else:
            stop = at + 1  # broken text: token by token
            text = _added(tokenizer, ids[before:at], ids[at:stop])
        pieces.append((text, sum(shares[at:stop])))
        # Decoded behind the last piece only: decoding from the start for each token would be quadratic.
        before, at = at, stop
    return pieces


def _added(tokenizer: Tokenizer, before: Sequence[int], ids: Sequence[int]) -> str:
    """What `ids` spell behind `before`: many tokens mean a leading space only where something stands before them."""
    start = tokenizer.decode(before)
    return tokenizer.decode([*before, *ids])[len(start) :]
