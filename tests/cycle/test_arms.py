"""Arms of all kinds on the smallest recipe: what each is made from, what they share, and what their data hold."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.site.schemas import faults_in
from synpro_engine.cli.main import main
from synpro_engine.config import UserError, read_manifest
from synpro_engine.config.schemas import SCHEMAS
from synpro_engine.cycle import Cycle, load_recipe
from synpro_engine.cycle.run_layout import shards_path
from synpro_engine.cycle.steps.accepted import accepted_records
from synpro_engine.cycle.steps.evaluation import Results
from synpro_engine.cycle.summaries import report_data
from synpro_engine.cycle.summaries.effective_tokens import effective_tokens
from synpro_engine.cycle.summaries.finished_run import FinishedRun, R
from synpro_engine.cycle.tracing import trace_document, trace_token
from synpro_engine.cycle.tracing.position import finished_steps, open_reading
from synpro_engine.data import open_shards, read_documents
from synpro_engine.dist import launched
from synpro_engine.evaluate.repetition import NAMES
from synpro_engine.report import render_report
from synpro_engine.train.metrics import read_metrics
from tests.cli.refusals import refused, succeeded

ARMS = "prompted best-of-n tuned-without-influence tuned placebo repetition augmented plain oracle oracle-less".split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of all arms."""
    directory = tmp_path_factory.mktemp("runs") / "arms"
    assert main(["run", "arms-smoke", "--dir", str(directory)]) == 0
    return directory


@pytest.fixture
def run(finished: Path) -> Iterator[Cycle]:
    """The same, opened."""
    recipe = load_recipe("arms-smoke")
    with launched(recipe.parallel) as topology:
        yield Cycle(recipe, finished, topology)


def _json(directory: Path, *path: str) -> Any:
    return json.loads(directory.joinpath(*path).read_text())


def _organic(cycle: Cycle, arm: str, seed: int) -> list[tuple[int, int]]:
    """Document and place of the first token of each organic window that an arm read, in their order."""
    [stage] = [name for name in cycle.training_stages if cycle.training(name).arm == arm and _seed(cycle, name) == seed]
    steps = finished_steps(cycle)[stage]
    loader, found = open_reading(cycle, stage, steps).loader, []
    for _ in steps:
        origins = [loader.origin(row, 0) for row in range(loader.global_batch)]
        found += [(origin.document, origin.offset) for origin in origins if origin.source == "organic"]
        loader.skip(1)
    return found


def _seed(cycle: Cycle, stage: str) -> int:
    return cycle.training(stage).settings.seed


def test_arms_of_a_seed_read_the_same_organic_text_in_the_same_order_and_other_seeds_another(run: Cycle) -> None:
    whole = {seed: _organic(run, "repetition", seed) for seed in (7, 8)}
    assert whole[7] != whole[8] and len(whole[7]) == len(whole[8]) == 6 * 8
    for arm in ("augmented", "tuned", "placebo", "oracle"):
        for seed, text in whole.items():
            mine = _organic(run, arm, seed)
            assert 0 < len(mine) <= len(text) and mine == text[: len(mine)], (arm, seed)
    assert len(_organic(run, "tuned", 8)) == round(0.7 * 6 * 8)


def test_all_arms_begin_with_the_same_weights_moments_and_place_in_the_text(run: Cycle) -> None:
    for stage in run.training_stages[1:]:
        assert run.training(stage).start == run.directory / "pretrain"
        first = next(r for r in read_metrics(run.directory / stage / "metrics.jsonl") if r["kind"] == "eval")
        assert first["step"] == 30
        # Dropout is of training alone, so that all measure the same model first.
        assert first["validation_loss"] == _json(run.directory, "pretrain", "result.json")["losses"]["validation"]


def test_what_arms_have_in_common_is_done_once(run: Cycle) -> None:
    probes = [stage.name for stage in run.stages() if stage.name.endswith("/probe")]
    assert probes == ["round-1/probe"] and not list(run.directory.glob("arms/*/round-1/probe"))
    generated = "arms/prompted/round-1/generate-rephrase"
    for arm in ("prompted", "best-of-n"):
        assert generated in read_manifest(run.directory / "arms" / arm / "round-1" / "shards").parents
    assert not (run.directory / "arms" / "best-of-n" / "round-1" / "generate-rephrase").exists()
    tuned = [stage.name for stage in run.stages() if "/tune-" in stage.name]
    assert tuned == [f"arms/{arm}/round-1/tune-rephrase" for arm in ("tuned-without-influence", "tuned", "placebo")]
    names = [stage.name for stage in run.stages()]
    assert len(names) == len(set(names))


def test_best_of_n_takes_the_most_influential_of_each_slice_and_the_other_arm_the_first(run: Cycle) -> None:
    records = list(accepted_records(run.directory / "arms" / "prompted" / "round-1" / "generate-rephrase"))
    slices = [list(of) for _, of in groupby(records, key=lambda record: record.id.rpartition(":")[0])]
    assert len(slices) == 10 and max(map(len, slices)) == 3
    first = {of[0].id for of in slices}
    best = {max(of, key=lambda record: (record.rewards or {})["influence"]).id for of in slices}
    for arm, wanted in (("prompted", first), ("best-of-n", best)):
        shards = run.directory / "arms" / arm / "round-1" / "shards"
        assert set(open_shards(shards_path(shards, "synthetic")).read_ids()) == wanted, arm
    assert best != first


def test_a_placebo_earns_what_the_real_reward_gives_and_not_for_the_same_texts(run: Cycle) -> None:
    """Up to the first update both have drawn the same completions."""
    place = {arm: run.directory / "arms" / arm / "round-1" / "tune-rephrase" for arm in ("tuned", "placebo")}
    first = {arm: read_metrics(path / "metrics.jsonl") for arm, path in place.items()}
    steps = {arm: next(r for r in records if r["kind"] == "tune") for arm, records in first.items()}
    assert steps["tuned"]["reward/influence"] == pytest.approx(steps["placebo"]["reward/influence"])
    assert steps["tuned"]["reward"] == pytest.approx(steps["placebo"]["reward"])
    hashes = {arm: read_manifest(path / "policy").content_hash for arm, path in place.items()}
    assert hashes["tuned"] != hashes["placebo"]
    samples = {
        arm: [r for r in read_metrics(p / "samples" / "metrics.jsonl") if r["step"] == 1] for arm, p in place.items()
    }
    assert [r["text"] for r in samples["tuned"]] == [r["text"] for r in samples["placebo"]]


def test_without_influence_tuning_does_not_measure_it_and_generation_does(run: Cycle) -> None:
    arm = run.directory / "arms" / "tuned-without-influence" / "round-1"
    steps = [r for r in read_metrics(arm / "tune-rephrase" / "metrics.jsonl") if r["kind"] == "tune"]
    assert steps and not any("reward/influence" in step for step in steps)
    assert all("influence" in (record.rewards or {}) for record in accepted_records(arm / "generate-rephrase"))


def test_an_oracles_text_is_in_no_split_and_follows_the_training_split_in_the_order_of_its_cap(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unique = open_shards(shards_path(finished / "unique", "unique"))
    ids = set(unique.read_ids())
    taken = {
        split: {document.id for document in read_documents(str(finished / f"tokenize/documents/{split}.jsonl.zst"))}
        for split in ("train", "reference", "validation")
    }
    assert ids and not any(ids & of for of in taken.values())
    texts = {document.text for document in read_documents(str(finished / "unique/documents/unique.jsonl.zst"))}
    train = {document.text for document in read_documents(str(finished / "tokenize/documents/train.jsonl.zst"))}
    assert len(texts) == unique.num_documents and not texts & train
    assert unique.num_tokens <= load_recipe("arms-smoke").most_unique_tokens == 6 * 8 * 64
    # With a cap as much higher the training split would have had these, and no others.
    more = _json(finished, "tokenize", "shards", "train", "stats.json")["tokens"] + unique.num_tokens
    wider = [f"corpus.max_train_tokens={more}", f"tokenizer.path={finished}/tokenize/tokenizer"]
    succeeded(capsys, "tokenize", "smoke", "--dir", str(tmp_path / "wider"), *wider)
    assert set(open_shards(tmp_path / "wider/tokenize/shards/train").read_ids()) == ids | taken["train"]


def test_settings_of_an_arm_are_its_own_alone(run: Cycle) -> None:
    decays = {
        stage: {
            r["weight_decay"] for r in read_metrics(run.directory / stage / "metrics.jsonl") if r["kind"] == "train"
        }
        for stage in run.training_stages
    }
    others = [decays[stage] for stage in decays if not stage.startswith("repeat")]
    assert decays["repeat"] == decays["repeat-seed-8"] == {1.0} and all(of == {0.1} for of in others)
    config = read_manifest(run.directory / "arms" / "augmented" / "continue").config
    assert config["pretrain"]["dropout"]["tokens"] == 0.1
    assert "dropout" not in read_manifest(run.directory / "repeat").config["pretrain"]


def test_the_report_has_each_arm_and_seed_and_compares_the_same_seeds(run: Cycle) -> None:
    data = report_data(run.directory, run.recipe, run.stages())
    rows = {(row.name, row.seed): row.per_token for row in data.arms.held_out if row.text == "validation"}
    assert set(rows) == {("at the plateau", 7), *((arm, seed) for arm in ARMS for seed in (7, 8))}
    compared = {arm.name: arm for arm in data.arms.compared if arm.text == "validation"}
    assert data.arms.compared_with == "repetition" and compared["repetition"].difference is None
    pairs = [rows["oracle", seed] - rows["repetition", seed] for seed in (7, 8)]
    assert compared["oracle"].difference == pytest.approx(sum(pairs) / 2)
    assert compared["oracle"].error == pytest.approx(abs(pairs[0] - pairs[1]) / 2)
    page = (run.directory / "report.html").read_text()
    assert all(f"<th>{arm}</th>" in page for arm in ARMS) and "placebo: rephrase" in page
    assert {arm.name for arm in data.tokens.arms} == set(ARMS)


def test_the_files_of_a_run_with_arms_are_documented(run: Cycle) -> None:
    assert {"decision.json"} <= SCHEMAS.keys()
    assert faults_in(run.directory) == []


def test_a_finished_run_repeats_nothing_and_an_arm_that_is_added_leaves_the_others(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times = (finished / "stages.jsonl").read_text()
    known = [json.loads(line)["stage"] for line in times.splitlines()]
    before = {name: read_manifest(finished / name).content_hash for name in known}
    more = ["arms.decayed={text: organic, pretrain: {optimizer: {weight_decay: 0.5}}}"]
    succeeded(capsys, "run", "arms-smoke", "--dir", str(finished), *more, "--only", "decayed")
    after = {name: read_manifest(finished / name).content_hash for name in before}
    assert after == before and (finished / "arms" / "decayed" / "evaluate").exists()
    added = [json.loads(line)["stage"] for line in (finished / "stages.jsonl").read_text().splitlines()]
    assert added == [*known, *(f"arms/decayed/{name}" for name in ("continue", "continue-seed-8", "evaluate"))]
    succeeded(capsys, "report", "arms-smoke", "--dir", str(finished), *more)
    succeeded(capsys, "run", "arms-smoke", "--dir", str(finished))  # and without it the run is as it was


def test_runs_are_compared_on_one_page(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, page = tmp_path / "other", tmp_path / "both.html"
    succeeded(capsys, "tokenize", "smoke", "--dir", str(other), "tokenizer.vocab_size=400")
    assert str(page) in succeeded(capsys, "report", str(finished), str(other), "--output", str(page))
    text = page.read_text()
    assert "different tokenizers" in text and "<th>tokenizer.vocab_size</th>" in text and "not run yet" not in text
    assert "<th>model.d_model</th>" not in text and "Nats per token" not in text
    for arguments, told in (
        ([str(finished)], "is a run; name another to compare it with"),
        ([str(finished), str(finished)], "is named twice"),
        ([str(finished), str(tmp_path / "none")], "no run is there; name directories of runs"),
        ([str(finished), str(other), "seed=3"], "report: of several runs seed=3 says nothing"),
        (["arms-smoke", "--output", str(page)], "--output: is for the page of several runs"),
    ):
        assert told in refused(capsys, "report", *arguments)


def test_status_tells_of_stages_and_arms(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = succeeded(capsys, "status", "arms-smoke", "--dir", str(finished))
    lines = told.splitlines()
    assert "50 of 50 stages done" in lines
    rows = [line.split() for line in lines if line.startswith("oracle ")]
    assert [row[1:4] for row in rows] == [
        ["arms/oracle/continue", "7", "36"],
        ["arms/oracle/continue-seed-8", "8", "36"],
    ]
    first = _json(finished, "arms/oracle/evaluate/results.json")["held_out"][0]
    assert float(rows[0][-1]) == pytest.approx(first["nats"] / first["tokens"], abs=1e-3)


def test_what_waits_is_said_to_take_as_long_as_its_like(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    times = [line for line in (run / "stages.jsonl").read_text().splitlines() if '"repeat' not in line]
    (run / "stages.jsonl").write_text("".join(line + "\n" for line in times))
    for name in ("repeat", "repeat-seed-8"):
        shutil.rmtree(run / name)
    told = succeeded(capsys, "status", "arms-smoke", "--dir", str(run))
    rows = [line.split() for line in told.splitlines() if line.startswith("repeat")]
    assert [(row[1], row[-1]) for row in rows] == [("waiting", "s")] * 2, rows
    assert "48 of 50 stages done, " in told


def test_an_oracle_with_less_text_reads_the_beginning_of_the_others_and_its_curve_says_how_much(run: Cycle) -> None:
    unique = open_shards(shards_path(run.directory / "unique", "unique"))
    less = unique.head(800)
    assert (
        0 < less.num_tokens <= 800 < unique.num_tokens
        and list(less.read_ids()) == list(unique.read_ids())[: less.num_documents]
    )
    stage = "arms/oracle-less/continue"
    reading = open_reading(run, stage, finished_steps(run)[stage])
    assert reading.corpora["unique"].num_documents == less.num_documents
    [curve] = report_data(run.directory, run.recipe, run.stages()).effective_tokens.curves
    organic = _json(run.directory, "tokenize", "shards", "train", "stats.json")["tokens"]
    read = _json(run.directory, "arms/oracle/continue/result.json")["samples"]["unique"] * 64
    assert (curve.base, curve.settings) == ("plain", "")
    windows = _json(run.directory, "arms/plain/continue/result.json")["samples"]
    assert curve.total == 64 * sum(windows.values()) and list(curve.readings) == list(NAMES)
    assert [point.arms for point in curve.points] == [("plain",), ("oracle-less",), ("oracle",)]
    assert [point.tokens for point in curve.points] == [organic, organic + less.num_tokens, organic + read]
    assert set(curve.arms) == set(ARMS) - {"oracle", "oracle-less"}
    assert [len(point.losses) for point in curve.points] == [2, 2, 2] and "2 seeds" in " ".join(curve.missing)
    missing = report_data(run.directory, run.recipe, run.stages()).effective_tokens.missing
    assert len(missing) == 2 and "trains as repetition does" in missing[0] and "the curve of plain" in missing[0]


class _Altered(FinishedRun):
    """The finished run, but that seed 8 of one arm has diverged and another arm ends early."""

    def results(self) -> dict[str | None, Results]:
        found = super().results()
        [first, other] = [row for row in found["tuned"].held_out if row.text == "validation"]
        rows = (first, dataclasses.replace(other, nats=math.nan))
        return found | {"tuned": found["tuned"].model_copy(update={"held_out": rows})}

    def record(self, stage: str, name: str, cls: type[R]) -> R:
        found = super().record(stage, name, cls)
        early = "arms/prompted/" in stage and name == "result.json"
        return found.model_copy(update={"step": 34}) if early else found


def test_what_does_not_count_among_effective_tokens_is_named(run: Cycle) -> None:
    names = [stage.name for stage in run.stages()]
    found = effective_tokens(_Altered(run.directory, run.recipe, names))
    [curve] = found.curves
    assert len(curve.arms["tuned"]) == 1 and "not finite, and left out: tuned (seed 8)" in " ".join(found.missing)
    assert set(curve.arms) == set(ARMS) - {"oracle", "oracle-less", "prompted"}
    assert "another step than plain (36): prompted (step 34)" in " ".join(curve.missing)


def test_the_first_seed_of_effective_tokens_is_that_of_seeds_whatever_the_recipes_own_is(run: Cycle) -> None:
    recipe, names = run.recipe.model_copy(update={"seed": 8}), [stage.name for stage in run.stages()]
    [curve] = effective_tokens(FinishedRun(run.directory, recipe, names)).curves
    assert [len(point.losses) for point in curve.points] == [2, 2, 2]


def test_unique_text_is_no_epoch_of_the_organic_one_in_the_report(run: Cycle) -> None:
    data = report_data(run.directory, run.recipe, run.stages())
    assert data.tokens is not None
    arms = {arm.name: arm for arm in data.tokens.arms}
    stage = _json(run.directory, "arms/oracle/continue/result.json")["samples"]
    assert arms["oracle"].unique == stage["unique"] * run.recipe.model.seq_len > 0
    assert all(arms[name].unique == 0 < arms[name].organic for name in set(ARMS) - {"oracle", "oracle-less"})
    totals = {arm.organic + arm.unique + arm.synthetic for arm in arms.values()}
    assert len(totals) == 1  # all train as long
    assert "More of its kind" in render_report(data)


def test_samples_of_the_report_are_of_several_slices(run: Cycle) -> None:
    data = report_data(run.directory, run.recipe, run.stages())
    shown = [sample.source_id for sample in data.samples if sample.operation.startswith("prompted") and sample.accepted]
    assert len(shown) == len(set(shown)) == 5


def test_the_curve_of_each_arm_is_the_mean_of_what_its_seeds_measured(run: Cycle) -> None:
    curves = report_data(run.directory, run.recipe, run.stages()).arms.curves
    found = {curve.name: curve for curve in curves if curve.kind == "validation"}
    assert set(found) == set(ARMS)
    for arm, stage in (("tuned", "arms/tuned/round-1/continue"), ("oracle", "arms/oracle/continue")):
        rows = [read_metrics(run.directory / name / "metrics.jsonl") for name in (stage, f"{stage}-seed-8")]
        ends = [[row["validation_loss"] for row in of if row["kind"] == "eval"][-1] for of in rows]
        curve = found[arm]
        assert curve.seeds == 2 and curve.steps[0] == 30 and ends[0] != ends[1]
        assert (curve.low[-1], curve.high[-1]) == (min(ends), max(ends))
        assert curve.loss[-1] == pytest.approx(sum(ends) / 2)


def test_oracles_whose_caps_give_them_the_same_text_are_not_more_seeds(run: Cycle) -> None:
    recipe = load_recipe("arms-smoke", ["arms.oracle-less.unique_tokens=99999"])
    names = [stage.name for stage in run.stages()]
    [curve] = effective_tokens(FinishedRun(run.directory, recipe, names)).curves
    [apart] = report_data(run.directory, run.recipe, run.stages()).effective_tokens.curves
    assert [point.arms for point in curve.points] == [("plain",), ("oracle", "oracle-less")]
    assert curve.points[1].losses == apart.points[2].losses and "count once" in " ".join(curve.missing)


def test_questions_are_asked_in_pretraining_and_in_every_arm_and_reported(run: Cycle) -> None:
    found = report_data(run.directory, run.recipe, run.stages()).downstream
    assert [curve.name for curve in found.curves] == [None, *run.recipe.arms]
    assert found.curves[0].steps == (0, 10, 20, 30) and {curve.steps for curve in found.curves[1:]} == {(30, 36)}
    # All go on from one model.
    assert {curve.bits_per_byte[0] for curve in found.curves[1:]} == {found.curves[0].bits_per_byte[-1]}
    assert len(found.ends) == 1 + 2 * len(run.recipe.arms) and found.asked[0].chance == pytest.approx(0.25, abs=0.01)


def test_texts_of_each_arm_are_held_against_the_model_at_the_plateau(run: Cycle) -> None:
    found = report_data(run.directory, run.recipe, run.stages()).diversity
    made = [gauge for name, gauge in found.items() if name != "organic"]
    assert len(made) == 5 and all(gauge.perplexity and gauge.organic_perplexity for gauge in made)
    # What a random generator writes is likely to no one; organic text is much as in the held-out loss.
    assert all((gauge.perplexity_gap or 0) > 1 for gauge in made)
    loss = _json(run.directory, "pretrain", "result.json")["losses"]["validation"]
    assert all(abs(math.log(gauge.organic_perplexity or 1) - loss) < 0.5 for gauge in made)
    assert found["organic"].perplexity is None


def test_a_text_that_several_arms_have_under_one_id_is_told_by_arm(run: Cycle) -> None:
    id = next(accepted_records(run.directory / "arms" / "placebo" / "round-1" / "generate-rephrase")).id
    first = trace_document(run, id)
    assert first.arm == "prompted" and set(first.also) == {
        "tuned-without-influence",
        "tuned",
        "placebo",
    }  # best-of-n chooses from the same
    mine = trace_document(run, id, "placebo")
    assert mine.arm == "placebo" and mine.synthetic is not None and "placebo" in mine.synthetic.stage
    assert mine == trace_document(run, id, "arms/placebo/round-1/continue")
    source = next(iter(accepted_records(run.directory / mine.synthetic.stage))).provenance.source
    assert {one.stage for one in trace_document(run, source, "tuned").made} == {"arms/tuned/round-1/generate-rephrase"}
    with pytest.raises(UserError, match=r"--arm placibo: no such arm; .*did you mean `placebo`"):
        trace_document(run, id, "placibo")
    with pytest.raises(UserError, match=r"--arm oracle: has no text .*; there is one of prompted, best-of-n"):
        trace_document(run, id, "oracle")


def test_tokens_and_documents_of_arms_are_traced_to_their_own_texts(run: Cycle) -> None:
    seen = set()
    for stage in ("arms/best-of-n/round-1/continue-seed-8", "arms/oracle/continue", "arms/placebo/round-1/continue"):
        for row in range(8):
            found = trace_token(run, stage, 33, row, 7)
            seen.add(found.source)
            if found.synthetic is not None:
                assert found.synthetic.stage.startswith("arms/") and found.synthetic.record["id"] == found.document
    assert seen == {"organic", "round-1", "unique"}
    record = next(accepted_records(run.directory / "arms" / "prompted" / "round-1" / "generate-rephrase"))
    made = trace_document(run, record.provenance.source).made
    own = {one.stage: one.life.fate for one in made if one.id == record.id}
    assert set(own) == {f"arms/{arm}/round-1/generate-rephrase" for arm in ARMS[:5] if arm != "best-of-n"}


def test_a_document_of_an_oracle_is_traced_to_the_steps_that_read_it(run: Cycle) -> None:
    stage = "arms/oracle-less/continue"
    origins = [trace_token(run, stage, 33, row, 7) for row in range(8)]
    token = next(origin for origin in origins if origin.source == "unique")
    found = trace_document(run, token.document)
    assert found.split == "unique" and found.text is not None and found.life is not None
    assert {read.stage.split("/")[1].split("-seed")[0] for read in found.life.read} == {"oracle", "oracle-less"}
    assert any(
        read.stage == stage and (33, token.row) in [place[:2] for place in read.places] for read in found.life.read
    )
    # One that the smaller oracle was not given.
    last = list(open_shards(shards_path(run.directory / "unique", "unique")).read_ids())[-1]
    of_last = trace_document(run, last).life
    assert of_last is not None and all(read.stage.startswith("arms/oracle/") for read in of_last.read)


def test_arms_that_share_their_texts_are_traced_and_counted_through_them(finished: Path, tmp_path: Path) -> None:
    directory, half = tmp_path / "arms", "arms.half={text: tuned, continued: {synthetic_share: 0.25}}"
    shutil.copytree(finished, directory)
    assert main(["run", "arms-smoke", half, "--dir", str(directory)]) == 0
    assert not (directory / "arms" / "half" / "round-1" / "shards").exists()
    recipe = load_recipe("arms-smoke", [half])
    with launched(recipe.parallel) as topology:
        cycle = Cycle(recipe, directory, topology)
        cycle.look()
        made = accepted_records(directory / "arms" / "tuned" / "round-1" / "generate-rephrase")
        lives = [trace_document(cycle, record.id, "half").life for record in made]
        read = {one.stage for life in lives if life is not None for one in life.read if one.tokens}
        assert {"arms/half/round-1/continue", "arms/tuned/round-1/continue"} <= read
        tokens = report_data(directory, recipe, cycle.stages()).tokens
    assert tokens is not None
    rows = {one.operation: one for one in tokens.made}
    assert rows["half: rephrase"].tokens == rows["tuned: rephrase"].tokens > 0 and rows["half: rephrase"].trained
    assert "half: rephrase" not in tokens.synthetic  # they were made once


@pytest.mark.slow
def test_a_run_killed_in_arms_of_every_kind_ends_with_the_artifacts_of_one_never_killed(
    finished: Path, tmp_path: Path
) -> None:
    run, arms = tmp_path / "killed", tmp_path / "killed" / "arms"
    command = [sys.executable, "-m", "synpro_engine", "run", "arms-smoke", "--dir", str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    moments: list[Callable[[], bool]] = [
        (run / "unique.partial").exists,
        (arms / "prompted" / "round-1" / "continue-seed-8.partial").exists,
        lambda: any((arms / "placebo" / "round-1" / "tune-rephrase.partial" / "checkpoints").glob("step-*")),
        (run / "repeat-seed-8.partial" / "metrics.jsonl").exists,
        (arms / "oracle" / "continue").exists,
    ]
    for ready in moments:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 300
        while not ready():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        process.kill()
        process.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0 and "[arms/placebo/round-1/shards] there already" in done.stderr, done.stderr[-3000:]
    for stage in ("evaluate", *(f"arms/{arm}/evaluate" for arm in ARMS)):
        assert _json(run, stage, "results.json") == _json(finished, stage, "results.json"), stage


def test_an_arm_that_is_another_one_is_refused_where_something_is_made_and_not_in_what_is_looked_at(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs that were finished before such arms were refused can be reported and traced."""
    directory, more = tmp_path / "run", "arms.again={text: organic, mix: {megadocs: {generations: 2}}}"
    shutil.copytree(finished, directory)
    told = refused(capsys, "run", "arms-smoke", more, "--dir", str(directory))
    assert "arms.again: nothing that it does goes by its settings, so that it would be arms.plain once more" in told
    config = directory / "config.yaml"
    was = yaml.safe_load(config.read_text())
    arms = was["arms"] | {"again": {"text": "organic", "mix": {"megadocs": {"generations": 2}}}}
    config.write_text(config.read_text().splitlines()[0] + "\n" + yaml.safe_dump(was | {"arms": arms}, sort_keys=False))
    succeeded(capsys, "report", "arms-smoke", more, "--dir", str(directory))
    document = next(iter(open_shards(shards_path(directory / "tokenize", "train")).read_ids()))
    succeeded(capsys, "trace", "arms-smoke", document, more, "--dir", str(directory))
    succeeded(capsys, "run", "arms-smoke", more, "--dir", str(directory))


def test_a_recipe_may_be_called_as_a_run_in_the_working_directory(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished.parent)
    finished.with_name("arms-smoke").symlink_to(finished)
    succeeded(capsys, "report", "arms-smoke", "--dir", "arms-smoke")
    assert "is a run; name another" in refused(capsys, "report", "arms-smoke")
    finished.with_name("arms-smoke").unlink()
