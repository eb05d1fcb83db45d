import dataclasses
import itertools
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from synpro_engine.config import UserError, read_manifest
from synpro_engine.data import Document, HFTokenizer, open_shards, read_documents, write_shards
from synpro_engine.data.tokenizer_files import TokenizerFiles
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.dist.testing import run_ranks
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.sampler import Sampler, SamplingConfig
from synpro_engine.synth import (
    DOCUMENTS,
    REJECTS,
    TOKENS,
    YIELD,
    GenerateConfig,
    Producer,
    PromptConfig,
    SliceConfig,
    files_of,
    generate_corpus,
    join_generation,
    lines_of,
    operation_named,
    render_chat,
    slices_of,
    stop_ids,
    work_items,
)
from synpro_engine.synth.ledger import read_commits

SCRIPT = Path(__file__).with_name("generation_job.py")
JOB = runpy.run_path(str(SCRIPT))
BATCHES = 12
TEXTS = {document.id: document.text for document in JOB["make_documents"]()}


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as topology:
        yield topology


@pytest.fixture(scope="module")
def corpus(topology: Topology, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted generation in one process."""
    path = tmp_path_factory.mktemp("generate") / "corpus"
    JOB["generate"](path, topology)
    return path


def _accepted(corpus: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for _, line in lines_of(corpus, DOCUMENTS)]


def _rejected(corpus: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for _, line in lines_of(corpus, REJECTS)]


def _content(corpus: Path) -> dict[str, bytes]:
    files = [*files_of(corpus, DOCUMENTS), *files_of(corpus, REJECTS), corpus / YIELD]
    return {path.name: path.read_bytes() for path in files}


def test_every_synthetic_text_traces_to_its_source_and_can_be_made_again(corpus: Path) -> None:
    tokenizer = JOB["make_tokenizer"]()
    producer_config = JOB["CONFIG"]
    records = _accepted(corpus)
    assert records
    for record in records:
        origin = record["provenance"]
        source = TEXTS[origin["source"]][origin["start"] : origin["end"]]
        operation = operation_named(origin["operation"])
        assert operation.prompt_version == origin["prompt_version"]
        again = JOB["generate_one"](tokenizer, operation, source, origin["seed"], origin["member"], producer_config)
        assert operation.parse(again.raw, finished=origin["finished"]).text == record["text"]
        assert record["rewards"] == JOB["letters"]([again])[0]
        assert origin["generator"] == "bigram"
        assert origin["sampling"] == producer_config.sampling.model_dump()


def test_each_prompt_is_answered_exactly_once(corpus: Path) -> None:
    config = JOB["CONFIG"]
    items = list(work_items(JOB["make_documents"], config, JOB["SEED"]))
    refused = _rejected(corpus)
    unanswered = {r["id"] for r in refused if r["reason"] == "prompt_too_long"}
    found = sorted(r["id"] for r in [*_accepted(corpus), *refused])
    expected = [f"{i.key}:{m}" for i in items for m in range(1 if f"{i.key}:0" in unanswered else config.samples)]
    assert found == sorted(expected)
    covered = {(i.slice.doc_id, i.slice.start, i.slice.end) for i in items}
    slices = [s for d in JOB["make_documents"]() for s in slices_of(d, SliceConfig(max_chars=config.max_chars))]
    assert covered == {(s.doc_id, s.start, s.end) for s in slices if len(s.text.strip()) >= config.min_source_chars}


def test_the_report_counts_what_was_written(corpus: Path, topology: Topology) -> None:
    report, calls = JOB["generate"](corpus, topology)
    assert calls == 0, "a finished corpus is read back"
    refused = _rejected(corpus)
    reasons = [r["reason"] for r in refused]
    assert report.rejected == {reason: reasons.count(reason) for reason in set(reasons)}
    assert {"truncated", "no_entries", "prompt_too_long"} <= set(reasons)
    assert report.accepted == len(_accepted(corpus)) == len(list(read_documents(str(corpus))))
    assert report.completions == report.accepted + len(refused)
    for name, one in report.by_operation.items():
        scores = [r["rewards"]["letters"] for r in _accepted(corpus) if r["provenance"]["operation"] == name]
        assert one.accepted == len(scores) > 0
        cuts = [r["cut"] for r in _accepted(corpus) if r["provenance"]["operation"] == name]
        assert one.cut_chars == {cause: sum(cut.get(cause, 0) for cut in cuts) for cause in set().union(*cuts)}
        assert one.mean_rewards["letters"] == pytest.approx(sum(scores) / len(scores))


def test_a_corpus_comes_in_files_of_a_bounded_size_that_hold_the_same_lines(
    corpus: Path, topology: Topology, tmp_path: Path
) -> None:
    small = JOB["CONFIG"].model_copy(update={"file_mib": 4 / 1024})
    producer = JOB["make_producer"](config=small)
    generate_corpus(tmp_path / "small", JOB["make_documents"], producer, topology, seed=JOB["SEED"])
    for stem, read in ((DOCUMENTS, _accepted), (REJECTS, _rejected)):
        assert len(files_of(tmp_path / "small", stem)) > 2 > len(files_of(corpus, stem)) == 1
        assert read(tmp_path / "small") == read(corpus)
    documents = [(record["id"], record["text"]) for record in _accepted(corpus)]
    assert [(d.id, d.text) for d in read_documents(str(tmp_path / "small"))] == documents
    # A size is no other corpus: what is finished stays as it is.
    assert JOB["generate"](tmp_path / "small", topology)[1] == 0


def test_token_files_beside_the_texts_are_those_that_the_texts_are_tokenised_to(
    corpus: Path, topology: Topology, tmp_path: Path
) -> None:
    # Another end than the generator's, and a begin: what stands around a text is the trained model's.
    made = JOB["make_tokenizer"]()
    begins = TokenizerFiles(place=tmp_path, settings={"bos_token": "<|im_start|>", "add_bos_token": True})
    trained = HFTokenizer(made._source, eos="<|im_end|>", pad="<|endoftext|>", files=begins)
    assert trained.encoding == made.encoding and trained.bos_id is not None and trained.eos_id != made.eos_id
    producer = JOB["make_producer"](trained=trained)
    generate_corpus(tmp_path / "ids", JOB["make_documents"], producer, topology, seed=JOB["SEED"])
    assert _content(tmp_path / "ids") == _content(corpus) and not (corpus / TOKENS).exists()
    write_shards(read_documents(str(tmp_path / "ids")), trained, tmp_path / "again")
    for name in ("tokens.bin", "tokens.idx", "ids.jsonl", "stats.json"):
        assert (tmp_path / "ids" / TOKENS / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    open_shards(tmp_path / "ids" / TOKENS, trained)
    with pytest.raises(UserError, match="other settings: `token_files`"):
        JOB["generate"](tmp_path / "ids", topology)


def test_joined_texts_have_no_token_files_for_their_ids_are_not_those_of_their_parts(
    topology: Topology, tmp_path: Path
) -> None:
    config = JOB["CONFIG"].model_copy(update={"join": True})
    producer = JOB["make_producer"](config=config, trained=JOB["make_tokenizer"]())
    generate_corpus(tmp_path / "joined", JOB["make_documents"], producer, topology, seed=JOB["SEED"])
    assert not (tmp_path / "joined" / TOKENS).exists()


def test_a_killed_generation_goes_on_to_the_same_corpus(corpus: Path, topology: Topology, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", ""))),
    }
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(out), "0.3"], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        while len(read_commits(tmp_path / "corpus.work")) < 3:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = read_commits(tmp_path / "corpus.work")
    assert not out.exists()
    assert 3 <= len(done) < BATCHES
    _, calls = JOB["generate"](out, topology)
    assert calls == BATCHES - len(done)
    assert _content(out) == _content(corpus)
    assert read_manifest(out).content_hash == read_manifest(corpus).content_hash
    assert not (tmp_path / "corpus.work").exists()


def _on_ranks(out: str) -> list[int]:
    """One generation by two data-parallel ranks, one by two tensor-parallel ones; how often each generated."""
    with launched(ParallelConfig()) as topology:
        swapped = dataclasses.replace(topology, dp=topology.tp, tp=topology.dp)
        return [JOB["generate"](Path(out) / name, there, 0.1)[1] for name, there in (("dp", topology), ("tp", swapped))]


def test_the_corpus_does_not_depend_on_the_layout(corpus: Path, tmp_path: Path) -> None:
    (dp_calls, tp_calls) = zip(*run_ranks(_on_ranks, 2, out=str(tmp_path)), strict=True)
    assert sum(dp_calls) == BATCHES
    assert min(dp_calls) >= BATCHES // 3, "data-parallel ranks share the batches"
    assert tp_calls == (BATCHES, BATCHES), "tensor-parallel ranks all take part in every batch"
    assert _content(tmp_path / "dp") == _content(tmp_path / "tp") == _content(corpus)


def _begun(out: Path, topology: Topology, documents_hash: str | None) -> None:
    """A generation that broke off in its fourth batch."""
    producer = JOB["make_producer"]()
    producer.generator.generate = _failing_from(producer.generator.generate, 4)
    with pytest.raises(RuntimeError, match="broke off"):
        generate_corpus(out, JOB["make_documents"], producer, topology, seed=JOB["SEED"], documents_hash=documents_hash)


def _failing_from(generate: Callable[..., Any], call: int) -> Callable[..., Any]:
    calls = itertools.count(1)

    def failing(*arguments: Any, **named: Any) -> Any:
        if next(calls) == call:
            raise RuntimeError("broke off")
        return generate(*arguments, **named)

    return failing


def test_what_is_begun_or_finished_of_the_same_documents_goes_on_without_cutting_them_again(
    corpus: Path, topology: Topology, tmp_path: Path
) -> None:
    out = tmp_path / "corpus"
    _begun(out, topology, "0123")

    def unread() -> list[Document]:
        raise AssertionError("the documents are read again")

    for _ in ("begun", "finished"):
        generate_corpus(out, unread, JOB["make_producer"](), topology, seed=JOB["SEED"], documents_hash="0123")
        assert _content(out) == _content(corpus)
    with pytest.raises(UserError, match="was made with other settings: `prefix`"):
        generate_corpus(
            out, unread, JOB["make_producer"](prefix="x/"), topology, seed=JOB["SEED"], documents_hash="4567"
        )


@pytest.mark.parametrize("before", [None, "0123"])  # of a version that did not record it, of an artifact made anew
def test_what_is_begun_of_documents_of_another_hash_goes_on_where_their_slices_are_the_same(
    before: str | None, corpus: Path, topology: Topology, tmp_path: Path
) -> None:
    out = tmp_path / "corpus"
    _begun(out, topology, before)
    changed = [dataclasses.replace(document, text=f"{document.text} So.") for document in JOB["make_documents"]()]
    producer = JOB["make_producer"]()
    with pytest.raises(UserError, match="was made with other settings: `source_sha256`"):
        generate_corpus(out, lambda: changed, producer, topology, seed=JOB["SEED"], documents_hash="4567")
    generate_corpus(out, JOB["make_documents"], producer, topology, seed=JOB["SEED"], documents_hash="4567")
    assert _content(out) == _content(corpus) and read_manifest(out).config["documents"] == "4567"


def test_other_settings_do_not_mix_with_what_is_there(corpus: Path, topology: Topology) -> None:
    tokenizer = JOB["make_tokenizer"]()
    generator = JOB["BigramGenerator"](tokenizer)
    narrow = JOB["BigramGenerator"](tokenizer)
    narrow.max_prompt_tokens = JOB["PROMPT"].max_tokens - 1
    for made_by, config, seed, key in (
        (generator, GenerateConfig(max_chars=200), JOB["SEED"], "generate.max_chars"),
        (generator, JOB["CONFIG"], 4, "seed"),
        (narrow, JOB["CONFIG"], JOB["SEED"], "longest_prompt"),
    ):
        with pytest.raises(UserError, match=f"was made with other settings: `{key}` is .* there, .* here"):
            producer = dataclasses.replace(JOB["make_producer"](config=config), generator=made_by)
            generate_corpus(corpus, JOB["make_documents"], producer, topology, seed=seed)


def test_a_prefix_sets_the_ids_of_two_corpora_of_one_source_apart(
    corpus: Path, topology: Topology, tmp_path: Path
) -> None:
    JOB["generate"](tmp_path / "second", topology, prefix="second/")
    for read in (_accepted, _rejected):
        ours, theirs = read(tmp_path / "second"), read(corpus)
        assert theirs and ours == [{**record, "id": "second/" + record["id"]} for record in theirs]
    with pytest.raises(UserError, match="was made with other settings: `prefix` is '' there, 'second/' here"):
        JOB["generate"](corpus, topology, prefix="second/")


def test_a_capped_work_list_is_a_spread_out_part_of_the_whole() -> None:
    documents, config = JOB["make_documents"], JOB["CONFIG"]
    whole = list(work_items(documents, config, 0))
    some = list(work_items(documents, config.model_copy(update={"max_slices": 6}), 0))
    keys = [item.key for item in whole]
    assert [keys.index(item.key) for item in some] == sorted(keys.index(item.key) for item in some)
    assert len(some) == 6 * len(config.operations)
    assert {item.seed for item in some} <= {item.seed for item in whole}
    assert len({item.seed for item in whole}) == len(whole)
    assert len({item.slice.doc_id for item in some}) > 2


def _tiny_sampler(topology: Topology, seq_len: int) -> Sampler:
    shape = ModelConfig(
        family="llama", layers=2, d_model=32, heads=2, kv_heads=1, ffn=64, vocab_size=320, seq_len=seq_len
    )
    return Sampler(build_model(shape, topology, seed=1))


def test_a_prompt_that_fills_the_models_context_is_refused_and_the_others_are_answered(
    topology: Topology, tmp_path: Path
) -> None:
    tokenizer, operation = JOB["make_tokenizer"](), operation_named("rephrase")
    config = GenerateConfig(
        operations=("rephrase",),
        max_chars=300,
        batch_prompts=3,
        sampling=SamplingConfig(max_new_tokens=2),
    )
    items = list(work_items(JOB["make_documents"], config, 0))
    length = {
        i.key: len(render_chat(operation.messages(i.slice.text), operation.prefill, tokenizer, "chatml")) for i in items
    }
    seq_len = sorted(length.values())[len(items) // 2] + 1  # the middle one just leaves room for a token
    producer = Producer(
        generator=_tiny_sampler(topology, seq_len), tokenizer=tokenizer, config=config,
        prompt=PromptConfig(chat_format="chatml"), generator_hash="tiny",
    )  # fmt: skip
    report = generate_corpus(tmp_path / "corpus", JOB["make_documents"], producer, topology, seed=0)
    refused = {r["id"] for r in _rejected(tmp_path / "corpus") if r["reason"] == "prompt_too_long"}
    assert refused == {f"{key}:0" for key, tokens in length.items() if tokens >= seq_len}
    assert 0 < len(refused) < len(items) == report.completions


def test_a_model_in_training_is_a_generator_whose_texts_can_be_made_again(topology: Topology, tmp_path: Path) -> None:
    tokenizer = JOB["make_tokenizer"]()
    sampler = _tiny_sampler(topology, 1024)
    config = GenerateConfig(
        operations=("rephrase",), max_chars=150, max_slices=5, batch_prompts=2,
        sampling=SamplingConfig(max_new_tokens=40, top_p=0.9),
    )  # fmt: skip
    prompt = PromptConfig(chat_format="chatml", keep_truncated=True)
    producer = Producer(
        generator=sampler, tokenizer=tokenizer, config=config, prompt=prompt, generator_hash="tiny"
    )  # fmt: skip
    generate_corpus(tmp_path / "corpus", JOB["make_documents"], producer, topology, seed=0)
    records = _accepted(tmp_path / "corpus")
    assert records
    for record in records:
        origin = record["provenance"]
        operation = operation_named(origin["operation"])
        source = TEXTS[origin["source"]][origin["start"] : origin["end"]]
        [[alone]] = sampler.generate(
            [render_chat(operation.messages(source), operation.prefill, tokenizer, "chatml")],
            group_size=1, sampling=SamplingConfig(**origin["sampling"]), stop_ids=stop_ids(tokenizer, "chatml"),
            seeds=[origin["seed"]], vocab_limit=tokenizer.vocab_size,
        )  # fmt: skip
        assert operation.parse(operation.prefill + tokenizer.decode(alone.token_ids)).text == record["text"]


def _started(out: Path, *arguments: str) -> subprocess.Popen[str]:
    path = os.pathsep.join((str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, str(SCRIPT), str(out), *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_several_jobs_join_take_batches_and_may_be_killed(corpus: Path, tmp_path: Path) -> None:
    out, work = tmp_path / "corpus", tmp_path / "corpus.work"
    owner = _started(out, "4.0")
    try:
        while not (work / "settings.json").exists():
            assert owner.poll() is None, owner.communicate()[1]
            time.sleep(0.05)
        # Slow enough that the one which starts last on a busy machine still finds a batch.
        killed, helper = _started(out, "2.0", "join"), _started(out, "2.0", "join")
        while len({commit.part for commit in read_commits(work).values()}) < 3:
            assert owner.poll() is None, owner.communicate()[1]
            time.sleep(0.05)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        assert owner.wait(60) == 0 and helper.wait(60) == 0, helper.communicate()[1]
    finally:
        owner.kill()
    assert _content(out) == _content(corpus) and not work.exists()


def test_another_job_joins_and_takes_batches_but_with_no_other_settings(
    corpus: Path, topology: Topology, tmp_path: Path
) -> None:
    out, work = tmp_path / "corpus", tmp_path / "corpus.work"
    owner = _started(out, "4.0")
    try:
        while not (work / "settings.json").exists():
            assert owner.poll() is None, owner.communicate()[1]
            time.sleep(0.05)
        with pytest.raises(UserError, match="other settings: `prefix`"):
            join_generation(out, JOB["make_producer"](prefix="x/"), topology, seed=JOB["SEED"])
        helper = JOB["make_producer"]()
        join_generation(out, helper, topology, seed=JOB["SEED"])
        assert owner.wait(60) == 0, owner.communicate()[1]
    finally:
        owner.kill()
    assert 0 < helper.generator.calls <= BATCHES
    assert _content(out) == _content(corpus) and not work.exists()


def test_accepted_slices_are_joined_by_document_operation_and_sample(
    corpus: Path, topology: Topology, tmp_path: Path
) -> None:
    config = JOB["CONFIG"].model_copy(update={"join": True})
    producer = JOB["make_producer"](config=config)
    report = generate_corpus(tmp_path / "joined", JOB["make_documents"], producer, topology, seed=JOB["SEED"])
    apart: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for record in _accepted(corpus):
        origin = record["provenance"]
        apart.setdefault((origin["source"], origin["operation"], origin["member"]), []).append(record)
    joined = _accepted(tmp_path / "joined")
    assert report.accepted == sum(map(len, apart.values())) > len(joined) == len(apart)
    for record in joined:
        origin = record["provenance"]
        parts = apart[origin["source"], origin["operation"], origin["member"]]
        assert record["text"] == "\n\n".join(part["text"] for part in parts)
        assert origin["slices"] == [[part["provenance"]["start"], part["provenance"]["end"]] for part in parts]
        values = [part["rewards"]["letters"] for part in parts]
        assert min(values) <= record["rewards"]["letters"] <= max(values)


def test_a_file_of_several_that_is_gone_is_missed_by_name(topology: Topology, tmp_path: Path) -> None:
    producer = JOB["make_producer"](config=JOB["CONFIG"].model_copy(update={"file_mib": 0.001}))
    generate_corpus(tmp_path / "corpus", JOB["make_documents"], producer, topology, seed=JOB["SEED"])
    files = files_of(tmp_path / "corpus", DOCUMENTS)
    assert len(files) > 2
    files[1].unlink()
    with pytest.raises(UserError, match=f"{files[1].name}: missing"):
        files_of(tmp_path / "corpus", DOCUMENTS)
