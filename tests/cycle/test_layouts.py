"""The pretrained model in one layout and the generator in another: what cannot be is refused, the rest is as alone."""

import hashlib
import json
import os
import signal
from pathlib import Path

import pytest

from synpro_engine.cli.main import main
from synpro_engine.config import UserError
from synpro_engine.cycle import Cycle, load_recipe
from synpro_engine.cycle.layouts import check_recipe
from synpro_engine.data import Batch, TokenLoader
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.dist.testing import free_ports, run_ranks
from synpro_engine.influence import read_scores
from synpro_engine.train.metrics import read_metrics
from tests.cli.test_influence import main_on_ranks

SMALL = [
    *("pretrain.max_steps=10", "pretrain.plateau=null", "probe.sampled_steps=2"),
    "tune={rephrase: {steps: 1, prompts_per_step: 2, group_size: 2, sampling: {max_new_tokens: 16}}}",
    *("generate.operations=[rephrase]", "generate.max_slices=6", "generate.sampling.max_new_tokens=24"),
    *("continued.steps=4", "continued.synthetic_epochs=20.0"),
]


@pytest.mark.parametrize(
    ("ranks", "overrides", "message"),
    [
        (2, ["generator.parallel.tp=2", "influence.estimator=jvp"], "`influence.estimator`: jvp takes whole models"),
        (
            1,
            ["influence.estimator=finite_difference", "probe.kind=walk", "dtype=bfloat16"],
            "means nothing in bfloat16",
        ),
        (2, ["generator.parallel.pp=2"], "`generator.parallel.pp`: the generator samples without a pipeline"),
        (2, ["parallel.pp=2"], "`parallel.pp`: the generator samples .* `pretrain.parallel.pp` gives one to"),
        (2, ["pretrain.parallel.pp=2", "pretrain.micro_batch=3"], "`pretrain.micro_batch`: 3 .* the 8 sequences"),
        (2, ["pretrain.parallel.pp=2", "probe.micro_batch=5"], "`probe.micro_batch`: 5 does not divide"),
        (
            4,
            ["pretrain.parallel.pp=2", "pretrain.global_batch=3"],
            "by 2 data-parallel ranks, which `pretrain.parallel`",
        ),
        (
            4,
            ["pretrain.parallel.pp=2"],
            "`tune.rephrase.prompts_per_step`: 2 .* 4 data-parallel ranks, which `parallel`",
        ),
        (4, ["generator.parallel.tp=2", "tune.rephrase.prompts_per_step=3"], "2 data.* which `generator.parallel`"),
        (3, ["pretrain.parallel.pp=2"], r"`pretrain.parallel`: tp 1 x pp 2 does not divide the 3 process"),
        (3, ["pretrain.parallel.pp=3"], r"`model.layers`: 2 cannot be divided by 3 \(`pretrain.parallel.pp` = 3"),
        (2, ["pretrain.parallel={pp: 2, vpp: 2}", "model.layers=4", "pretrain.micro_batch=8"], "makes 1 micro-batches"),
        (2, ["pretrain.parallel.cp=2", "model.seq_len=126"], "`model.seq_len`: 126 .* by 4, as `pretrain.parallel.cp`"),
        (4, ["pretrain.parallel={cp: 2, tp: 2, sequence_parallel: true}", "model.seq_len=130"], "by 4, as .*.cp` = 2"),
        (3, ["parallel.cp=2"], r"`parallel`: tp 1 x pp 1 x cp 2 does not divide the 3 process"),
        (4, ["parallel.cp=2", "pretrain.global_batch=3"], "by 2 data-parallel ranks, which `parallel` leaves"),
        (4, ["pretrain.parallel.cp=4"], "`tune.rephrase.prompts_per_step`: 2 .* which `parallel` leaves$"),
        (
            4,
            ["parallel.cp=4"],
            r"prompts_per_step`: 2 .* leaves \(those of `parallel.cp` .*`pretrain.parallel.cp` leaves",
        ),
        (8, ["parallel.tp=4", "generator.model.heads=8"], r"`model.kv_heads`: 2 cannot be divided by `parallel.tp`"),
        (
            *(8, ["generator.parallel.tp=4", "pretrain.global_batch=16"]),
            r"`generator.model.kv_heads`: 2 cannot be divided by `generator.parallel.tp` = 4",
        ),
    ],
)
def test_a_layout_that_cannot_run_a_model_is_refused_by_its_own_key(
    ranks: int, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_recipe(load_recipe("smoke", overrides), ranks)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (2, ["pretrain.parallel.pp=2"]),
        (2, ["parallel.pp=2", "generator.parallel.tp=1"]),
        (2, ["parallel.cp=2"]),
        (4, ["pretrain.parallel={cp: 2, tp: 2, sequence_parallel: true}", "generator.parallel.tp=2"]),
        (4, ["pretrain.parallel={tp: 2, pp: 2}", "generator.parallel.tp=2"]),
        (2, ["pretrain.parallel={pp: 2, vpp: 2}", "model.layers=4", "pretrain.micro_batch=2"]),
    ],
)
def test_a_layout_for_each_model_is_taken(ranks: int, overrides: list[str]) -> None:
    check_recipe(load_recipe("smoke", overrides), ranks)


def test_a_generator_s_files_say_what_can_be_cut(tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 2, "hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3}
    shape |= {"model_type": "llama", "intermediate_size": 32, "vocab_size": 64, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    recipe = load_recipe("smoke", [f"generator={{source: {tmp_path}, parallel: {{tp: 2}}}}"])
    with pytest.raises(
        UserError, match=r"`generator.source`: its heads: 9 cannot be divided by `generator.parallel.tp`"
    ):
        check_recipe(recipe, 2)
    (tmp_path / "config.json").unlink()  # as where it is imported already
    check_recipe(recipe, 2)


def test_pretraining_alone_takes_a_pipeline_of_the_whole_job() -> None:
    check_recipe(load_recipe("smoke", ["parallel.pp=2"]), 2, samples=False)
    with pytest.raises(
        UserError, match=r"`pretrain.global_batch`: 8 .* 3 data-parallel ranks, which `parallel` leaves"
    ):
        check_recipe(load_recipe("smoke"), 3, samples=False)


def test_a_probe_that_lies_behind_a_round_is_refused_where_the_round_cannot_be_made(tmp_path: Path) -> None:
    recipe = load_recipe("smoke", ["rounds=2", "tune.rephrase.train_last_blocks=99"])
    with launched(ParallelConfig()) as topology, pytest.raises(UserError, match="is more than the generator's"):
        Cycle(recipe, tmp_path / "run", topology).run("probe")
    assert not (tmp_path / "run").exists()


def test_the_server_of_an_arm_is_asked_before_the_first_stage_too(tmp_path: Path) -> None:
    server = "generate: {server: {endpoint: 'http://127.0.0.1:9/v1', api_key_env: SET_NOWHERE}}"
    recipe = load_recipe("smoke", [f"arms={{plain: {{text: organic}}, served: {{text: prompted, {server}}}}}"])
    with launched(ParallelConfig()) as topology:
        with pytest.raises(UserError, match="SET_NOWHERE is not set"):
            Cycle(recipe, tmp_path / "run", topology).run()
        assert not (tmp_path / "run" / "tokenize").exists()
        Cycle(recipe, tmp_path / "run", topology).run("tokenize")


def test_a_generator_that_shares_sequences_is_refused_by_its_key() -> None:
    with pytest.raises(UserError, match=r"`generator\.parallel`: cp 2: .* whole sequences.*`pretrain\.") as told:
        load_recipe("smoke", ["generator.parallel.cp=2"])
    assert "\n" not in str(told.value)


def test_ranks_that_share_sequences_are_data_parallel_where_nothing_is_trained_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", "smoke", "parallel.cp=2"]) == 0
    shown = {cells[0]: cells[1] for cells in map(str.split, capsys.readouterr().out.splitlines()) if len(cells) > 5}
    assert shown["pretrain"] == shown["round-1/probe"] == shown["round-1/continue"] == "CP2"
    assert shown["evaluate"] == shown["import"] == shown["round-1/tune-rephrase"] == "DP2"


def test_plan_shows_the_layout_of_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "smoke", "pretrain.parallel.pp=2"]) == 0
    shown = {cells[0]: cells[1] for cells in map(str.split, capsys.readouterr().out.splitlines()) if len(cells) > 5}
    assert shown["pretrain"] == shown["round-1/probe"] == shown["round-1/continue"] == shown["evaluate"] == "PP2"
    assert shown["import"] == shown["round-1/tune-rephrase"] == shown["round-1/generate-reformat"] == "DP2"
    assert shown["tokenize"] == shown["round-1/shards"] == "-"


def _commands(jobs: list[list[str]], ports: list[int], stop: int | None = None) -> list[int]:
    """Each command as a job of these ranks; the first is sent a signal as it reads the batch of step `stop`."""
    deal, dealt = TokenLoader.next_batch, 0

    def next_batch(self: TokenLoader) -> Batch:
        nonlocal dealt
        dealt += 1
        if dealt == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return deal(self)

    TokenLoader.next_batch = next_batch
    return main_on_ranks(jobs, ports)


def _on_two(jobs: list[list[str]], stop: int | None = None) -> list[int]:
    first, second = run_ranks(_commands, 2, jobs=jobs, ports=free_ports(len(jobs)), stop=stop)
    assert first == second
    return first


def _losses(run: Path, stage: str) -> list[float]:
    return [record["loss"] for record in read_metrics(run / stage / "metrics.jsonl") if record["kind"] == "train"]


def _scores(path: Path) -> dict[tuple[int, str], float]:
    return {(record.step, record.key): record.scores["reference"] for record in read_scores(path)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run on one process."""
    run = tmp_path_factory.mktemp("runs") / "alone"
    assert main(["run", "smoke", *SMALL, "--dir", str(run)]) == 0
    return run


@pytest.mark.parametrize(
    "own", [["pretrain.parallel.pp=2"], pytest.param(["parallel.cp=2"], marks=pytest.mark.slow)], ids=str
)
def test_a_cycle_with_a_layout_of_its_own_for_theta_is_that_of_one_process(
    alone: Path, tmp_path: Path, own: list[str]
) -> None:
    """And what it made is of no layout: other layouts repeat nothing, score and export it as one process does."""
    run, docs = tmp_path / "run", tmp_path / "docs.jsonl"
    docs.write_text("".join(json.dumps({"id": f"d{n}", "text": f"The mill of {n} burned."}) + "\n" for n in range(3)))
    of_run = ["smoke", *SMALL, "--dir", str(run)]
    (tmp_path / "tasks.jsonl").write_text(json.dumps({"prompt": "What burned?", "response": "The mill."}) + "\n")
    score = ["influence", *of_run, "--input", str(docs)]
    by_tasks = [*score, "--reference", str(tmp_path / "tasks.jsonl")]
    export = ["export", *of_run, "--stage", "round-1/tune-rephrase"]
    others = ["pretrain.parallel.tp=2", "generator.parallel.tp=2"]
    jobs = [
        ["run", *of_run, *own],
        ["run", *of_run, *others],
        [*score, *own, "--output", str(tmp_path / "two.jsonl")],
        [*by_tasks, *own, "--output", str(tmp_path / "two-by-tasks.jsonl")],
        [*export, *others, "--output", str(tmp_path / "two")],
    ]
    assert _on_two(jobs) == [0] * len(jobs)
    for stage in ("pretrain", "repeat"):
        assert _losses(run, stage) == pytest.approx(_losses(alone, stage), rel=1e-5)
    found, expected = (_scores(path / "pretrain" / "in-run-scores.jsonl") for path in (run, alone))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)
    results = [json.loads((path / "evaluate" / "results.json").read_text())["held_out"] for path in (run, alone)]
    for ours, theirs in zip(*results, strict=True):
        assert ours["name"] == theirs["name"] and ours["nats"] == pytest.approx(theirs["nats"], rel=1e-3)
    stages = [json.loads(line)["stage"] for line in (run / "stages.jsonl").read_text().splitlines()]
    assert len(stages) == len(set(stages)) == 10
    assert json.loads((run / "environment.json").read_text())["layout"] == "TP2"

    assert main([*score, "--output", str(tmp_path / "one.jsonl")]) == 0
    assert main([*by_tasks, "--output", str(tmp_path / "one-by-tasks.jsonl")]) == 0
    assert main([*export, "--output", str(tmp_path / "one")]) == 0
    for along in ("", "-by-tasks"):
        one, two = (_values(tmp_path / f"{ranks}{along}.jsonl") for ranks in ("one", "two"))
        assert len(one) == 3 and two == pytest.approx(one, rel=1e-4, abs=1e-6)
    assert _weights(tmp_path / "one") == _weights(tmp_path / "two")


def test_directions_of_named_files_are_made_by_ranks_that_share_sequences(tmp_path: Path) -> None:
    """A batch of one sequence goes into no two data-parallel ranks, and is what `cp` is for."""
    (tmp_path / "tasks.jsonl").write_text(json.dumps({"prompt": "What burned?", "response": "The mill."}) + "\n")
    texts = [{"id": name, "text": f"The mill of {name} burned."} for name in "abc"]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    of_run = ["smoke", *SMALL, "pretrain.max_steps=4", "pretrain.global_batch=1", "--dir", str(tmp_path / "run")]
    assert main(["pretrain", *of_run]) == 0
    given = ["--reference", str(tmp_path / "tasks.jsonl"), "--input", str(tmp_path / "docs.jsonl")]
    ways = {"run": of_run, "checkpoint": ["--checkpoint", str(tmp_path / "run" / "pretrain")]}
    at = {way: ["influence", *models, *given, "--output"] for way, models in ways.items()}
    jobs = [[*command, str(tmp_path / f"two-{way}.jsonl"), "parallel.cp=2"] for way, command in at.items()]
    assert _on_two(jobs) == [0] * len(jobs)
    for way, command in at.items():
        assert main([*command, str(tmp_path / f"one-{way}.jsonl")]) == 0
        one, two = (_values(tmp_path / f"{ranks}-{way}.jsonl") for ranks in ("one", "two"))
        assert len(one) == 3 and two == pytest.approx(one, rel=1e-4, abs=1e-6)


def test_a_report_is_written_by_one_process_whatever_the_layouts_are(alone: Path) -> None:
    (alone / "report.html").unlink()
    layouts = ["parallel.tp=2", "pretrain.parallel={tp: 2, pp: 2}", "generator.parallel.tp=4"]
    assert main(["report", "smoke", *SMALL, *layouts, "--dir", str(alone)]) == 0
    assert (alone / "report.html").exists()


def _values(scores: Path) -> list[float]:
    return [json.loads(line)["value"] for line in scores.read_text().splitlines()]


def _weights(export: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in export.glob("*.safetensors")}


@pytest.mark.parametrize(
    "axes",
    [("pp", "tp", "cp"), *(pytest.param(a, marks=pytest.mark.slow) for a in (("cp", "pp", "tp"), ("tp", "cp", "pp")))],
)
def test_pretraining_goes_on_in_another_layout_where_it_was_stopped(
    alone: Path, tmp_path: Path, axes: tuple[str, ...]
) -> None:
    command = ["pretrain", "smoke", *SMALL, "--dir", str(tmp_path / "run")]
    jobs = [[*command, f"pretrain.parallel.{axis}=2"] for axis in axes]
    assert _on_two(jobs, stop=8) == [75, 0, 0]
    assert _losses(tmp_path / "run", "pretrain") == pytest.approx(_losses(alone, "pretrain"), rel=1e-5)
    found, expected = (_scores(path / "pretrain" / "in-run-scores.jsonl") for path in (tmp_path / "run", alone))
    # Along the direction that was made in the layout before the stop.
    assert {step for step, _ in found} == {5, 10} and found == pytest.approx(expected, rel=1e-3, abs=1e-6)
