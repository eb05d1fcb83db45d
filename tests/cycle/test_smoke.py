"""The whole cycle for real, on the `smoke` recipe: alone, killed and resumed, and on two processes."""

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard

from docs.site.schemas import faults_in
from synpro_engine.cli.main import main
from synpro_engine.config.schemas import SCHEMAS
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.steps.pieces import Pieces
from synpro_engine.cycle.steps.weights import load_model
from synpro_engine.data import load_tokenizer
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.influence import read_scores
from synpro_engine.influence.first_order import plain_logits
from synpro_engine.train.metrics import read_metrics
from tests.cli.refusals import refused, succeeded

_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
_RUN = [sys.executable, "-m", "synpro_engine", "run", "smoke"]
_TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def _finish(command: list[str], directory: Path) -> str:
    done = subprocess.run(
        [*command, "--dir", str(directory)], env=_ENVIRONMENT, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def _kill_when(ready: Callable[[], bool], directory: Path) -> None:
    """Start the run and end it with SIGKILL as soon as `ready`."""
    process = subprocess.Popen(
        [*_RUN, "--dir", str(directory)], env=_ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 300
    while not ready():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def _losses(directory: Path, stage: str) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in read_metrics(directory / stage / "metrics.jsonl") if r["kind"] == "train"]


def _documents(directory: Path, operation: str, number: int = 1) -> str:
    path = directory / f"round-{number}" / f"generate-{operation}" / "corpus" / "docs-000000.jsonl.zst"
    with zstandard.open(path, "rt", encoding="utf-8") as file:
        return file.read()


def _results(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "evaluate" / "results.json").read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run on one process."""
    directory = tmp_path_factory.mktemp("runs") / "alone"
    _finish(_RUN, directory)
    return directory


def test_the_cycle_ends_with_every_stage_and_a_report(alone: Path) -> None:
    stages = {json.loads(line)["stage"] for line in (alone / "stages.jsonl").read_text().splitlines()}
    names = "probe tune-rephrase tune-reformat generate-rephrase generate-reformat shards continue"
    assert stages == {"tokenize", "pretrain", "import", "repeat", "evaluate"} | {f"round-1/{n}" for n in names.split()}
    page = (alone / "report.html").read_text()
    assert "cannot show an effective-token gain" in page and "not run yet" not in page
    names = [row["name"] for row in _results(alone)["held_out"]]
    assert names == ["at the plateau", "organic + synthetic", "repeat organic"]


def test_what_the_files_of_a_run_hold_is_documented(alone: Path) -> None:
    assert faults_in(alone) == []
    named = {name for path in alone.rglob("manifest.json") for name in json.loads(path.read_text())["schemas"]}
    # Of a walk, of tasks from files, of shares by influence, of trackers, megadocs and rounds that decide: it has none.
    none = {"steps.jsonl", "tasks.json", "left_out/*.jsonl", "mixture.json", "trackers.json"}
    none |= {"megadocs.jsonl.zst", "decision.json", "questions/*.jsonl"}
    assert named == SCHEMAS.keys() - none


def _held_out(directory: Path, operation: str) -> list[dict[str, Any]]:
    """Measurements of a tuning on what is held out, without their clocks."""
    records = read_metrics(directory / "round-1" / f"tune-{operation}" / "metrics.jsonl")
    held_out = [record for record in records if record["kind"] == "held_out"]
    return [{name: v for name, v in record.items() if name not in ("time", "seconds")} for record in held_out]


def test_a_generator_is_measured_before_while_and_after_it_is_tuned(alone: Path) -> None:
    for operation in ("rephrase", "reformat"):
        first, middle, last = _held_out(alone, operation)
        assert (first["step"], middle["step"], last["step"]) == (0, 2, 3)
        assert all(record["slices"] == 3 and record["completions"] == 6 for record in (first, middle, last))
        assert last["difference"] == pytest.approx(last["reward"] - first["reward"])
    assert (alone / "report.html").read_text().count("held-out slices</text>") == 2


def test_training_learns_and_both_arms_take_the_same_number_of_steps(alone: Path) -> None:
    losses = [loss for _, loss in _losses(alone, "pretrain")]
    assert losses[-1] < losses[0] - 0.5
    assert [s for s, _ in _losses(alone, "repeat")] == [s for s, _ in _losses(alone, "round-1/continue")]


def test_the_documents_that_pretraining_read_are_scored_and_shown(alone: Path) -> None:
    steps = {record.step for record in read_scores(alone / "pretrain" / "in-run-scores.jsonl")}
    assert steps == {step for step, _ in _losses(alone, "pretrain") if step % 5 == 0}
    page = (alone / "report.html").read_text()
    assert "The most helpful documents" in page and f"{len(steps)} of {len(_losses(alone, 'pretrain'))} steps" in page


def test_every_synthetic_text_traces_to_its_source(alone: Path) -> None:
    with zstandard.open(alone / "tokenize" / "documents" / "train.jsonl.zst", "rt", encoding="utf-8") as file:
        sources = {record["id"]: record["text"] for record in map(json.loads, file)}
    records = [json.loads(line) for line in _documents(alone, "rephrase").splitlines()]
    assert records
    for record in records:
        where = record["provenance"]
        assert sources[where["source"]][where["start"] : where["end"]].strip()
        rewards = record["rewards"]
        unweighted = math.fsum(value for name, value in rewards.items() if name != "total")
        assert rewards["total"] == pytest.approx(unweighted + 2 * rewards["influence"])  # weights 3, 1, 1...


def test_a_finished_run_started_again_repeats_nothing(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (alone / "stages.jsonl").read_text()
    assert main(["run", "smoke", "--dir", str(alone)]) == 0
    assert "[pretrain] there already" in capsys.readouterr().err and (alone / "stages.jsonl").read_text() == before


def test_a_stopped_evaluation_goes_on_with_what_is_not_measured(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, measured, before = tmp_path / "run", list[str](), Pieces.__call__
    shutil.copytree(alone, run)
    shutil.rmtree(run / "evaluate")

    def call(pieces: Pieces, name: str, measure: Callable[[], Any]) -> Any:
        def counted() -> Any:
            measured.append(name)
            if len(measured) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return measure()

        return before(pieces, name, counted)

    monkeypatch.setattr(Pieces, "__call__", call)
    assert main(["evaluate", "smoke", "--dir", str(run)]) == 75
    kept = run / "evaluate.partial" / "pieces.jsonl"
    assert [json.loads(line)["name"] for line in kept.read_text().splitlines()] == measured[:3] == measured
    with kept.open("a") as file:
        file.write('{"name": "diversity", "val')  # as a kill leaves it
    assert main(["evaluate", "smoke", "--dir", str(run)]) == 0
    assert "diversity" in measured and len(measured) == len(set(measured)) > 5
    assert _results(run) == _results(alone)
    assert not (run / "evaluate" / kept.name).exists()


@pytest.mark.slow
def test_replicas_that_share_an_evaluation_find_what_one_process_finds(alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    shutil.rmtree(run / "evaluate")
    _finish([*_TORCHRUN, "2", "-m", "synpro_engine", "evaluate", "smoke"], run)
    ours, theirs = _results(run), _results(alone)
    assert any(len(found["generated"]) > 1 for found in theirs["influence"].values())
    for operation, found in theirs["influence"].items():
        for kind in ("generated", "sources"):
            assert ours["influence"][operation][kind] == pytest.approx(found[kind], rel=1e-4, abs=1e-7)
    for name, found in theirs["diversity"].items():
        measured, expected = ({k: v for k, v in of.items() if v is not None} for of in (ours["diversity"][name], found))
        assert measured == pytest.approx(expected, rel=1e-5)
    assert [row["nats"] for row in ours["held_out"]] == pytest.approx(
        [row["nats"] for row in theirs["held_out"]], rel=1e-5
    )


@pytest.mark.slow
def test_a_run_killed_thrice_ends_with_the_artifacts_of_one_never_killed(alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    _kill_when(lambda: (run / "pretrain.partial" / "checkpoints" / "step-00000020").exists(), run)
    steps = read_metrics(run / "pretrain.partial" / "metrics.jsonl")
    assert max(record["step"] for record in steps) >= 20
    _kill_when(lambda: any((run / "round-1" / "tune-rephrase.partial" / "checkpoints").glob("step-*")), run)
    work = run / "round-1" / "generate-rephrase.partial" / "corpus.work"
    _kill_when(lambda: work.exists() and len(list(work.iterdir())) > 1, run)
    assert "[round-1/tune-rephrase] there already" in _finish(_RUN, run)
    for stage in ("pretrain", "repeat", "round-1/continue"):
        assert _losses(run, stage) == _losses(alone, stage)
    ours, theirs = (path / "pretrain" / "in-run-scores.jsonl" for path in (run, alone))
    assert ours.read_bytes() == theirs.read_bytes()
    assert _documents(run, "rephrase") == _documents(alone, "rephrase")
    assert _held_out(run, "rephrase") == _held_out(alone, "rephrase")
    assert _results(run) == _results(alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (2, []),
        (2, ["parallel.tp=2"]),
        (2, ["pretrain.parallel.pp=2"]),
        (2, ["pretrain.parallel.tp=2"]),
        (4, ["pretrain.parallel={tp: 2, pp: 2}", "generator.parallel.tp=2"]),
    ],
    ids=["DP2", "TP2", "PP2 and DP2", "TP2 and DP2", "TP2 PP2 and DP2 TP2"],
)
def test_several_processes_pretrain_as_one(alone: Path, tmp_path: Path, ranks: int, layout: list[str]) -> None:
    run = tmp_path / "run"
    _finish([*_TORCHRUN, str(ranks), *_RUN[1:], *layout], run)
    for stage in ("pretrain", "repeat"):
        ours, theirs = _losses(run, stage), _losses(alone, stage)
        assert [step for step, _ in ours] == [step for step, _ in theirs]
        assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=1e-5)
    assert (run / "report.html").exists()
    ours, theirs = (list(read_scores(path / "pretrain" / "in-run-scores.jsonl")) for path in (run, alone))
    assert [(r.step, r.key, r.tokens) for r in ours] == [(r.step, r.key, r.tokens) for r in theirs]


@pytest.mark.slow
def test_a_second_round_writes_other_texts_and_goes_on_from_the_first(tmp_path: Path) -> None:
    run = tmp_path / "rounds"
    smaller = ["rounds=2", "pretrain.max_steps=20", "continued.steps=4", "generate.max_slices=6"]
    smaller.append("continued.synthetic_epochs=6.0")
    _finish([*_RUN, *smaller], run)
    first, second = (
        [json.loads(line) for line in _documents(run, "rephrase", number).splitlines()] for number in (1, 2)
    )
    assert first and second and not {r["id"] for r in first} & {r["id"] for r in second}
    assert not {r["text"] for r in first} & {r["text"] for r in second}
    assert first[0]["provenance"]["generator"] != second[0]["provenance"]["generator"]
    steps = [[step for step, _ in _losses(run, f"round-{number}/continue")] for number in (1, 2)]
    assert [step for step, _ in _losses(run, "repeat")] == steps[0] + steps[1]
    samples = json.loads((run / "round-2" / "continue" / "result.json").read_text())["samples"]
    assert samples["round-1"] > 0 and samples["round-2"] > 0


@pytest.mark.slow
def test_a_tuned_generator_leaves_by_the_command_line_as_transformers_reads_it(alone: Path, tmp_path: Path) -> None:
    """Two commands write to one place at once: one at least does, and what is there is whole."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    stage, output = "round-1/tune-rephrase", tmp_path / "out"
    command = [*_RUN[:3], "export", "smoke", "--dir", str(alone), "--stage", stage, "--output", str(output)]
    both = [subprocess.Popen(command, env=_ENVIRONMENT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert 0 in [process.returncode for process in both], said
    for process, error in zip(both, said, strict=True):
        assert process.returncode == 0 or "another process" in error.strip().splitlines()[-1], error
    theirs = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    ids = torch.randint(theirs.config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(1))
    with launched(ParallelConfig()) as topology, torch.no_grad():
        ours = plain_logits(load_model(alone / stage, topology, torch.float32), ids, lambda parameter: parameter)
        torch.testing.assert_close(theirs(ids).logits, ours, rtol=1e-4, atol=1e-4)
    words, text = AutoTokenizer.from_pretrained(output), "The mill burned down in 1911."
    own = load_tokenizer(alone / "import" / "tokenizer")
    assert words(text, add_special_tokens=False).input_ids == own.encode(text)


@pytest.mark.slow
def test_the_report_of_a_run_can_be_made_while_it_goes_on(alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    running = subprocess.Popen([*_RUN, "--dir", str(run)], env=_ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 300
    while not (run / "round-1" / "tune-rephrase").exists():
        assert running.poll() is None and time.monotonic() < end
        if (run / "pretrain.partial" / "metrics.jsonl").exists() or (run / "pretrain").exists():
            _finish([*_RUN[:3], "report", "smoke"], run)
            assert (run / "report.html").stat().st_size > 10_000
    assert running.wait(300) == 0, running.communicate()[1]
    assert _results(run) == _results(alone)


Traced = Callable[..., dict[str, Any]]


@pytest.fixture
def traced(alone: Path, capsys: pytest.CaptureFixture[str]) -> Traced:
    """`synpro trace` of the run, in this process: each of its own takes seconds to import."""

    def trace(*arguments: str) -> dict[str, Any]:
        told = succeeded(capsys, "trace", "smoke", "--dir", str(alone), "--json", *arguments)
        return json.loads(told)

    return trace


def test_a_token_of_a_step_traces_to_a_document_that_the_step_was_scored_on(alone: Path, traced: Traced) -> None:
    scored = {r.key for r in read_scores(alone / "pretrain" / "in-run-scores.jsonl") if r.step == 10}
    with zstandard.open(alone / "tokenize" / "documents" / "train.jsonl.zst", "rt", encoding="utf-8") as file:
        texts = {record["id"]: record["text"] for record in map(json.loads, file)}
    found = traced("--step", "10", "--row", "5", "--token", "33")
    start, end = found["characters"]
    assert found["document"] in scored and found["text"] in texts[found["document"]][start:end]
    assert (found["before"] + found["text"]).strip() in texts[found["document"]][:end]
    read = {stage["stage"]: stage["places"] for stage in traced(found["document"])["life"]["read"]}
    assert [10, 5] in [place[:2] for place in read["pretrain"]]


def test_a_synthetic_token_traces_to_its_record_and_the_characters_of_its_source(alone: Path, traced: Traced) -> None:
    record = next(r for r in map(json.loads, _documents(alone, "rephrase").splitlines()) if len(r["text"]) > 60)
    text = traced(record["id"])
    origin, [passage] = text["synthetic"]["record"]["provenance"], text["synthetic"]["passages"]
    assert text["synthetic"]["record"] == record and (origin["round"], origin["operation"]) == (1, "rephrase")
    assert hashlib.sha256(passage["text"].encode()).hexdigest() == origin["source_sha256"]
    assert record["id"] in [made["id"] for made in traced(origin["source"])["made"]]
    probe = json.loads((alone / "round-1" / "probe" / "direction" / "manifest.json").read_text())
    assert origin["influence"] == probe["content_hash"] and "influence" in origin["judges"]
    # Some of the texts are in a row of the arm: its tokens are of texts of the round.
    ids = [json.loads(line)["id"] for line in _documents(alone, "rephrase").splitlines()]
    places = (place for id in ids for stage in traced(id)["life"]["read"] for place in stage["places"])
    step, row, _ = next(places)
    where = ("--arm", "round-1/continue", "--step", str(step), "--row", str(row))
    for token in ("0", "63"):
        found = traced(*where, "--token", token)
        assert found["source"] == "round-1" and found["synthetic"]["record"]["id"] == found["document"] in ids


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--step", "1000", "--row", "0", "--token", "0"), "--step 1000: pretrain made the steps 1 to "),
        (("--step", "1", "--row", "8", "--token", "0"), "--row 8: the rows of a batch are 0 to 7"),
        (("--step", "1", "--row", "0", "--token", "64"), "--token 64: the tokens of a row are 0 to 63"),
        (("--step", "1"), "trace: give --row and --token too"),
        (("--arm", "nothing", "--step", "1", "--row", "0", "--token", "0"), "--arm nothing: no training stage"),
        (("no-such-id",), "no document 'no-such-id'"),
        ((), "trace: give one DOC_ID, or --step, --row and --token"),
    ],
)
def test_what_is_not_there_cannot_be_traced(
    alone: Path, arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in refused(capsys, "trace", "smoke", "--dir", str(alone), *arguments)


def test_the_report_counts_the_tokens_of_each_round_and_operation(alone: Path) -> None:
    made = json.loads((alone / "round-1" / "shards" / "tokens.json").read_text())
    page = (alone / "report.html").read_text()
    assert "Tokens made" in page and all(f"<td>{operation}</td>" in page for operation in made)
    result = json.loads((alone / "round-1" / "continue" / "result.json").read_text())
    trained = result["operations"]["round-1"]
    assert list(trained) == list(made) and all(f"{tokens:,}" in page for tokens in trained.values())
    # Every window is all tokens of some text, the last of each going on where the next pass begins.
    windows, seq_len = result["samples"]["round-1"], load_recipe("smoke").model.seq_len
    assert sum(trained.values()) == windows * seq_len
    assert json.loads((alone / "repeat" / "result.json").read_text())["operations"] == {}
