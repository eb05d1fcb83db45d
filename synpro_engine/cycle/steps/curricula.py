"""The scores by which a training stage repeats and orders documents (`mix`): read once, and kept with the stage.

So its order can be made again when their files have gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from synpro_engine.config import UserError, read_manifest
from synpro_engine.cycle.run_layout import STITCHED, TOKENIZE, USED_SCORES
from synpro_engine.cycle.sections import IN_RUN, OrganicCurriculum
from synpro_engine.cycle.steps.accepted import accepted_records
from synpro_engine.cycle.steps.stitching import stitched_documents
from synpro_engine.data import Curriculum, CurriculumConfig, Score, TokenCorpus, document_scores, recorded_scores
from synpro_engine.dist import Topology, on_main, say
from synpro_engine.influence.in_run import SCORES


def write_scores(
    into: Path,
    configs: Mapping[str, CurriculumConfig],
    corpora: Mapping[str, TokenCorpus],
    shards: Mapping[str, Path],
    made: Mapping[str, Mapping[str, Path]],
    scored: Path,
    topology: Topology,
) -> None:
    """Keep in the stage `into` the scores of the documents of each source whose curriculum goes by any. Collective.

    shards, made: of synthetic sources the `shards` stage, and the `generate` stages by operation. scored: the stage
    that scored the organic text while it trained; beside it lies the `tokenize` stage.
    """

    def write() -> None:
        for name, config in configs.items():
            path = into / USED_SCORES / f"{name}.npy"
            if config.wants_scores and not path.exists():
                corpus = corpora[name]
                if name in shards:
                    texts = _made_texts(corpus, shards[name])
                    found = document_scores(texts, corpus.num_documents, _rewards(made[name], config.by))
                    where = f"{name}: no text"
                else:
                    assert isinstance(config, OrganicCurriculum) and config.scores is not None
                    file = scored / SCORES if config.scores == IN_RUN else Path(config.scores)
                    texts = _organic_texts(corpus, cut=_were_cut(scored.with_name(TOKENIZE)))
                    found = document_scores(texts, corpus.num_documents, recorded_scores(file, config.by))
                    where = f"{file}: no document of the train split"
                known = np.count_nonzero(~np.isnan(found))
                if not known:
                    raise UserError(f"{where} has a score `{config.by}`, by which `mix` goes; are the ids the same?")
                if known < len(found):
                    say(topology, f"{name}: {len(found) - known} of {len(found)} documents have no `{config.by}`")
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f"{name}.partial")
                with partial.open("wb") as stream:
                    np.save(stream, found)
                partial.replace(path)

    on_main(topology, write, label="scores of documents")


def curricula(
    stage: Path, configs: Mapping[str, CurriculumConfig], corpora: Mapping[str, TokenCorpus], seed: int
) -> dict[str, Curriculum]:
    """The curricula of a stage, by source, with the scores that `write_scores` kept there."""
    found = {}
    for name, config in configs.items():
        scores = _kept(stage / USED_SCORES / f"{name}.npy") if config.wants_scores else None
        found[name] = Curriculum(config, scores, corpora[name].num_documents, seed, name)
    return found


def _kept(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise UserError(f"{path}: missing or damaged scores") from None


def _were_cut(tokens: Path) -> bool:
    """Whether the documents of the `tokenize` stage are pieces."""
    return read_manifest(tokens).config["corpus"]["piece_chars"] is not None


def _organic_texts(corpus: TokenCorpus, *, cut: bool) -> Iterator[tuple[int, str]]:
    for number, id in enumerate(corpus.read_ids()):
        yield number, id
        if cut:  # a piece has its document's score, where that was scored as a whole
            yield number, id.rpartition("#")[0]


def _made_texts(corpus: TokenCorpus, shards: Path) -> Iterator[tuple[int, str]]:
    if not (shards / STITCHED).exists():
        yield from enumerate(corpus.read_ids())
        return
    for number, document in enumerate(stitched_documents(shards / STITCHED)):
        yield from ((number, part.id) for part in document.parts if part.operation is not None)


def _rewards(made: Mapping[str, Path], by: str) -> Iterator[Score]:
    for stage in made.values():
        for record in accepted_records(stage):
            if record.rewards and by in record.rewards:
                yield Score(record.id, record.rewards[by], float(len(record.text)))
