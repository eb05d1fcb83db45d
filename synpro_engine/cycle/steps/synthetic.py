"""What the filters let through of a round's texts, as the pretrained model's tokens."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from synpro_engine.config import UserError, atomic_write_text, json_text
from synpro_engine.cycle.run_layout import (
    CORPUS,
    FILTERED,
    REMOVED,
    STITCHED,
    SYNTHETIC,
    SYNTHETIC_TOKENS,
    shards_path,
)
from synpro_engine.cycle.settings import ShardsSettings
from synpro_engine.cycle.steps.accepted import accepted_records, texts_made
from synpro_engine.cycle.steps.corpus import open_split, open_tokenizer
from synpro_engine.cycle.steps.stitching import Stitcher
from synpro_engine.cycle.steps.tasks import measured_texts
from synpro_engine.data import Tokenizer, open_shards
from synpro_engine.data.compressed import line_reader
from synpro_engine.data.encoding import Encoded, batched, encode_documents, in_order, usable_cpus
from synpro_engine.data.shards import ShardWriter, new_shards
from synpro_engine.dist import Topology, on_main
from synpro_engine.synth import TOKENS, FilterReport, Filters, Made, read_yield


def synthetic_shards_stage(
    into: Path,
    settings: ShardsSettings,
    tokens: Path,
    corpora: Mapping[str, Path],
    topology: Topology,
    *,
    earlier: Mapping[Path, Sequence[Path]] | None = None,
) -> None:
    """Tokenise what the filters let through of a round's texts; `corpora` are generate stages by operation.

    earlier: this stage of each round before, and the generate stages that it was made from; none where no filter looks
    at them.
    """
    tokenizer, config = open_tokenizer(tokens, topology), settings.filter

    def write() -> None:
        if not any(read_yield(path / CORPUS).accepted for path in corpora.values()):
            raise UserError("no completion was accepted, so there is no synthetic text to train on; see the rejects")
        held_out = (text for name in settings.held_out for text in measured_texts(tokens, name, tokenizer))
        encoders = {operation: _encoder(path / CORPUS, tokenizer) for operation, path in corpora.items()}
        with (
            new_shards(shards_path(into, SYNTHETIC), tokenizer) as shards,
            (into / REMOVED).open("w", encoding="utf-8") as removed,
        ):

            def on_removed(made: Made, filter: str, why: str) -> None:
                line = {"id": made.id, "filter": filter, "why": why}
                removed.write(json_text(line, ensure_ascii=False) + "\n")

            filters = Filters(config, held_out, on_removed)
            for stage, made_from in (earlier or {}).items():
                filters.remember(_kept_texts(stage, made_from))
            if filters.surveys:
                for operation, path in corpora.items():
                    filters.survey(operation, texts_made(path, tokens, with_sources=config.reads_sources))
            texts = {
                operation: filters.pass_through(operation, texts_made(path, tokens, with_sources=config.reads_sources))
                for operation, path in corpora.items()
            }
            if settings.megadocs is None:
                counts = _apart(texts, encoders, shards)
            else:
                train = open_split(tokens, "train", tokenizer)
                stitcher = Stitcher(settings.megadocs, settings.seed, train, tokenizer, encoders)
                counts = stitcher.write(texts, shards, into / STITCHED)
            _some_are_left(filters.report)
        atomic_write_text(into / SYNTHETIC_TOKENS, json_text(counts, indent=2) + "\n")
        atomic_write_text(into / FILTERED, json_text(filters.report.model_dump(), indent=2, ensure_ascii=False) + "\n")

    on_main(topology, write, label="tokenize the synthetic texts")


def _apart(
    texts: Mapping[str, Iterable[Made]],
    encoders: Mapping[str, Callable[[Sequence[Made]], Encoded]],
    shards: ShardWriter,
) -> dict[str, int]:
    """Write each text as a document, operation after operation; their tokens by operation."""
    counts = dict.fromkeys(texts, 0)
    for operation, made_of_it in texts.items():
        batches = batched(made_of_it, lambda made: len(made.text))
        for batch, encoded in in_order(batches, encoders[operation], usable_cpus()):
            shards.add((made.id for made in batch), encoded)
            counts[operation] += int(encoded.lengths.sum())
    return counts


def _kept_texts(shards: Path, corpora: Iterable[Path]) -> Iterator[str]:
    """The texts that an earlier round's filters kept, whose ids stand in the order of the texts."""
    if (shards / STITCHED).exists():
        # Whose ids are those of other documents. What was removed is little beside what is held of each text kept.
        removed = {json.loads(line)["id"] for _, line in line_reader(shards / REMOVED)}
        records = chain.from_iterable(map(accepted_records, corpora))
        yield from (record.text for record in records if record.id not in removed)
        return
    kept = iter(open_shards(shards_path(shards, SYNTHETIC)).read_ids())
    wanted = next(kept, None)
    for record in chain.from_iterable(map(accepted_records, corpora)):
        if record.id == wanted:
            yield record.text
            wanted = next(kept, None)


def _some_are_left(report: FilterReport) -> None:
    if not any(one.kept for one in report.by_operation.values()):
        removed = sum((Counter(one.removed) for one in report.by_operation.values()), Counter())
        told = ", ".join(f"{name} {count}" for name, count in removed.most_common())
        raise UserError(f"`filter`: no accepted text is left to train on (removed: {told}); loosen a filter")


def _encoder(corpus: Path, tokenizer: Tokenizer) -> Callable[[Sequence[Made]], Encoded]:
    """What gives the tokens of a corpus's texts: those that lie beside them, else encoded now."""
    if not (corpus / TOKENS).exists():
        return lambda batch: encode_documents(tokenizer, [made.text for made in batch])
    stored, accepted = open_shards(corpus / TOKENS, tokenizer), read_yield(corpus).accepted
    # They are looked up by number: of another number of texts, each would have another one's tokens.
    if stored.num_documents != accepted:
        raise UserError(f"{corpus / TOKENS}: tokens of {stored.num_documents} texts, where {accepted} were accepted")

    def look_up(batch: Sequence[Made]) -> Encoded:
        ids = [stored.document_tokens(made.number) for made in batch]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        return Encoded(np.concatenate(ids), lengths, sum(len(made.text.encode()) for made in batch))

    return look_up
