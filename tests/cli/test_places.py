"""Every option and setting that names a place takes an address, or refuses it in one line before anything is made."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from typer.models import ArgumentInfo, OptionInfo

from synpro_engine.cli.main import app
from synpro_engine.cli.options import on_disk
from tests.cli.refusals import refused

HERE = "is read from this machine's disk only; copy it there first"


def test_no_option_takes_a_path_without_looking_whether_it_is_an_address() -> None:
    paths = {
        f"{command.callback.__name__} {name}": declared
        for command in app.registered_commands
        if command.callback is not None
        for name, hint in get_type_hints(command.callback, include_extras=True).items()
        for declared in options_of_paths(hint)
    }
    assert len(paths) > 15
    assert [name for name, declared in paths.items() if declared.callback is not on_disk] == []


def options_of_paths(hint: Any) -> Iterator[OptionInfo | ArgumentInfo]:
    """What typer is told of an annotation, if that is of a path."""
    if get_origin(hint) is Annotated:
        kind, *told = get_args(hint)
        if Path in (kind, *get_args(kind)):
            yield from (one for one in told if isinstance(one, OptionInfo | ArgumentInfo))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "smoke", "--dir", "s3://bucket/runs/one"], f"--dir: s3://bucket/runs/one: {HERE}"),
        (["trace", "smoke", "x", "--dir", "gs://bucket/runs"], f"--dir: gs://bucket/runs: {HERE}"),
        (["plan", "smoke", "--measured", "s3://bucket/run"], f"--measured: s3://bucket/run: {HERE}"),
        (["influence", "smoke", "--input", "x", "--output", "s3://bucket/s"], f"--output: s3://bucket/s: {HERE}"),
        (["average", "a", "b", "--output", "m", "--tokenizer", "hf://org/name"], f"--tokenizer: hf://org/name: {HERE}"),
        (["train-judge", "s3://bucket/judge.json"], f"output: s3://bucket/judge.json: {HERE}"),
        (["judge-check", "smoke", "--json", "s3://bucket/x.json"], f"--json: s3://bucket/x.json: {HERE}"),
        (["export", "smoke", "--output", "http://host/model"], "--output: http:// is no place that is known"),
        (["export", "smoke", "--output", "s3://key:hush/hush@bucket/m"], "--output: s3:// is not followed by a"),
        (["average", "s3://key:hush@bucket/a", "b", "--output", "m"], "s3:// is not followed by a bucket's name alone"),
        (["influence", "--checkpoint", "ftp://a", "--probe", "b", "--input", "x", "--output", "y"], "--checkpoint: ftp://"),
        (["run", "s3://bucket/mine.yaml"], "s3://bucket/mine.yaml: recipes are read from this machine's disk alone"),
    ],
)  # fmt: skip
def test_an_option_refuses_what_it_cannot_take(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, *arguments)
    assert message in line and "hush" not in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "setting",
    [
        "tokenizer.path=s3://bucket/t.model",
        "generator.source=hf://HuggingFaceTB/SmolLM2-135M",
        "pretrain.distill={teachers: ['s3://bucket/runs/one']}",
        "reward.faithfulness_judge=s3://bucket/judge.json",
        "reward.judges.similarity.encoder=hf://microsoft/deberta-large-mnli",
        "reward.judges.quality.model=s3://bucket/model",
        "reward.judges.quality={model: 'embedded:smollm2-135m', calibration: 's3://bucket/c.json'}",
    ],
)
def test_a_setting_of_files_that_are_mapped_refuses_an_address_by_its_key(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, setting: str
) -> None:
    line = refused(capsys, "run", "smoke", setting, "--dir", str(tmp_path / "run"))
    assert HERE in line and f"`{setting.partition('=')[0]}" in line
    assert not (tmp_path / "run").exists()


def test_code_of_ones_own_is_not_looked_for_in_a_store(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    operations = "generate.operations=['s3://bucket/own.py:Mine']"
    line = refused(capsys, "run", "smoke", "tune=null", operations, "--dir", str(tmp_path / "run"))
    assert "s3://bucket/own.py: code is read from this machine's disk alone" in line


def test_a_file_address_is_the_path(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    line = refused(
        capsys, "tokenize", "smoke", f"corpus.source=file://{tmp_path}/nothing", "--dir", f"file://{tmp_path}/run"
    )
    assert f"{tmp_path}/nothing: no such file or directory" in line
