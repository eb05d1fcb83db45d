"""Megadocs: of which texts each document consists, that every token is known to be of one, and how they are counted."""

import json
import runpy
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers as library

from synpro_engine.cli.main import main
from synpro_engine.config import UserError
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.forecast import forecast
from synpro_engine.cycle.run_layout import CORPUS, STITCHED, TOKENIZER, documents_path, shards_path
from synpro_engine.cycle.settings import SettingsOf, ShardsSettings
from synpro_engine.cycle.steps.accepted import texts_made
from synpro_engine.cycle.steps.stitching import Stitcher, stitched_documents, stretches
from synpro_engine.cycle.steps.synthetic import synthetic_shards_stage
from synpro_engine.data import Document, TokenCorpus, load_tokenizer, open_shards, write_documents, write_shards
from synpro_engine.data.encoding import encode_documents
from synpro_engine.data.shards import new_shards
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.synth import FilterConfig, Made, MegadocConfig, Producer, Stitched, generate_corpus

JOB = runpy.run_path(str(Path(__file__).parents[1] / "synth" / "generation_job.py"))
FILES = ("tokens.bin", "tokens.idx", "ids.jsonl", "stats.json")
OPERATIONS = ("rephrase", "reformat")


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
    write_shards(JOB["make_documents"](), JOB["make_tokenizer"](), shards_path(path, "train"))
    return path


@pytest.fixture(scope="module")
def corpora(topology: Topology, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two operations of two samples, one with token files beside its texts; documents have one slice to several."""
    folder, made = tmp_path_factory.mktemp("round"), {}
    for operation, trained in zip(OPERATIONS, (JOB["make_tokenizer"](), None), strict=True):
        producer: Producer = JOB["make_producer"](trained=trained)
        config = producer.config.model_copy(update={"operations": (operation,)})
        made[operation] = folder / operation
        corpus = made[operation] / CORPUS
        corpus.parent.mkdir()
        generate_corpus(corpus, JOB["make_documents"], replace(producer, config=config), topology, seed=1)
    return made


def _stage(
    into: Path,
    config: MegadocConfig | None,
    tokens: Path,
    corpora: dict[str, Path],
    topology: Topology,
    filters: FilterConfig | None = None,
    seed: int = 5,
) -> list[Stitched]:
    into.mkdir()
    settings = ShardsSettings(filter=filters or FilterConfig(), held_out=(), megadocs=config, seed=seed)
    synthetic_shards_stage(into, settings, tokens, corpora, topology)
    return list(stitched_documents(into / STITCHED)) if config is not None else []


def _made(tokens: Path, corpora: dict[str, Path]) -> dict[str, Made]:
    return {made.id: made for path in corpora.values() for made in texts_made(path, tokens, with_sources=False)}


@pytest.mark.parametrize("order", ["source_first", "source_last", "shuffled"])
@pytest.mark.parametrize("separator", ["\n\n", "", " *** "])
def test_a_document_is_its_texts_as_each_is_encoded_alone(
    order: str, separator: str, topology: Topology, tokens: Path, corpora: dict[str, Path], tmp_path: Path
) -> None:
    config = MegadocConfig.model_validate({"generations": 4, "order": order, "separator": separator})
    found = _stage(tmp_path / "shards", config, tokens, corpora, topology)
    tokenizer, made = JOB["make_tokenizer"](), _made(tokens, corpora)
    organic = {document.id: document.text for document in JOB["make_documents"]()}
    shards = open_shards(shards_path(tmp_path / "shards", "synthetic"), tokenizer)
    assert [document.id for document in found] == list(shards.read_ids()) and len(found) == shards.num_documents
    for at, document in enumerate(found):
        texts = [organic[part.id] if part.operation is None else made[part.id].text for part in document.parts]
        ids = shards.document_tokens(at).tolist()
        expected = tokenizer.encode(texts[0])
        for text in texts[1:]:
            expected += [*tokenizer.encode(separator), *tokenizer.encode(text)]
        assert ids == [*expected, tokenizer.eos_id]
        assert tokenizer.decode(ids) == separator.join(texts)
        for part, begin, end in document.spans():
            own = organic[part.id] if part.operation is None else made[part.id].text
            assert tokenizer.decode(ids[begin:end]) == own
        sources = [part.operation is None for part in document.parts]
        assert sum(sources) == 1 and len(sources) > 1
        assert order == "shuffled" or sources[0 if order == "source_first" else -1]
    stats = json.loads((shards_path(tmp_path / "shards", "synthetic") / "stats.json").read_text())
    assert stats["text_bytes"] == sum(len(tokenizer.decode(ids).encode()) for ids in _rows(shards))
    assert all(source.endswith(":megadoc-0") for source in shards.read_ids())


def _rows(shards: TokenCorpus) -> list[list[int]]:
    return [shards.document_tokens(at).tolist() for at in range(shards.num_documents)]


@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_generations_beyond_the_most_begin_another_document_and_each_stands_once(
    most: int, topology: Topology, tokens: Path, corpora: dict[str, Path], tmp_path: Path
) -> None:
    found = _stage(tmp_path / "shards", MegadocConfig(generations=most), tokens, corpora, topology)
    made, by_source = _made(tokens, corpora), dict[str, list[Stitched]]()
    for document in found:
        by_source.setdefault(document.id.rpartition(":")[0], []).append(document)
    stood = Counter(part.id for document in found for part in document.parts if part.operation is not None)
    assert stood == Counter(dict.fromkeys(made, 1)), "a text is missing, or stands twice"
    fewer = 0
    for source, documents in by_source.items():
        versions = [
            [(made[p.id].member, p.operation) for p in document.parts if p.operation is not None]
            for document in documents
        ]
        distinct = [list(dict.fromkeys(each)) for each in versions]
        assert all(len(each) == most for each in distinct[:-1]) and 1 <= len(distinct[-1]) <= most
        fewer += len(distinct[-1]) < most
        # Slices of a sample are neighbours, in their order; samples come before operations.
        assert [one for each in versions for one in each] == sorted(
            (one for each in versions for one in each), key=lambda one: (one[0], OPERATIONS.index(str(one[1])))
        )
        starts = [int(p.id.rsplit(":", 3)[1].split("-")[0]) for d in documents for p in d.parts if p.operation]
        order = [one for each in versions for one in each]
        assert all(a < b or o != n for a, b, o, n in zip(starts, starts[1:], order, order[1:], strict=False))
        assert [document.id for document in documents] == [f"{source}:megadoc-{n}" for n in range(len(documents))]
    assert (fewer or most == 1) and set(by_source) == {one.document for one in made.values()}, (
        "nothing of a text without generations"
    )


def test_what_filters_remove_is_not_stitched(
    topology: Topology, tokens: Path, corpora: dict[str, Path], tmp_path: Path
) -> None:
    filters, config = FilterConfig(min_chars=30, max_chars=66), MegadocConfig(generations=3, with_source=False)
    found = _stage(tmp_path / "shards", config, tokens, corpora, topology, filters)
    made = _made(tokens, corpora)
    stood = {part.id for document in found for part in document.parts}
    assert stood == {id for id, one in made.items() if 30 <= len(one.text) <= 66} and 0 < len(stood) < len(made)
    counted = json.loads((tmp_path / "shards" / "tokens.json").read_text())
    assert sum(counted.values()) == open_shards(shards_path(tmp_path / "shards", "synthetic")).num_tokens


def test_tokens_are_counted_by_operation_and_those_of_the_source_are_not(
    topology: Topology, tokens: Path, corpora: dict[str, Path], tmp_path: Path
) -> None:
    tokenizer = JOB["make_tokenizer"]()
    found = _stage(tmp_path / "shards", MegadocConfig(generations=2, separator="\n\n\n"), tokens, corpora, topology)
    shards = open_shards(shards_path(tmp_path / "shards", "synthetic"), tokenizer)
    counted = json.loads((tmp_path / "shards" / "tokens.json").read_text())
    organic = {document.id: len(tokenizer.encode(document.text)) for document in JOB["make_documents"]()}
    repeated = sum(organic[part.id] for document in found for part in document.parts if part.operation is None)
    assert sum(counted.values()) + repeated == shards.num_tokens
    offsets, kinds = stretches(tmp_path / "shards" / STITCHED, OPERATIONS)
    assert offsets[-1] == shards.num_tokens
    by_kind = np.bincount(kinds, weights=np.diff(offsets), minlength=3)
    assert by_kind.tolist() == [*(counted[name] for name in OPERATIONS), repeated]


def test_documents_outside_of_the_share_keep_their_generations_apart(
    topology: Topology, tokens: Path, corpora: dict[str, Path], tmp_path: Path
) -> None:
    made = _made(tokens, corpora)
    stitched = dict[float, set[str]]()
    for share in (0.3, 0.7):
        config = MegadocConfig(generations=9, share=share)
        found = _stage(tmp_path / f"{share}", config, tokens, corpora, topology)
        assert Counter(p.id for d in found for p in d.parts if p.operation) == Counter(dict.fromkeys(made, 1))
        long = {document.id.rpartition(":")[0] for document in found if ":megadoc-" in document.id}
        stitched[share] = long
        for document in found:
            if ":megadoc-" not in document.id:
                assert [part.id for part in document.parts] == [document.id]
                assert made[document.id].document not in long
    assert stitched[0.3] < stitched[0.7] < {one.document for one in made.values()}


def test_the_order_is_a_function_of_the_seed(
    topology: Topology, tokens: Path, corpora: dict[str, Path], tmp_path: Path
) -> None:
    config = MegadocConfig(generations=3, order="shuffled")
    orders = [
        [[part.id for part in document.parts] for document in
         _stage(tmp_path / f"{at}", config, tokens, corpora, topology, seed=seed)]
        for at, seed in enumerate((5, 5, 6))
    ]  # fmt: skip
    assert orders[0] == orders[1] != orders[2]
    for name in FILES:
        first, again = (shards_path(tmp_path / f"{at}", "synthetic") / name for at in (0, 1))
        assert first.read_bytes() == again.read_bytes()
    places = Counter(
        next(at for at, p in enumerate(d.parts) if p.operation is None)
        for d in stitched_documents(tmp_path / "0" / STITCHED)
    )
    assert len(places) > 1, "the source is moved too"


def test_a_later_round_knows_the_texts_in_an_earlier_ones_megadocs(
    topology: Topology, tokens: Path, corpora: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("rensa")
    first, second = tmp_path / "first", tmp_path / "second"
    _stage(first, MegadocConfig(generations=2), tokens, corpora, topology, FilterConfig(max_chars=66))
    second.mkdir()
    settings = ShardsSettings(filter=FilterConfig(near_duplicate=0.99), held_out=())
    earlier = {first: list(corpora.values())}
    synthetic_shards_stage(second, settings, tokens, corpora, topology, earlier=earlier)
    kept = set(open_shards(shards_path(second, "synthetic")).read_ids())
    known = {p.id for d in stitched_documents(first / STITCHED) for p in d.parts if p.operation is not None}
    assert kept and known and not kept & known


def test_texts_of_a_corpus_in_another_order_are_refused(
    topology: Topology, tokens: Path, corpora: dict[str, Path], tmp_path: Path
) -> None:
    other = tmp_path / "tokenize"
    JOB["make_tokenizer"]().save(other / TOKENIZER)
    write_shards(JOB["make_documents"]()[::-1], JOB["make_tokenizer"](), shards_path(other, "train"))
    with pytest.raises(
        UserError, match=r"rephrase: doc/.* comes from a document 'doc/.*' that the corpus does not hold"
    ):
        _stage(tmp_path / "shards", MegadocConfig(generations=2), other, corpora, topology)
    assert not (tmp_path / "shards" / STITCHED).exists()


def test_a_tokenizer_with_a_begin_has_it_once_and_a_sentencepiece_one_keeps_each_text(tmp_path: Path) -> None:
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>", "<s>"], initial_alphabet=alphabet
    )
    made.train_from_iterator(["the river rose and the town fell " * 9], trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    named = {"eos_token": "<|endoftext|>", "bos_token": "<s>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.bos_id is not None
    train = TokenCorpus.from_documents([Document("a", "the river rose"), Document("b", "nothing was made")], tokenizer)
    texts = [Made(id=f"a:0-9:rephrase:{n}", text=text, source="", rewards={}, document="a", member=n)
             for n, text in enumerate(("and the town fell", "naïve 漢字"))]  # fmt: skip
    encoders = {"rephrase": lambda batch: encode_documents(tokenizer, [one.text for one in batch])}
    config = MegadocConfig(generations=2, order="source_last")
    with new_shards(tmp_path / "shards", tokenizer) as shards:
        counts = Stitcher(config, 0, train, tokenizer, encoders).write(
            {"rephrase": iter(texts)}, shards, tmp_path / STITCHED
        )
    corpus, [document] = open_shards(tmp_path / "shards", tokenizer), stitched_documents(tmp_path / STITCHED)
    ids = corpus.document_tokens(0).tolist()
    gap = tokenizer.encode("\n\n")
    assert ids == [
        tokenizer.bos_id, *tokenizer.encode(texts[0].text), *gap, *tokenizer.encode(texts[1].text), *gap,
        *tokenizer.encode("the river rose"), tokenizer.eos_id,
    ]  # fmt: skip
    assert sum(part.ahead + part.tokens for part in document.parts) == len(ids)
    assert counts == {"rephrase": len(ids) - len(tokenizer.encode("the river rose")) - 1}
    assert [document.part_at(at) for at in (0, len(ids) - 1)] == [(0, 0), (2, len(tokenizer.encode("the river rose")))]


@pytest.mark.parametrize(
    "wrong", ["{}", "{generations: 0}", "{generations: 2, share: 0.0}", "{generations: 2, order: last}"]
)
def test_settings_that_make_no_sense_are_refused_in_a_line(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "smoke", f"mix.megadocs={wrong}"]) == 2
    told = capsys.readouterr().err.strip()
    assert "mix.megadocs" in told and "\n" not in told


def test_a_recipe_without_megadocs_makes_the_stage_that_it_made_before() -> None:
    plain, long = (SettingsOf(load_recipe("smoke", o)).shards for o in ([], ["mix.megadocs={generations: 2}"]))
    assert plain.recorded() == {} and long.recorded()["megadocs"]["generations"] == 2


def test_the_plan_counts_the_sources_in_megadocs() -> None:
    def shards(*overrides: str) -> float:
        found = forecast(load_recipe("quickstart", ["generate.max_slices=null", *overrides]), 1)
        return next(cost.tokens or 0.0 for cost in found.costs if cost.stage == "round-1/shards")

    plain, train = shards(), 150_000
    assert shards("mix.megadocs={generations: 2}") == plain + train
    assert shards("mix.megadocs={generations: 1, share: 0.5}") == plain + train  # two of half of the documents
    assert shards("mix.megadocs={generations: 2, with_source: false}") == plain
