"""`synpro influence`: every document once, whatever interrupts it; the same scores in every form and layout."""

import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from docs.site.schemas import faults_in, schemas
from synpro_engine.cli.main import main
from synpro_engine.cli.shares import show
from synpro_engine.config.lock import writing
from synpro_engine.cycle import ModelPair
from synpro_engine.cycle.scoring import score
from synpro_engine.cycle.scoring.explain import Explanation, token_pieces
from synpro_engine.cycle.steps.weights import load_model
from synpro_engine.data import SentencePieceTokenizer, load_tokenizer
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.dist.testing import free_ports, run_ranks
from synpro_engine.influence import SequenceScore, displacement, save_direction
from synpro_engine.train.engine import Engine, StepResult

COUNT = 40
SETTINGS = ("pretrain.max_steps=4",)
WALK = ("probe.kind=walk", "probe.steps=5", "probe.lr=2e-4", "probe.global_batch=8")


def text(seed: int) -> str:
    chance = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "er", "ing")]
    words = ["".join(chance.choices(syllables, k=chance.randint(1, 3))) for _ in range(chance.randint(2, 120))]
    return " ".join(words) + ". naïve 日本\n"


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("docs") / "docs.jsonl"
    path.write_text("".join(json.dumps({"id": f"d{i}", "text": text(i)}) + "\n" for i in range(COUNT)))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its probe, on the corpus that comes with the package."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    assert main(["probe", "smoke", *SETTINGS, "--dir", str(directory)]) == 0
    return directory


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, whose probe is a model that trained on the reference."""
    directory = tmp_path_factory.mktemp("runs") / "walked"
    assert main(["probe", "smoke", *SETTINGS, *WALK, "--dir", str(directory)]) == 0
    return directory


def of(run: Path) -> list[str]:
    return ["influence", "--checkpoint", str(run / "pretrain"), "--probe", str(run / "round-1" / "probe")]


def scored(arguments: Sequence[str], docs: Path, output: Path) -> list[dict[str, Any]]:
    assert main([*arguments, "--input", str(docs), "--output", str(output)]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.fixture(scope="module")
def scores(run: Path, docs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("scores") / "scores.jsonl"
    scored(of(run), docs, output)
    return output


def refused(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> str:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    [line] = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in captured.err
    return line


def assert_same(found: Path, expected: Path) -> None:
    """The same lines in the same order; other batch mates move a value's last bits."""
    ours, theirs = ([json.loads(line) for line in path.read_text().splitlines()] for path in (found, expected))
    for name in ("id", "tokens", "estimator", "theta", "probe"):
        assert [record[name] for record in ours] == [record[name] for record in theirs]
    for name in ("value", "loss"):
        assert [record[name] for record in ours] == pytest.approx([record[name] for record in theirs], abs=1e-6)


def test_a_run_and_its_checkpoints_give_the_same_lines(run: Path, docs: Path, scores: Path, tmp_path: Path) -> None:
    recipe = ["influence", "smoke", *SETTINGS, "--dir", str(run)]
    scored(recipe, docs, tmp_path / "scores.jsonl")
    assert (tmp_path / "scores.jsonl").read_bytes() == scores.read_bytes()
    records = [json.loads(line) for line in scores.read_text().splitlines()]
    assert [record["id"] for record in records] == [f"d{i}" for i in range(COUNT)]
    assert set(records[0]) == {"id", "value", "tokens", "windows", "loss", "estimator", "at", "clip", "theta", "probe"}
    assert schemas()["scores.jsonl"].faults(records[0]) == []
    assert {record["windows"] for record in records} > {1, 2}
    assert all(record["windows"] == math.ceil(record["tokens"] / 64) for record in records), "smoke's model has 64"
    assert (records[0]["estimator"], records[0]["at"], records[0]["clip"]) == ("dot", "theta", 1.0)
    for name, stage in (("theta", "pretrain"), ("probe", "round-1/probe")):
        assert records[0][name] == json.loads((run / stage / "manifest.json").read_text())["content_hash"]


def test_scoring_that_is_asked_to_stop_keeps_what_it_has_and_goes_on(
    run: Path, docs: Path, scores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, append = tmp_path / "scores.jsonl", score.append_lines

    def append_and_be_asked(path: Path, lines: list[str]) -> None:
        append(path, lines)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(score, "append_lines", append_and_be_asked)
        few = ["influence.micro_batch=2"]  # so that there is more than one write
        assert main([*of(run), *few, "--input", str(docs), "--output", str(output)]) == 75
    assert 0 < len(output.read_text().splitlines()) < COUNT
    scored(of(run), docs, output)
    assert_same(output, scores)


def test_a_probe_that_is_asked_to_stop_begins_anew(
    walked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, step, steps = tmp_path / "run", Engine.step, itertools.count(1)
    shutil.copytree(walked, directory)
    shutil.rmtree(directory / "round-1" / "probe")

    def step_and_be_asked(engine: Engine, *arguments: Any, **settings: Any) -> StepResult:
        if next(steps) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(engine, *arguments, **settings)

    command = ["probe", "smoke", *SETTINGS, *WALK, "--dir", str(directory)]
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", step_and_be_asked)
        assert main(command) == 75
    assert next(steps) == 3 and not (directory / "round-1" / "probe").exists()
    assert main(command) == 0
    made, expected = (
        json.loads((where / "round-1" / "probe" / "manifest.json").read_text()) for where in (directory, walked)
    )
    assert made["content_hash"] == expected["content_hash"]


def test_estimators_and_a_stored_direction_agree(walked: Path, docs: Path, tmp_path: Path) -> None:
    two = scored(of(walked), docs, tmp_path / "two.jsonl")
    assert faults_in(walked) == [] and (walked / "round-1" / "probe" / "steps.jsonl").exists()
    expected = [record["value"] for record in two]
    assert {record["estimator"] for record in two} == {"two_forward"}
    middle = ["--estimator", "dot", "--at", "midpoint", "--packed"]
    dot = scored([*of(walked), *middle], docs, tmp_path / "dot.jsonl")
    assert [record["value"] for record in dot] == pytest.approx(expected, rel=0.01, abs=1e-5)
    assert {(record["estimator"], record["at"]) for record in dot} == {("dot", "midpoint")}
    with launched(ParallelConfig()) as topology:
        pair = ModelPair.of_paths(walked / "pretrain", walked / "round-1" / "probe", None, topology)
        theta, probe = (load_model(path, topology, pair.dtype) for path in (pair.theta, pair.probe))
        save_direction(tmp_path / "direction", theta, displacement(theta, probe))
    along = [*of(walked)[:3], "--probe", str(tmp_path / "direction")]
    stored = scored(along, docs, tmp_path / "stored.jsonl")
    assert [record["value"] for record in stored] == pytest.approx(expected, abs=1e-5)


def test_shares_sum_to_the_value_and_are_not_mixed_with_lines_that_lack_them(
    capsys: pytest.CaptureFixture[str], run: Path, docs: Path, scores: Path, tmp_path: Path
) -> None:
    arguments = [*of(run), "--shares", "--input", str(docs), "--output"]
    assert main([*arguments, str(tmp_path / "shares.jsonl")]) == 0
    for line in (tmp_path / "shares.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert len(record["shares"]) == record["tokens"] and schemas()["scores.jsonl"].faults(record) == []
        assert math.fsum(record["shares"]) == pytest.approx(record["value"], abs=1e-9)
    assert "without shares" in refused(capsys, [*arguments, str(scores)])


def test_an_output_is_gone_on_with_only_by_what_began_it(
    capsys: pytest.CaptureFixture[str], run: Path, docs: Path, scores: Path, tmp_path: Path
) -> None:
    whole, output = scores.read_text(), tmp_path / "scores.jsonl"
    begun = "".join(line + "\n" for line in whole.splitlines()[:7])
    output.write_text(begun + '{"id": "d7", "val')
    scored(of(run), docs, output)
    assert_same(output, scores)
    assert output.read_text().startswith(begun)
    for option, value in (("--estimator", "jvp"), ("--clip", "0")):
        other = [*of(run), option, value, "--input", str(docs), "--output", str(output)]
        assert f"of other settings: `{option[2:]}` is" in refused(capsys, other)
    output.write_text(re.sub(r'"windows": \d+, ', "", begun))
    message = refused(capsys, [*of(run), "--input", str(docs), "--output", str(output)])
    assert "scores of an older version" in message
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(docs.read_text().splitlines(keepends=True)[1:]))
    output.write_text(begun)
    message = refused(capsys, [*of(run), "--input", str(fewer), "--output", str(output)])
    assert "other documents than the input begins with" in message and output.read_text() == begun


def test_a_second_call_does_not_write_into_the_output_of_the_first(
    capsys: pytest.CaptureFixture[str], run: Path, docs: Path, scores: Path, tmp_path: Path
) -> None:
    output = tmp_path / "scores.jsonl"
    with writing(output):
        assert "another process writes it" in refused(capsys, [*of(run), "--input", str(docs), "--output", str(output)])
        assert output.read_bytes() == b""
    scored(of(run), docs, output)
    assert_same(output, scores)


@pytest.mark.slow
def test_a_killed_call_goes_on_with_nothing_lost_or_twice(run: Path, docs: Path, scores: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores.jsonl"
    arguments = [*of(run), "--micro-batch", "1", "--input", str(docs), "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "synpro_engine", *arguments], env=environment)
    end = time.monotonic() + 200
    while not (output.exists() and output.read_text().count("\n") >= 4):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = output.read_text()
    assert main(arguments) == 0
    assert output.read_text().startswith(before[: before.rfind("\n") + 1])
    assert_same(output, scores)


BAD = {
    "malformed": b'{"id": "x"',
    "id of a fraction": b'{"id": 0.5, "text": "z"}',
    "no text": b'{"id": "y"}',
    "empty": b'{"id": "e", "text": " "}',
    "an id twice": b'{"id": "d3", "text": "again"}',
    "not UTF-8": b'{"id": "u", "text": "\xff"}',
}


@pytest.mark.parametrize("line", BAD.values(), ids=BAD.keys())
def test_a_bad_document_ends_the_call_and_is_named(
    capsys: pytest.CaptureFixture[str], line: bytes, run: Path, docs: Path, tmp_path: Path
) -> None:
    path, output = tmp_path / "bad.jsonl", tmp_path / "scores.jsonl"
    path.write_bytes(b"".join(docs.read_bytes().splitlines(keepends=True)[:5]) + line + b"\n")
    assert "bad.jsonl:6: " in refused(capsys, [*of(run), "--input", str(path), "--output", str(output)])


def test_bad_documents_are_skipped_only_when_asked_and_each_is_named(
    capsys: pytest.CaptureFixture[str], run: Path, docs: Path, scores: Path, tmp_path: Path
) -> None:
    lines = docs.read_bytes().splitlines()
    path, output = tmp_path / "bad.jsonl", tmp_path / "scores.jsonl"
    path.write_bytes(b"\n".join([*lines[:5], *BAD.values(), *lines[5:]]) + b"\n")
    arguments = [*of(run), "--skip-bad", "--input", str(path), "--output", str(output)]
    assert main(arguments) == 0
    said = capsys.readouterr().err
    for number in range(6, 6 + len(BAD)):
        assert len(re.findall(rf"skipped: \S*bad\.jsonl:{number}: ", said)) == 1
    assert f"skipped {len(BAD)} bad documents, named above: 1 empty, 1 malformed JSON, 1 missing field" in said
    assert output.read_bytes() == scores.read_bytes()
    output.write_text("".join(scores.read_text().splitlines(keepends=True)[:9]))
    assert main(arguments) == 0
    assert_same(output, scores)
    nothing = tmp_path / "nothing.jsonl"
    nothing.write_bytes(BAD["empty"])
    assert "no document is left" in refused(
        capsys, [*of(run), "--skip-bad", "--input", str(nothing), "--output", str(tmp_path / "none.jsonl")]
    )


def test_fields_of_other_names_give_the_same_scores(run: Path, docs: Path, scores: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus" / "shards"
    folder.mkdir(parents=True)
    records = [json.loads(line) for line in docs.read_text().splitlines()]
    nested = [{"metadata": {"WARC-Record-ID": r["id"]}, "raw_content": r["text"]} for r in records]
    (folder / "part.ndjson").write_text("".join(json.dumps(record) + "\n" for record in nested))
    files = ["--input", str(folder.parent), "--output", str(tmp_path / "scores.jsonl")]
    assert main([*of(run), *files, "--text-field", "raw_content", "--id-field", "metadata.WARC-Record-ID"]) == 0
    assert_same(tmp_path / "scores.jsonl", scores)
    # As a setting of the run; without ids the place of each names it.
    made = scored([*of(run), "corpus.text_field=raw_content"], folder.parent, tmp_path / "made.jsonl")
    assert [record["id"] for record in made] == [f"shards/part.ndjson:{n + 1}" for n in range(COUNT)]


def test_an_output_inside_the_directory_that_is_read_is_refused(
    capsys: pytest.CaptureFixture[str], run: Path, docs: Path
) -> None:
    output = docs.parent / "sub" / "scores.jsonl"
    error = refused(capsys, [*of(run), "--input", str(docs.parent), "--output", str(output)])
    assert "lies in the directory that is the input" in error and not output.parent.exists()


def test_what_does_not_go_together_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], run: Path, docs: Path, tmp_path: Path
) -> None:
    pair, files = of(run), ["--input", str(docs), "--output", str(tmp_path / "scores.jsonl")]
    theta, probe = ["--checkpoint", pair[2]], ["--probe", pair[4]]
    checkpoint = next((run / "pretrain" / "checkpoints").iterdir())
    alone = tmp_path / "alone"
    alone.symlink_to(checkpoint)
    cases = {
        "give a RECIPE": files,
        "give both": [*theta, *files],
        "stand in place of a RECIPE": ["smoke", *theta, *probe, *files],
        "--input: ": [*theta, *probe],
        "--output: give a file": [*theta, *probe, "--input", str(docs)],
        "`estimator`: Input should be": [*theta, *probe, *files, "--estimator", "dott"],
        "`micro_batch`": [*theta, *probe, *files, "--micro-batch", "0"],
        "is theta itself": [*theta, "--probe", pair[2], *files],
        "nowhere: no such directory": [*theta[:1], str(tmp_path / "nowhere"), *probe, *files],
        "this stage is not finished": [*theta, "--probe", str(run / "tokenize"), *files],
        "unknown key `paralel`": [*theta, *probe, *files, "paralel.tp=2"],
        "no such tokenizer": [*theta, *probe, *files, "--tokenizer", str(tmp_path / "t.model")],
        "needs a displacement": [*theta, *probe, *files, "--estimator", "two_forward"],
        "packed: wants clip 0": [*theta, *probe, *files, "--packed"],
        "no document with id 'x'": [*theta, *probe, "--input", str(docs), "--explain", "x"],
        "nothing.jsonl: no such file": [*theta, *probe, "--input", "nothing.jsonl", *files[2:]],
    }
    for message, arguments in cases.items():
        assert message in refused(capsys, ["influence", *arguments]), message
    assert not (tmp_path / "scores.jsonl").exists()


def test_a_tokenizer_is_recorded_with_a_stage_and_found_from_its_checkpoint(
    capsys: pytest.CaptureFixture[str], run: Path, docs: Path, scores: Path, tmp_path: Path
) -> None:
    [checkpoint] = (run / "pretrain" / "checkpoints").iterdir()
    elsewhere = tmp_path / "moved"
    (elsewhere).mkdir()
    subprocess.run(["cp", "-r", str(checkpoint), str(elsewhere)], check=True)
    arguments = ["influence", "--checkpoint", str(checkpoint), *of(run)[3:]]
    found = scored(arguments, docs, tmp_path / "found.jsonl")
    assert [r["value"] for r in found] == [json.loads(line)["value"] for line in scores.read_text().splitlines()]
    arguments[2] = str(elsewhere / checkpoint.name)
    files = ["--input", str(docs), "--output", str(tmp_path / "given.jsonl")]
    assert "name one with --tokenizer" in refused(capsys, [*arguments, *files])
    tokenizer = ["--tokenizer", str(run / "tokenize" / "tokenizer")]
    assert scored([*arguments, *tokenizer], docs, tmp_path / "given.jsonl") == found


def main_on_ranks(jobs: list[list[str]], ports: list[int]) -> list[int]:
    codes = []
    for arguments, port in zip(jobs, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        codes.append(main(arguments))
    return codes


def test_two_processes_score_as_one(run: Path, docs: Path, scores: Path, tmp_path: Path) -> None:
    layouts = {"DP2": [], "TP2": ["parallel.tp=2"], "PP2": ["parallel.pp=2"]}
    jobs = [
        [*of(run), "--micro-batch", "3", *extra, "--input", str(docs), "--output", str(tmp_path / f"{name}.jsonl")]
        for name, extra in layouts.items()
    ]
    assert run_ranks(main_on_ranks, 2, jobs=jobs, ports=free_ports(len(jobs))) == [[0] * len(jobs)] * 2
    expected = [json.loads(line) for line in scores.read_text().splitlines()]
    for name in layouts:
        found = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert [record["id"] for record in found] == [record["id"] for record in expected], name
        values = [record["value"] for record in expected]
        assert [record["value"] for record in found] == pytest.approx(values, rel=1e-5, abs=1e-6), name


def test_an_explanation_is_the_document_s_score_in_numbers(
    capsys: pytest.CaptureFixture[str], run: Path, docs: Path, scores: Path
) -> None:
    expected = json.loads(scores.read_text().splitlines()[3])
    capsys.readouterr()
    assert main([*of(run), "--input", str(docs), "--explain", "d3"]) == 0
    shown = capsys.readouterr().out
    assert (
        "\x1b" not in shown
        and f"{expected['tokens']} tokens in {expected['windows']} windows" in shown
        and f"{expected['value']:+.6f}" in shown
    )
    shares = [float(line.split("\t")[0]) for line in shown.splitlines() if "\t" in line]
    assert math.fsum(shares) == pytest.approx(expected["value"], abs=1e-4)
    total = f"total {expected['value']:+.6f}"
    assert re.search(re.escape(total) + r" = \+\S+ of positive and -\S+ of negative", shown)


class Terminal:
    """Takes what is written and says that it is a terminal."""

    def __init__(self) -> None:
        self.written = ""

    def isatty(self) -> bool:
        return True

    def writelines(self, lines: Sequence[str]) -> None:
        self.written += "".join(lines)


def test_on_a_terminal_the_text_itself_is_coloured_and_nothing_in_it_can_drive_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pieces = (("up", 0.4), (" down\n", -0.4), ("\x1b[2J", 0.1), (" flat", 0.0), ("end", math.nan))
    score = SequenceScore(value=0.1, tokens=5, windows=1, shares=(), loss=1.0)
    found = Explanation(id="a\x1bb", score=score, estimator="dot", shares_by="site", pieces=pieces)
    for name, value in (("NO_COLOR", ""), ("NO_COLOR", "1")):
        monkeypatch.setenv(name, value)
        terminal = Terminal()
        show(found, terminal)
        plain = re.sub(r"\x1b\[[0-9;]*m", "", terminal.written)
        assert plain.replace("\n", "").isprintable() or "\t" in plain
        assert ("\x1b[30;48;5;77mup\x1b[0m" in terminal.written) == (not value)
        assert ("share at least" in plain) == (not value)
    assert "\x1b" not in terminal.written and "+0.400000\t'up'" in terminal.written


def test_pieces_spell_the_text_and_hold_all_of_the_shares(run: Path) -> None:
    tokenizer = load_tokenizer(run / "tokenize" / "tokenizer")
    assert isinstance(tokenizer, SentencePieceTokenizer)
    for spelled in ("naïve 日本語, the Congress\n\n of  the 🙂 States", "a", " lead", "broken \ufffd here 日", ""):
        ids = tokenizer.encode(spelled)
        shares = [0.5 + index for index in range(len(ids))]
        pieces = token_pieces(tokenizer, ids, shares)
        assert "".join(piece for piece, _ in pieces) == tokenizer.decode(ids)
        assert sum(share for _, share in pieces) == sum(shares)
    whole = token_pieces(tokenizer, tokenizer.encode("日"), [1.0] * len(tokenizer.encode("日")))
    assert [piece for piece, _ in whole][-1] == "日"
