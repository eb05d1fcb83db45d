"""What was made of each document, with the document, as one long document of the pretrained model's tokens.

Texts are encoded apart and put end to end, so that a document within another has the very ids that it has alone, and
each token is known to be of one of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from synpro_engine.config import json_text
from synpro_engine.data import DocumentWriter, TokenCorpus, Tokenizer
from synpro_engine.data.compressed import line_reader
from synpro_engine.data.encoding import Encoded, batched, in_order, usable_cpus
from synpro_engine.data.shards import ShardWriter
from synpro_engine.synth import Made, MegadocConfig, OfDocument, Piece, Stitched, StitchedPart, arranged, by_document

Ids = NDArray[np.integer]


class Stitcher:
    """Stitches the texts of a round to documents; those of one organic document are held at a time."""

    def __init__(
        self,
        config: MegadocConfig,
        seed: int,
        train: TokenCorpus,
        tokenizer: Tokenizer,
        encoders: Mapping[str, Callable[[Sequence[Made]], Encoded]],
    ) -> None:
        """train: the organic documents; encoders: give the tokens of an operation's texts, as of separate documents."""
        self._config, self._seed, self._train = config, seed, train
        self._tokenizer, self._encoders = tokenizer, encoders
        self._separator = np.array(tokenizer.encode(config.separator) if config.separator else [], np.int32)

    def write(self, texts: Mapping[str, Iterator[Made]], shards: ShardWriter, parts: Path) -> dict[str, int]:
        """Write the documents, and what each consists of into the file `parts`; the tokens of each operation's texts.

        Separators are among these, organic tokens are not.
        """
        counts = dict.fromkeys(texts, 0)
        groups = batched(
            by_document(self._train.read_ids(), texts), lambda group: sum(len(m.text) for _, m in group.made)
        )
        with DocumentWriter(parts) as file:
            for _, documents in in_order(groups, self._encode, usable_cpus()):
                for document, encoded in documents:
                    shards.add([document.id], encoded)
                    file.write_line((json_text(asdict(document), ensure_ascii=False) + "\n").encode())
                    for operation, tokens in tokens_by_kind(document):
                        if operation is not None:
                            counts[operation] += tokens
        return counts

    def _encode(self, groups: Sequence[OfDocument]) -> list[tuple[Stitched, Encoded]]:
        ids: dict[str, Ids] = {}
        for operation, encode in self._encoders.items():
            made = [one for group in groups for name, one in group.made if name == operation]
            if made:
                encoded = encode(made)
                rows = np.split(encoded.tokens, np.cumsum(encoded.lengths)[:-1])
                ids |= {one.id: self._bare(row) for one, row in zip(made, rows, strict=True)}
        return [
            self._document(id, group, pieces, ids)
            for group in groups
            for id, pieces in arranged(group, self._config, self._seed)
        ]

    def _bare(self, ids: Ids) -> Ids:
        """The ids of a document without its begin and end."""
        begins = self._tokenizer.bos_id is not None and len(ids) > 1 and int(ids[0]) == self._tokenizer.bos_id
        return ids[int(begins) : -1]

    def _document(
        self, id: str, group: OfDocument, pieces: Sequence[Piece], ids: Mapping[str, Ids]
    ) -> tuple[Stitched, Encoded]:
        begin = [] if self._tokenizer.bos_id is None else [self._tokenizer.bos_id]
        tokens: list[Ids] = [np.array(begin, np.int32)]
        parts, text_bytes = list[StitchedPart](), 0
        for at, piece in enumerate(pieces):
            own = self._bare(self._train.document_tokens(group.number)) if piece.made is None else ids[piece.made.id]
            if at:
                tokens.append(self._separator)
                text_bytes += len(self._config.separator.encode())
            tokens.append(own)
            text = self._tokenizer.decode(own.tolist()) if piece.made is None else piece.made.text
            text_bytes += len(text.encode())
            parts.append(
                StitchedPart(
                    id=group.source if piece.made is None else piece.made.id,
                    operation=piece.operation,
                    ahead=len(self._separator) if at else 0,
                    tokens=len(own) + (len(begin) if at == 0 else 0) + (at == len(pieces) - 1),
                )
            )
        whole = np.concatenate([*tokens, [self._tokenizer.eos_id]]).astype(np.int32)
        return Stitched(id, tuple(parts)), Encoded(whole, np.array([len(whole)]), text_bytes)


def tokens_by_kind(document: Stitched) -> Iterator[tuple[str | None, int]]:
    """(operation, or None of organic text; tokens) of each stretch of a document, in its order and without a gap.

    A separator is of the generation behind it, or of that in front of it where organic text follows.
    """
    before = None
    for part in document.parts:
        yield (part.operation if part.operation is not None else before), part.ahead
        yield part.operation, part.tokens
        before = part.operation


def stitched_documents(parts: Path, first: int = 0) -> Iterator[Stitched]:
    """What each document consists of, in the order of the shards, from number `first` on."""
    for _, line in islice(line_reader(parts), first, None):
        fields = json.loads(line)
        yield Stitched(fields["id"], tuple(StitchedPart(**part) for part in fields["parts"]))


def stretches(parts: Path, operations: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int16]]:
    """Where each stretch of the tokens of all documents begins, and their end, [P + 1]; and of what kind it is, [P].

    A kind is the number of its operation; organic text is the one behind the last.
    """
    numbers: dict[str | None, int] = {name: at for at, name in enumerate(operations)} | {None: len(operations)}
    found = (stretch for document in stitched_documents(parts) for stretch in tokens_by_kind(document) if stretch[1])
    stretch = np.dtype([("kind", np.int16), ("tokens", np.int64)])
    each = np.fromiter(((numbers[kind], tokens) for kind, tokens in found), stretch)
    return np.concatenate([[0], np.cumsum(each["tokens"])]), each["kind"]
