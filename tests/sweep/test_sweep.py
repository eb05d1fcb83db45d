"""A sweep of real trainings: its trials are runs, the best is a recipe, and what ends badly is told and passed over."""

import json
import sqlite3
import xml.etree.ElementTree as ET
from contextlib import closing
from pathlib import Path

import pytest

from docs.site.schemas import schemas
from synpro_engine.config import UserError, load_config, read_yaml
from synpro_engine.config.errors import TransientError
from synpro_engine.config.lock import locked
from synpro_engine.cycle import Cycle, Recipe, load_recipe
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.dist.testing import run_ranks
from synpro_engine.sweep import Sweep, SweepConfig, ranges_of, study
from synpro_engine.train.metrics import read_metrics
from tests.cli.refusals import refused, succeeded

LR, DECAY = "pretrain.optimizer.lr", "pretrain.optimizer.weight_decay"
SMALL = (
    "pretrain.max_steps=12", "pretrain.eval_every=4", "pretrain.checkpoint_every=4", "pretrain.in_run=null",
    "pretrain.plateau=null", "pretrain.tensorboard=false", "corpus.max_train_tokens=6000", "tokenizer.vocab_size=400",
    "model.vocab_size=400", "pretrain.schedule.warmup_steps=2", "corpus.max_held_out_tokens=1500",
)  # fmt: skip
BRIEF = ("pretrain.max_steps=4", "pretrain.eval_every=2")
DIVERGES = ("pretrain.divergence={rise: 0.5, evaluations: 1}", "pretrain.optimizer.clip=0")


def swept(directory: Path, over: list[str], *overrides: str, parallel: ParallelConfig | None = None, **config) -> Sweep:
    recipe = load_recipe("smoke", [*SMALL, *overrides])
    with launched(parallel or ParallelConfig()) as topology:
        sweep = Sweep(recipe, ranges_of(over, recipe), directory, SweepConfig(**config), topology)
        sweep.run()
    return sweep


def records(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "trials.jsonl").read_text().splitlines()]


def evaluations(run: Path) -> list[tuple[int, float]]:
    [path] = [path for name in ("pretrain", "pretrain.partial") if (path := run / name / "metrics.jsonl").exists()]
    return [(record["step"], record["reference_loss"]) for record in read_metrics(path) if record["kind"] == "eval"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of three trials."""
    directory = tmp_path_factory.mktemp("sweeps") / "done"
    swept(directory, [f"{LR}=1e-4..1e-2:log", f"{DECAY}=0.1..3"], trials=3)
    return directory


def test_each_trial_is_a_run_with_its_settings_and_the_text_is_made_once(done: Path) -> None:
    for record in records(done):
        run = done / "trials" / f"{record['trial']:03d}"
        recipe = load_config(Recipe, read_yaml(run / "config.yaml"))
        assert {key: recipe.at(key) for key in (LR, DECAY)} == record["settings"]
        assert evaluations(run)[-1] == (12, record["loss"]) and len(evaluations(run)) == 4
        assert (run / "tokenize").resolve() == done / "text" / "tokenize"
        stages = [json.loads(line)["stage"] for line in (run / "stages.jsonl").read_text().splitlines()]
        assert stages == ["pretrain"]
    assert len({record["settings"][LR] for record in records(done)}) == 3


def test_the_best_recipe_trains_to_the_loss_that_it_names(done: Path, tmp_path: Path) -> None:
    recipe, best = load_recipe(str(done / "best.yaml")), min(records(done), key=lambda record: record["loss"])
    assert recipe.tuned.trial == best["trial"] and recipe.tuned.loss == best["loss"] and recipe.tuned.trials == 3
    assert recipe.tuned.settings == best["settings"]
    with launched(recipe.parallel) as topology:
        Cycle(recipe, tmp_path / "run", topology).run("pretrain")
        cycle = Cycle(recipe, tmp_path / "run", topology)
        cycle.write_report()
    assert evaluations(tmp_path / "run")[-1] == (12, best["loss"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"trial {best['trial']} of 3" in page and recipe.tuned.sweep in page


def test_what_is_written_is_documented_and_shows_every_trial(done: Path) -> None:
    for name in ("trials.jsonl", "sweep.json"):
        text = (done / name).read_text()
        for line in [text] if name == "sweep.json" else text.splitlines():
            assert schemas()[name].faults(json.loads(line)) == []
    table = (done / "table.txt").read_text().splitlines()
    losses = [float(line.split()[2]) for line in table[1:]]
    assert table[0].split() == ["trial", "state", "reference", "loss", "step", "lr", "weight_decay", "time", "why"]
    assert losses == sorted(losses) and len(losses) == 3
    picture = ET.parse(done / "trials.svg").getroot()
    texts = {element.text for element in picture.iter() if element.text}
    assert {"lr", "weight_decay", "reference loss"} <= texts


def test_the_same_command_again_makes_nothing_and_more_trials_go_on(done: Path) -> None:
    before, over = records(done), [f"{LR}=1e-4..1e-2:log", f"{DECAY}=0.1..3"]
    stamps = [(path, path.stat().st_mtime_ns) for path in done.glob("trials/*/pretrain/result.json")]
    swept(done, over, trials=3)
    assert records(done) == before
    assert [(path, path.stat().st_mtime_ns) for path, _ in stamps] == stamps
    swept(done, over, trials=4, pruner="none")
    assert records(done)[:3] == before and len(records(done)) == 4


def test_a_corpus_that_is_put_away_behind_the_text_holds_up_no_trial(tmp_path: Path) -> None:
    corpus, place = tmp_path / "corpus.jsonl", tmp_path / "sweep"
    lines = (
        json.dumps({"text": f"{number} and {number * number} are what line {number} says."}) for number in range(500)
    )
    corpus.write_text("".join(line + "\n" for line in lines))
    settings = (*BRIEF, f"corpus.source={corpus}", "references.split={}", "tokenizer.vocab_size=300")
    swept(place, [f"{LR}=1e-3,2e-3,3e-3"], *settings, sampler="grid", trials=1)
    corpus.unlink()
    swept(place, [f"{LR}=1e-3,2e-3,3e-3"], *settings, sampler="grid", trials=2)
    states = [record["state"] for record in records(place)]
    assert states.count("complete") == 2 and states.count("failed") == 0


def test_another_sweep_in_the_same_directory_is_refused_and_told_what_differs(done: Path, tmp_path: Path) -> None:
    over = [f"{LR}=1e-4..1e-2:log", f"{DECAY}=0.1..3"]
    with pytest.raises(UserError, match="another sweep: `over`"):
        swept(done, over[:1])
    with pytest.raises(UserError, match=r"another sweep: `recipe.pretrain.global_batch` is 8 there, 4 here"):
        swept(done, over, "pretrain.global_batch=4")
    with pytest.raises(UserError, match="another sweep: `measured`"):
        swept(done, over, measured="validation")
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds mine\.txt, and no sweep"):
        swept(tmp_path, over)


def test_a_storage_without_the_trials_that_are_here_is_refused(tmp_path: Path) -> None:
    swept(tmp_path, [f"{LR}=1e-3,2e-3"], *BRIEF, trials=1)
    (tmp_path / "study.db").unlink()
    with pytest.raises(UserError, match="the storage has no trial 0, whose run is here"):
        swept(tmp_path, [f"{LR}=1e-3,2e-3"], *BRIEF, trials=1)


def test_trials_that_diverge_fall_behind_or_cannot_be_trained_are_told_and_the_others_go_on(tmp_path: Path) -> None:
    # kv_heads 4 does not go with heads 2, and a rate of 1e4 diverges.
    swept(
        tmp_path, [f"{LR}=3e-3,1e4", "model.heads=4,2", "model.kv_heads=2,4"], *DIVERGES, *BRIEF,
        sampler="grid", pruner="none",
    )  # fmt: skip
    found = {tuple(record["settings"].values()): record for record in records(tmp_path)}
    assert len(found) == 8
    for (lr, heads, kv_heads), record in found.items():
        wanted = "failed" if (heads, kv_heads) == (2, 4) else "diverged" if lr == 1e4 else "complete"
        assert record["state"] == wanted, record
        assert (record["why"] is None) == (wanted == "complete")
    assert all("kv_heads" in record["why"] for record in found.values() if record["state"] == "failed")
    diverged = next(record["trial"] for record in found.values() if record["state"] == "diverged")
    assert not (tmp_path / "trials" / f"{diverged:03d}" / "pretrain.partial" / "checkpoints").exists()
    assert load_recipe(str(tmp_path / "best.yaml")).pretrain.optimizer.lr < 1
    table = (tmp_path / "table.txt").read_text()
    assert "diverged" in table and "failed" in table


def test_a_trial_that_falls_behind_is_ended_at_an_evaluation_and_not_before_a_third(tmp_path: Path) -> None:
    over = [f"{LR}=3e-3,3.1e-3,3.2e-3,3.3e-3,1e-7"]
    swept(tmp_path, over, "pretrain.eval_every=2", "pretrain.schedule.warmup_steps=0", sampler="grid")
    *others, last = records(tmp_path)
    assert [record["state"] for record in others] == ["complete"] * 4
    assert (last["state"], last["step"], last["why"]) == ("pruned", 4, "at step 4")
    assert evaluations(tmp_path / "trials" / "004")[-1] == (4, last["loss"])
    assert not (tmp_path / "trials" / "004" / "pretrain").exists()


def test_trials_that_cannot_be_trained_one_after_the_other_end_the_command(tmp_path: Path) -> None:
    # The last one varies first, and 2 heads cannot have keys and values for 4.
    over = ["model.kv_heads=4,2", "model.heads=2,4", f"{DECAY}=0.1,0.2,0.3"]
    with pytest.raises(UserError, match="3 trials in a row cannot be trained; the last one: "):
        swept(tmp_path, over, sampler="grid")
    assert [record["state"] for record in records(tmp_path)][:4] == ["failed"] * 3 + ["waiting"]


def test_a_storage_that_does_not_answer_on_the_way_ends_the_worker_and_not_the_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, told = study.Study.report, list[int]()

    def locked_out(self: study.Study, number: int, step: int, loss: float) -> bool:
        told.append(step)
        if len(told) != 2:
            return report(self, number, step, loss)
        with closing(sqlite3.connect(tmp_path / "study.db", isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            return report(self, number, step, loss)

    monkeypatch.setattr(study, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(study.Study, "report", locked_out)
    with pytest.raises(TransientError, match=r"--storage .*study.db: does not answer"):
        swept(tmp_path, [f"{LR}=1e-3..2e-3"], trials=1)
    assert told == [4, 8] and [record["state"] for record in records(tmp_path)] == ["running"]
    swept(tmp_path, [f"{LR}=1e-3..2e-3"], trials=1)
    assert told[2:] == [8, 12] and [record["state"] for record in records(tmp_path)] == ["complete"]


def test_a_trial_that_another_process_is_at_is_left_to_it(tmp_path: Path) -> None:
    over = [f"{LR}=1e-3,2e-3,3e-3"]
    swept(tmp_path, over, *BRIEF, sampler="grid", trials=1)
    # As a second worker: it has the next trial's directory before this one comes to it.
    with locked(tmp_path / "trials" / "001"):
        swept(tmp_path, over, *BRIEF, sampler="grid")
        assert [record["state"] for record in records(tmp_path)] == ["complete", "running", "complete"]
    swept(tmp_path, over, *BRIEF, sampler="grid")
    assert [record["state"] for record in records(tmp_path)] == ["complete"] * 3


def on_two_ranks(directory: str) -> list[dict]:
    over, alike = [f"{LR}=1e-3,1e4"], (*DIVERGES, *BRIEF)
    swept(Path(directory), over, *alike, parallel=ParallelConfig(), sampler="grid", pruner="none")
    return records(Path(directory))


@pytest.mark.slow
def test_two_ranks_make_the_trials_that_one_process_makes(tmp_path: Path) -> None:
    swept(tmp_path / "one", [f"{LR}=1e-3,1e4"], *DIVERGES, *BRIEF, sampler="grid", pruner="none")
    alone, (first, second) = records(tmp_path / "one"), run_ranks(on_two_ranks, 2, directory=str(tmp_path / "two"))
    assert first == second
    for one, two in zip(alone, first, strict=True):
        assert (one["state"], one["settings"]) == (two["state"], two["settings"])
        if one["state"] == "complete":
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert [record["state"] for record in alone] == ["complete", "diverged"]


def test_the_command_refuses_in_one_line_and_prints_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, "sweep", "smoke", *SMALL, "--over", "pretrain.lr=1e-4..1e-2")
    assert "is `pretrain.optimizer.lr` meant?" in line
    assert not (tmp_path / "runs").exists()
    told = succeeded(capsys, "sweep", "smoke", *SMALL, "--over", f"{LR}=1e-3..1e-2:log", "--trials", "1")
    assert told.splitlines()[0].startswith("trial") and "complete" in told
    assert (tmp_path / "runs" / "smoke-sweep" / "best.yaml").exists()
