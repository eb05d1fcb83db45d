"""Operations in a run: a user's own goes by its name in every stage, and slices are shared by what each earned."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zstandard

from docs.site.schemas import faults_in
from synpro_engine.config import UserError, load_config, new_artifact
from synpro_engine.cycle import Cycle, load_recipe
from synpro_engine.cycle.plan import Plan
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.recipe_files import recipe_of_records
from synpro_engine.cycle.stages import stale_stages
from synpro_engine.cycle.steps.mixing import earned_mixture
from synpro_engine.cycle.tracing import trace_document
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.synth import GenerateConfig, OperationYield, YieldReport, operation_named

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_operation.py"


def settings(file: Path) -> list[str]:
    return [
        f"generate.operations=[rephrase, '{file}:glossary']", "tune={}", "rounds=2", "pretrain.max_steps=20",
        "continued={steps: 4, synthetic_share: 0.5}", "generate.max_slices=8", "generate.mixture=influence",
        "generate.least_share=0.25", "generate.rewards=[influence]", "reward.glossary={influence: 1, format: 1}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The directory of a finished run, the file of its operation, and what it said."""
    folder = tmp_path_factory.mktemp("operations")
    file = Path(shutil.copy(EXAMPLE, folder))
    # A parser that takes any line: the generator is random, and writes none of the example's form.
    text, line = file.read_text(), "        entry = Entry(topic=match["
    assert line in text
    file.write_text(text.replace(line, '        match = {"term": line[:9], "meaning": line}\n' + line))
    command = [sys.executable, "-m", "synpro_engine", "run", "smoke", *settings(file), "--dir", str(folder / "run")]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run", file, done.stderr


def records(stage: Path) -> list[dict[str, Any]]:
    with zstandard.open(stage / "corpus" / "docs-000000.jsonl.zst", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_another_programs_settings_where_a_run_is_looked_for_are_none_of_it(tmp_path: Path) -> None:
    for text in ("model: x\n", "reward: 5\n"):
        (tmp_path / "config.yaml").write_text(text)
        recipe = recipe_of_records("smoke", settings(EXAMPLE), tmp_path)
        with launched(ParallelConfig()) as topology, pytest.raises(UserError, match=r"config\.yaml"):
            Cycle(recipe, tmp_path, topology).open_directory()


def test_texts_of_an_own_operation_name_it_and_the_version_of_its_file(run: tuple[Path, Path, str]) -> None:
    directory, file, _ = run
    recipe = load_recipe("smoke", settings(file))
    stage = ""
    for number, stage in enumerate(("round-1/generate-glossary", "round-2/generate-glossary"), start=1):
        for record in records(directory / stage):
            origin = record["provenance"]
            assert (origin["operation"], origin["round"]) == ("glossary", number)
            assert origin["prompt_version"] == operation_named("glossary").prompt_version
            # What `generate.rewards` leaves out is not measured, and a sum without it would be no total.
            assert set(record["rewards"]) == set(origin["judges"]) == {"influence"}
    with launched(ParallelConfig()) as topology:
        traced = trace_document(Cycle(recipe, directory, topology), records(directory / stage)[0]["id"])
        assert traced.synthetic is not None and traced.synthetic.stage == "round-2/generate-glossary"
    assert "glossary" in json.loads((directory / "evaluate" / "results.json").read_text())["influence"]


def test_shares_follow_what_each_earned_and_are_told(run: tuple[Path, Path, str]) -> None:
    directory, file, said = run
    config = load_recipe("smoke", settings(file)).generate
    earlier = {name: directory / f"round-1/generate-{name}" for name in config.names}
    report = (directory / "report.html").read_text()
    assert "<h3>Mixture</h3>" in report
    for name in config.names:
        stage = directory / f"round-2/generate-{name}"
        mixture = json.loads((stage / "mixture.json").read_text())
        expected = earned_mixture(config, name, earlier)
        assert mixture == {"earned": expected.earned, "share": expected.share}
        assert f"{name} {expected}" in said and f"{100 * expected.share:.1f}%" in report
        manifest = json.loads((stage / "manifest.json").read_text())
        assert {f"round-1/generate-{other}" for other in config.names} <= set(manifest["parents"])
        tried = json.loads((stage / "corpus" / "_about" / "yield.json").read_text())["by_operation"][name]
        assert tried["accepted"] + sum(tried["rejected"].values()) == max(1, round(8 * expected.share))
        assert not (directory / f"round-1/generate-{name}" / "mixture.json").exists()
    assert faults_in(directory) == []


def test_an_edited_file_makes_the_stages_that_used_it_stale_and_no_others(run: tuple[Path, Path, str]) -> None:
    directory, file, _ = run
    text = file.read_text()

    def stale(*more: str) -> list[str]:
        with launched(ParallelConfig()) as topology:
            recipe: Recipe = load_recipe("smoke", [*settings(file), *more])
            return [stage.name for stage in stale_stages(directory, list(Plan(recipe, directory, topology).stages()))]

    assert stale() == []
    try:
        file.write_text(text + "# another reading\n")
        changed = stale()
    finally:
        file.write_text(text)
    assert changed[0] == "round-1/generate-glossary" and "round-1/generate-rephrase" not in changed
    moved = Path(shutil.copy(file, file.with_name("moved.py")))
    assert stale(f"generate.operations=[rephrase, '{moved}:glossary']") == []
    added = stale(f"generate.operations=[rephrase, '{file}:glossary', faq]", "reward.faq={influence: 1}")
    assert "round-1/generate-rephrase" not in added and "round-1/generate-glossary" not in added


def test_a_run_is_read_from_its_records_when_the_file_is_gone(run: tuple[Path, Path, str]) -> None:
    directory, file, _ = run
    unsaid = [setting for setting in settings(file) if not setting.startswith("reward.")]
    id = records(directory / "round-1" / "generate-glossary")[0]["id"]

    # The weights are the run's own, for here neither the recipe nor the file says them.
    commands = [
        ["report", "smoke", *unsaid],
        ["trace", "smoke", *unsaid, id],
        ["generate", "smoke", *unsaid, "--status"],
        ["run", "smoke", *settings(file)],
    ]
    # In a process that has never read the file.
    script = f"from synpro_engine.cli.main import main\nprint([main([*c, '--dir', '{directory}']) for c in {commands}])"
    (directory / "report.html").unlink()
    away = file.rename(file.with_suffix(".away"))
    try:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=400)
    finally:
        away.rename(file)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 2]", done.stderr[-3000:]
    assert "glossary" in (directory / "report.html").read_text()
    assert "round-1/generate-glossary" in done.stdout and f"{file}: cannot be read" in done.stderr


def test_rewards_that_generation_cannot_measure_or_a_filter_lacks_are_refused() -> None:
    with pytest.raises(UserError, match=r"generate.rewards: no operation gives `qualty` a weight .*`quality`"):
        load_recipe("smoke", ["generate.rewards=[qualty]"])
    with pytest.raises(UserError, match=r"filter.quality_quantile: generate.rewards leaves `quality` out"):
        load_recipe("smoke", ["filter.quality_quantile=0.1", "generate.rewards=[]"])
    assert load_recipe("smoke", ["filter.quality_quantile=0.1", "generate.rewards=[quality]"]).measured("reformat") == {
        "quality": 1.0
    }


def corpus(stage: Path, influence: float | None) -> Path:
    one = OperationYield(
        accepted=1, rejected={}, source_chars=1, prompt_tokens=1, completion_tokens=1, text_tokens=1, text_chars=1,
        mean_rewards={} if influence is None else {"influence": influence},
    )  # fmt: skip
    stage.mkdir()
    with new_artifact(stage / "corpus", "synthetic-corpus", {}, {}, 0) as folder:
        (folder / "_about").mkdir()
        (folder / "_about" / "yield.json").write_text(YieldReport(by_operation={stage.name: one}).model_dump_json())
    return stage


@pytest.mark.parametrize(
    ("earned", "shares"),
    [
        ({"rephrase": 0.4, "faq": 0.2, "table": 0.01}, {"rephrase": 0.8, "faq": 0.4, "table": 0.1}),
        ({"rephrase": 0.4, "faq": -0.2, "table": None}, {"rephrase": 0.8, "faq": 0.1, "table": 0.1}),
        ({"rephrase": -0.4, "faq": 0.0, "table": None}, {"rephrase": 1.0, "faq": 0.5, "table": 1.0}),
    ],
)
def test_shares_are_bounded_and_hold_where_nothing_was_earned(
    tmp_path: Path, earned: dict[str, float | None], shares: dict[str, float]
) -> None:
    config = load_config(GenerateConfig, {
        "operations": list(earned), "mixture": "influence", "least_share": 0.1, "most_share": 0.8,
        "shares": {"faq": 0.5},
    })  # fmt: skip
    earlier = {name: corpus(tmp_path / name, value) for name, value in earned.items()}
    found = {name: earned_mixture(config, name, earlier) for name in earned}
    assert {name: mixture.share for name, mixture in found.items()} == pytest.approx(shares)
    assert all(mixture.earned == earned for mixture in found.values())


def test_shares_by_influence_want_that_reward_and_an_order() -> None:
    with pytest.raises(UserError, match=r"generate.mixture: reward.rephrase gives `influence` no weight"):
        load_recipe("smoke", ["generate.mixture=influence", "reward.rephrase={format: 1}"])
    with pytest.raises(UserError, match=r"generate.mixture: generate.rewards leaves `influence` out"):
        load_recipe("smoke", ["generate.mixture=influence", "generate.rewards=[quality]"])
    with pytest.raises(UserError, match=r"least_share: 0.9 is more than most_share \(0.5\)"):
        load_recipe("smoke", ["generate.least_share=0.9", "generate.most_share=0.5"])
