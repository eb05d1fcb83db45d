"""The shards of a round: what the filters let through, as the tokens that it is encoded to, counted by operation."""

import json
import runpy
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from synpro_engine.config import UserError
from synpro_engine.cycle.run_layout import CORPUS, TOKENIZER, documents_path, shards_path
from synpro_engine.cycle.settings import ShardsSettings
from synpro_engine.cycle.steps.synthetic import synthetic_shards_stage
from synpro_engine.data import Document, open_shards, read_documents, write_documents, write_shards
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.synth import TOKENS, FilterConfig, Producer, generate_corpus

JOB = runpy.run_path(str(Path(__file__).parents[1] / "synth" / "generation_job.py"))
FILES = ("tokens.bin", "tokens.idx", "ids.jsonl", "stats.json")


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as topology:
        yield topology


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stage reads of `tokenize`."""
    path = tmp_path_factory.mktemp("tokenize")
    JOB["make_tokenizer"]().save(path / TOKENIZER)
    write_documents(documents_path(path, "train"), JOB["make_documents"]())
    return path


@pytest.fixture(scope="module")
def corpora(topology: Topology, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two operations' stages, one with token files beside its texts and one without."""
    folder, made = tmp_path_factory.mktemp("round"), {}
    for operation, trained in (("rephrase", JOB["make_tokenizer"]()), ("reformat", None)):
        producer: Producer = JOB["make_producer"](trained=trained)
        config = producer.config.model_copy(update={"operations": (operation,)})
        made[operation] = folder / operation
        corpus = made[operation] / CORPUS
        corpus.parent.mkdir()
        generate_corpus(corpus, JOB["make_documents"], replace(producer, config=config), topology, seed=1)
        assert (corpus / TOKENS).exists() == (trained is not None)
    return made


@pytest.mark.parametrize("config", [FilterConfig(), FilterConfig(min_chars=30, max_chars=66)])
def test_shards_hold_what_is_left_of_each_operation_as_it_is_encoded(
    topology: Topology, tokens: Path, corpora: dict[str, Path], config: FilterConfig, tmp_path: Path
) -> None:
    into = tmp_path / "shards"
    into.mkdir()
    synthetic_shards_stage(into, ShardsSettings(filter=config, held_out=()), tokens, corpora, topology)
    tokenizer, kept = JOB["make_tokenizer"](), dict[str, list[Document]]()
    for operation, path in corpora.items():
        low, high = config.min_chars or 0, config.max_chars or 10**9
        accepted = list(read_documents(str(path / CORPUS)))
        kept[operation] = [document for document in accepted if low <= len(document.text) <= high]
        assert 0 < len(kept[operation]) <= len(accepted) - config.any
    write_shards([d for documents in kept.values() for d in documents], tokenizer, tmp_path / "again")
    for name in FILES:
        assert (shards_path(into, "synthetic") / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    counted = json.loads((into / "tokens.json").read_text())
    assert counted == {o: sum(len(tokenizer.encode(d.text)) + 1 for d in ds) for o, ds in kept.items()}
    assert sum(counted.values()) == open_shards(shards_path(into, "synthetic"), tokenizer).num_tokens


def test_texts_like_those_that_an_earlier_round_kept_are_removed(
    topology: Topology, tokens: Path, corpora: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("rensa")
    first, second = tmp_path / "first", tmp_path / "second"
    for into in (first, second):
        into.mkdir()
    # The first round keeps some of the texts, and the second has the same again.
    some, alike = FilterConfig(max_chars=66), FilterConfig(near_duplicate=0.99)
    synthetic_shards_stage(first, ShardsSettings(filter=some, held_out=()), tokens, corpora, topology)
    earlier = {first: list(corpora.values())}
    settings = ShardsSettings(filter=alike, held_out=())
    alone = tmp_path / "alone"
    alone.mkdir()
    synthetic_shards_stage(alone, settings, tokens, corpora, topology)
    synthetic_shards_stage(second, settings, tokens, corpora, topology, earlier=earlier)
    ids = {into: set(open_shards(shards_path(into, "synthetic")).read_ids()) for into in (first, second, alone)}
    assert ids[first] & ids[alone] and ids[second] and not ids[second] & ids[first]
    assert ids[second] <= ids[alone], "what the first round did not keep is judged as it is without it"


def test_token_files_of_another_number_of_texts_are_refused(
    topology: Topology, tokens: Path, corpora: dict[str, Path], tmp_path: Path
) -> None:
    stage = Path(shutil.copytree(corpora["rephrase"], tmp_path / "rephrase"))
    accepted = list(read_documents(str(stage / CORPUS)))
    write_shards(accepted[1:], JOB["make_tokenizer"](), stage / CORPUS / TOKENS)
    settings = ShardsSettings(filter=FilterConfig(), held_out=())
    told = f"{TOKENS}: tokens of {len(accepted) - 1} texts, where {len(accepted)} were accepted"
    with pytest.raises(UserError, match=told):
        synthetic_shards_stage(tmp_path, settings, tokens, {"rephrase": stage}, topology)
    assert not shards_path(tmp_path, "synthetic").exists()


def test_where_filters_leave_nothing_they_are_named(
    topology: Topology, tokens: Path, corpora: dict[str, Path], tmp_path: Path
) -> None:
    settings = ShardsSettings(filter=FilterConfig(min_chars=10**6), held_out=())
    with pytest.raises(UserError, match=r"`filter`: no accepted text is left to train on \(removed: length \d+\)"):
        synthetic_shards_stage(tmp_path, settings, tokens, corpora, topology)
    assert not shards_path(tmp_path, "synthetic").exists()
