"""What a trace says of tokens and documents, against the batches that training was given, in a run that was resumed."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import tokenizers as library

import synpro_engine.train.run as training
from synpro_engine.cli.main import main
from synpro_engine.cli.trace_text import lines
from synpro_engine.config import UserError, read_manifest
from synpro_engine.cycle import Cycle, load_recipe
from synpro_engine.cycle.summaries import report_data
from synpro_engine.cycle.summaries.finished_run import FinishedRun
from synpro_engine.cycle.summaries.provenance import provenance
from synpro_engine.cycle.tracing import DocumentTrace, trace_document, trace_token, windows
from synpro_engine.cycle.tracing.tokens import _characters
from synpro_engine.data import IGNORE, Batch, Tokenizer, load_tokenizer
from synpro_engine.data.compressed import line_reader
from synpro_engine.data.tokenizer import document_ids
from synpro_engine.dist import launched
from synpro_engine.synth import DOCUMENTS, REJECTS, lines_of
from synpro_engine.train.engine import StepResult

SETTINGS = [
    "pretrain.max_steps=12", "pretrain.plateau=null", "pretrain.checkpoint_every=5", "pretrain.in_run=null",
    "pretrain.mask_repetitions=true", "tune={}", "generate.samples=2",
    "generate.max_slices=12",
    "continued.steps=6", "rounds=2", "filter.min_chars=70",
]  # fmt: skip


@dataclass(frozen=True)
class Watched:
    """A run, and by (stage, step) the global batch that each of its steps was given, by the last try that made it."""

    cycle: Cycle
    given: dict[tuple[str, int], Batch]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    directory = tmp_path_factory.mktemp("runs") / "traced"
    given: dict[tuple[str, int], Batch] = {}
    fatal = [("pretrain", 8), ("round-2/continue", 24)]
    step, split = training.PretrainRun.step, Batch.split

    def watched(self: training.PretrainRun) -> StepResult:
        stage = str(self.directory.relative_to(directory)).replace(".partial", "")
        made = stage, self.engine.step_index + 1

        def keep(batch: Batch, micro_batch: int, *, equal: bool) -> list[Batch]:
            given[made] = batch
            return split(batch, micro_batch, equal=equal)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Batch, "split", keep)
            result = step(self)
        if made in fatal:
            fatal.remove(made)
            raise UserError("the end of this try")
        return result

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training.PretrainRun, "step", watched)
        ends = [main(["run", "smoke", "--dir", str(directory), *SETTINGS]) for _ in range(3)]
    assert ends == [2, 2, 0]
    recipe = load_recipe("smoke", SETTINGS)
    with launched(recipe.parallel) as topology:
        yield Watched(Cycle(recipe, directory, topology), given)


def test_the_report_follows_windows_to_what_their_tokens_are_traced_to(run: Watched) -> None:
    cycle = run.cycle
    found = report_data(cycle.directory, cycle.recipe, cycle.stages()).provenance
    assert [(window.step, window.source) for window in found.windows if window.source == "organic"] == [
        (step, "organic") for step in (19, 21, 24)
    ]
    made = 0
    for window in found.windows:
        assert window.stage == "round-2/continue" and window.documents
        at = 0
        for document in window.documents:
            traced = trace_token(cycle, window.stage, window.step, window.row, at)
            assert (traced.document, traced.source) == (document.id, window.source)
            # A window may begin within a character, or with what marks a document's end.
            text = document.text.removesuffix("…")
            assert text.startswith((traced.text, "\ufffd")) if text else document.tokens == 1
            synthetic = traced.synthetic
            assert (synthetic is None) == document.organic == (not document.sources)
            if synthetic is not None:
                made += 1
                operation = synthetic.record["provenance"]["operation"]
                assert (document.stage, document.operation) == (synthetic.stage, operation)
                [passage], [source] = synthetic.passages, document.sources
                assert (source.document, source.start, source.end) == (passage.document, passage.start, passage.end)
                assert passage.text.startswith(source.text.removesuffix("…"))
            at += document.tokens
        assert at == 64 or window.more
    assert made > 3


def test_texts_that_lie_behind_what_is_looked_through_are_told_by_their_ids_alone(
    run: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "MOST_TEXTS", 1)
    cycle = run.cycle
    found = report_data(cycle.directory, cycle.recipe, cycle.stages()).provenance
    made = [document for window in found.windows for document in window.documents if not document.organic]
    assert made and any(not document.sources for document in made)
    assert all(document.id and (document.text or document.tokens == 1) for document in made)  # its end has no text


def test_a_run_without_generated_text_says_so_and_one_before_its_first_round_has_nothing_yet(run: Watched) -> None:
    directory, stages = run.cycle.directory, [stage.name for stage in run.cycle.stages()]
    organic = load_recipe("smoke", ["arms={one: {text: organic}}"])
    assert "all that it trains on is organic" in provenance(FinishedRun(directory, organic, [])).missing
    begun = [name for name in stages if not name.endswith("/continue")]
    assert provenance(FinishedRun(directory, run.cycle.recipe, begun)).windows == ()


def _document(run: Watched, id: str) -> DocumentTrace:
    return trace_document(run.cycle, id)


def _ids(run: Watched, name: str) -> list[str]:
    """Ids of the first round's texts in a file of its generation."""
    paths = [run.cycle.directory / "round-1" / f"generate-{name}" / "corpus" for name in ("rephrase", "reformat")]
    return [json.loads(line)["id"] for path in paths for _, line in lines_of(path, name)]


def test_a_traced_token_is_the_one_that_the_step_was_given(run: Watched) -> None:
    stages = Counter(stage for stage, _ in run.given)
    assert stages == {"pretrain": 12, "round-1/continue": 6, "round-2/continue": 6, "repeat": 12}
    sources = set()
    tries = itertools.product(sorted(run.given.items(), key=lambda item: item[0]), (2, 7))
    for at, (((stage, step), batch), row) in enumerate(tries):
        token = 7 * at % 64
        found = trace_token(run.cycle, stage, step, row, token)
        assert found.id == batch.tokens_BS[row, token]
        assert (IGNORE if found.next_id is None else found.next_id) == batch.labels_BS[row, token]
        sources.add(found.source)
    assert sources == {"organic", "round-1", "round-2"}


def test_the_rows_that_read_a_document_are_those_that_its_tokens_trace_to(run: Watched) -> None:
    for stage, step in (("pretrain", 9), ("round-2/continue", 21)):
        for row in (0, 5):
            found = trace_token(run.cycle, stage, step, row, 30)
            life = _document(run, found.document).life
            assert life is not None and life.fate == "kept" and life.tokens == found.document_tokens
            [read] = [read for read in life.read if read.stage == stage]
            assert (step, row) in [(step, row) for step, row, _ in read.places]
            assert read.tokens == sum(tokens for *_, tokens in read.places)


def test_what_was_made_of_a_document_is_refused_removed_or_kept(run: Watched) -> None:
    made = [made for source in _sources(run) for made in _document(run, source).made]
    fates = Counter(one.life.fate for one in made)
    assert fates["kept"] and fates["removed"] and fates["refused"] and not fates["accepted"]
    first = [one for one in made if one.stage.startswith("round-1")]
    assert {one.id for one in first if one.life.fate != "refused"} == set(_ids(run, DOCUMENTS))
    assert {one.id for one in first if one.life.fate == "refused"} <= set(_ids(run, REJECTS))
    for one in made:
        assert (one.life.why is None) == (one.life.fate == "kept")
        assert one.life.fate != "removed" or str(one.life.why).startswith("length: ")
        assert (one.life.tokens is not None) == (one.life.fate == "kept")
        assert one.member in (0, 1)


def test_the_report_counts_for_each_operation_what_its_texts_were_read(run: Watched) -> None:
    cycle = run.cycle
    account = report_data(cycle.directory, cycle.recipe, cycle.stages()).tokens
    assert account is not None
    lives = {(made.id, made.operation): made.life for source in _sources(run) for made in _document(run, source).made}
    for made in account.made:
        prefix = "" if made.round == 1 else f"round-{made.round}/"
        own = [life for (id, name), life in lives.items() if name == made.operation and _prefix(id) == prefix]
        assert made.tokens == sum(life.tokens or 0 for life in own)
        assert made.trained == sum(read.tokens for life in own for read in life.read)
    given = json.loads((cycle.directory / "round-2" / "continue" / "result.json").read_text())["samples"]
    for number in (1, 2):
        trained = sum(made.trained or 0 for made in account.made if made.round == number)
        assert trained == given[f"round-{number}"] * 64 > 0


def _prefix(id: str) -> str:
    return id[: len("round-2/")] if id.startswith("round-2/") else ""


def _sources(run: Watched) -> list[str]:
    """Ids of the documents that a text of either round was made from."""
    records = (
        json.loads(line) for path in run.cycle.directory.rglob("docs-*.jsonl.zst") for _, line in line_reader(path)
    )
    return sorted({record["provenance"]["source"] for record in records})


def test_a_synthetic_text_tells_what_it_was_made_from_and_how(run: Watched) -> None:
    for name in (DOCUMENTS, REJECTS):
        id = _ids(run, name)[0]
        found = _document(run, id)
        assert found.synthetic is not None and found.synthetic.filters == {"min_chars": 70}
        origin, [passage] = found.synthetic.record["provenance"], found.synthetic.passages
        assert (origin["round"], f"{passage.document}:{passage.start}-{passage.end}:{origin['operation']}") == (
            1,
            id.rpartition(":")[0],
        )
        source = _document(run, passage.document).text
        assert source is not None and source[passage.start : passage.end] == passage.text
        probe = run.cycle.directory / "round-1" / "probe" / "direction"
        assert origin["influence"] == read_manifest(probe).content_hash
        assert {"influence", "quality", "format"} <= origin["judges"].keys()
        assert ("structure" in origin["judges"]) == (origin["operation"] == "rephrase"), "of its own rewards alone"
        assert f"probe {origin['influence']}" in "\n".join(lines(found))


def test_a_record_of_an_older_version_is_told_without_what_it_lacks(run: Watched) -> None:
    found = _document(run, _ids(run, DOCUMENTS)[0])
    assert found.synthetic is not None
    record = found.synthetic.record
    old = {name: value for name, value in record["provenance"].items() if name not in ("round", "influence", "judges")}
    older = replace(found, synthetic=replace(found.synthetic, record=record | {"provenance": old}))
    told = set(lines(older))
    assert told < set(lines(found)) and any(line.startswith("generator") for line in told)


@pytest.mark.parametrize("prefix", ["", "round-2/"])
def test_an_unknown_id_is_told_the_nearest_one(run: Watched, prefix: str) -> None:
    source = _sources(run)[0]
    for wrong, hint in (
        (source + "7", f"did you mean `{source}`"),
        (source.removeprefix("sotu/"), f"did you mean `{source}`"),
        (f"{prefix}{source}:0-7:rephrase:0", f"there is '{source}'"),
    ):
        with pytest.raises(UserError, match=re.escape(hint)):
            _document(run, wrong)


TEXTS = [
    "Two  spaces,\n\na\ttab ", " led by one", "naïve — “quoted” … 😀👩‍👩‍👧 漢字 한국어",
    "a\ufffdb\ufffd\ufffdc", "e\u0301 ﬁ ½",
    "▁ already ▁▁", "<|endoftext|> <s> </s>", "",
]  # fmt: skip


def _byte_level(directory: Path) -> Tokenizer:
    """Byte-level BPE as GPT-2 has it, of a few merges."""
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    trainer = library.trainers.BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    made.train_from_iterator(["spaces and already “quoted” naïve 漢字 " * 9], trainer)
    made.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    return load_tokenizer(directory)


@pytest.mark.parametrize("kind", ["sentencepiece", "byte-level"])
def test_the_characters_of_all_tokens_are_the_text_in_its_order(kind: str, run: Watched, tmp_path: Path) -> None:
    trained = run.cycle.directory / "tokenize" / "tokenizer"
    tokenizer = load_tokenizer(trained) if kind == "sentencepiece" else _byte_level(tmp_path)
    for text in TEXTS:
        ids = document_ids(tokenizer, text)
        spans = [_characters(tokenizer, ids, at, text) for at in range(len(ids))]
        # Several tokens of one character have it all, each of them.
        stretches = [span for span, _ in itertools.groupby(spans) if span is not None and span[0] < span[1]]
        assert "".join(text[start:end] for start, end in stretches) == text and None not in spans
        assert stretches == sorted(stretches)
