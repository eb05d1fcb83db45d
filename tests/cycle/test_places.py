"""A run writes where nothing else lies, and what was damaged there since is named in one line by every command."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from synpro_engine.cli.main import main
from synpro_engine.config import UserError, read_manifest, verification
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.plan import Plan
from synpro_engine.cycle.summaries import report_data
from synpro_engine.dist import ParallelConfig, Topology, launched
from tests.cli.refusals import refused

_QUICK = ["pretrain.max_steps=10", "pretrain.eval_every=5", "generate.max_slices=6", "continued.steps=4"]
_QUICK += ["continued.synthetic_epochs=6.0", "tune.rephrase.steps=1", "tune.reformat.steps=1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, small."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    assert main(["run", "smoke", *_QUICK, "--dir", str(directory)]) == 0
    return directory


@pytest.fixture
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as here:
        yield here


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


_DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "flip": _flip,
    "truncate": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "garbage": lambda data: b"\x80\x00{]" * 20,
    "delete": lambda data: None,
}


def _damaged(file: Path, damage: str) -> Iterator[None]:
    """Once with `file` damaged, where that changes it; the file is put back."""
    whole = file.read_bytes()
    data = _DAMAGES[damage](whole) if whole else b"x"
    if data == whole:
        return
    with tempfile.TemporaryDirectory(dir=tempfile.gettempdir()) as elsewhere:
        aside = shutil.move(file, Path(elsewhere) / "aside")
        try:
            if data is not None:
                file.write_bytes(data)
            yield
        finally:
            file.unlink(missing_ok=True)
            shutil.move(aside, file)


def _content(directory: Path) -> list[Path]:
    """The files of all finished stages; what is only remembered about them is none."""
    stages = [path.parent for path in directory.rglob("manifest.json") if path.parent.parent.name != "checkpoints"]
    return sorted({f for stage in stages for f in stage.rglob("*") if f.is_file() and f.name != ".verified.json"})


@pytest.mark.parametrize("damage", _DAMAGES)
def test_a_damaged_file_of_a_finished_stage_is_named_by_the_report(
    finished: Path, topology: Topology, damage: str
) -> None:
    recipe = load_recipe("smoke", _QUICK)
    stages = list(Plan(recipe, finished, topology).stages())
    files = _content(finished)
    assert len(files) > 80
    for file in files:
        for _ in _damaged(file, damage):
            with pytest.raises(UserError) as caught:
                report_data(finished, recipe, stages)
            told = str(caught.value)
            missing = file.name == "manifest.json" and str(file.parent) in told  # the artifact is named
            assert (str(file) in told or missing) and "\n" not in told, (file, told)
    report_data(finished, recipe, stages)


@pytest.mark.parametrize("damage", ["truncate", "empty", "garbage", "delete"])
def test_what_the_report_reads_is_named_also_when_nothing_is_verified(
    finished: Path, topology: Topology, damage: str
) -> None:
    recipe = load_recipe("smoke", [*_QUICK, "verify=never"])
    stages = list(Plan(recipe, finished, topology).stages())
    read = ["pretrain/result.json", "pretrain/in-run-scores.jsonl", "evaluate/results.json"]
    read += ["round-1/shards/tokens.json"]
    read += [
        "round-1/generate-rephrase/corpus/_about/yield.json",
        "round-1/generate-rephrase/corpus/docs-000000.jsonl.zst",
    ]
    read += ["round-1/generate-reformat/corpus/_about/rejects-000000.jsonl.zst", "environment.json", "stages.jsonl"]
    read += ["pretrain/metrics.jsonl", "tokenize/documents/train.jsonl.zst", "tokenize/shards/train/stats.json"]
    optional = {"environment.json", "stages.jsonl", "pretrain/metrics.jsonl"}
    named = 0
    for name in read:
        for _ in _damaged(finished / name, damage):
            try:
                with verification("never"):
                    report_data(finished, recipe, stages)
            except UserError as error:
                assert Path(name).name in str(error) or "generate-" in name, (name, str(error))
                assert "\n" not in str(error)
                named += 1
            else:  # an empty log has no records, and a line cut short at its end is what a kill leaves
                assert name in optional or name.endswith(".jsonl"), (name, damage)
    assert named >= (4 if damage in ("empty", "delete") else 6)


def test_records_of_another_shape_are_named(finished: Path, topology: Topology) -> None:
    recipe = load_recipe("smoke", [*_QUICK, "verify=never"])
    stages = list(Plan(recipe, finished, topology).stages())
    shapes = {
        "pretrain/result.json": "{}",
        "evaluate/results.json": '{"held_out": [{"name": 1}]}',
        "pretrain/metrics.jsonl": '{"kind": "train", "step": 1}\n',
        "round-1/tune-rephrase/metrics.jsonl": '{"kind": "tune", "step": 1}\n',
        "round-1/shards/tokens.json": '{"rephrase": "many"}',
        "round-1/generate-rephrase/corpus/_about/yield.json": '{"by_operation": {}}',
        "pretrain/in-run-scores.jsonl": '{"step": 5, "key": "nobody", "tokens": 99, "scores": {"else": 1.0}}\n',
        "environment.json": '{"device": 3}',
        "stages.jsonl": '{"stage": "pretrain"}\n',
    }
    for name, text in shapes.items():
        for _ in _damaged(finished / name, "empty"):
            (finished / name).write_text(text)
            with verification("never"), pytest.raises(UserError, match=Path(name).name) as caught:
                report_data(finished, recipe, stages)
            assert "\n" not in str(caught.value)


def _below(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_run_goes_on_from_no_damaged_stage(capsys: pytest.CaptureFixture[str], finished: Path) -> None:
    for name in ("tokenize/shards/train/tokens.bin", "import/tokenizer/tokenizer.model", "repeat/manifest.json"):
        for _ in _damaged(finished / name, "flip"):
            assert name in refused(capsys, "run", "smoke", *_QUICK, "--dir", str(finished))
    assert main(["run", "smoke", *_QUICK, "--dir", str(finished)]) == 0


def test_influence_and_export_read_no_damaged_stage(
    capsys: pytest.CaptureFixture[str], finished: Path, tmp_path: Path
) -> None:
    run = ["smoke", *_QUICK, "--dir", str(finished)]
    (tmp_path / "docs.jsonl").write_text('{"id": "a", "text": "Some words."}\n')
    scores = ["--input", str(tmp_path / "docs.jsonl"), "--output", str(tmp_path / "scores.jsonl")]
    pair = ["--checkpoint", str(finished / "pretrain"), "--probe", str(finished / "round-1" / "probe")]
    exported = ["--output", str(tmp_path / "hf"), "--stage"]
    for _ in _damaged(finished / "tokenize" / "tokenizer" / "tokenizer.model", "flip"):
        for command in (
            ["influence", *run, *scores],
            ["influence", *pair, *scores],
            ["export", *run, *exported, "repeat"],
        ):
            assert "tokenize/tokenizer/tokenizer.model: was changed" in refused(capsys, *command)
    for _ in _damaged(finished / "import" / "tokenizer" / "tokenizer.model", "flip"):
        command = ["export", *run, *exported, "round-1/tune-rephrase"]
        assert "import/tokenizer/tokenizer.model: was changed" in refused(capsys, *command)
    assert not (tmp_path / "hf").exists() and not (tmp_path / "scores.jsonl").exists()


def test_an_export_replaces_an_earlier_one_and_no_stage(
    capsys: pytest.CaptureFixture[str], finished: Path, tmp_path: Path
) -> None:
    export = ["export", "smoke", *_QUICK, "--dir", str(finished), "--stage"]
    for stage, vocabulary in (("round-1/tune-rephrase", "import"), ("repeat", "tokenize")):
        assert main([*export, stage, "--output", str(tmp_path / "hf")]) == 0
        words = finished / vocabulary / "tokenizer" / "tokenizer.model"
        assert (tmp_path / "hf" / "tokenizer.model").read_bytes() == words.read_bytes()
    before = _below(finished)
    for place in ("pretrain", "pretrain/new"):
        assert re.search(
            "(finished|kind) pretrain; ", refused(capsys, *export, "repeat", "--output", str(finished / place))
        )
    assert _below(finished) == before


@pytest.mark.parametrize("place", ["pretrain", "pretrain/deep/new", "round-1", "round-1/new", "tokenize/shards/train"])
def test_a_place_inside_another_run_is_refused(capsys: pytest.CaptureFixture[str], finished: Path, place: str) -> None:
    before = _below(finished)
    assert "lies inside" in refused(capsys, "tokenize", "smoke", "--dir", str(finished / place))
    assert _below(finished) == before


@pytest.mark.parametrize(
    "name", ["config.yaml", "environment.json", "stages.jsonl", "report.html", "pretrain/notes", "round-1/x", "lock"]
)
def test_a_folder_with_somebodys_own_files_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("name: mine\n")
    assert name.split("/")[0] in refused(capsys, "tokenize", "smoke", "--dir", str(tmp_path))
    assert _below(tmp_path) == {str(tmp_path / name): b"name: mine\n"}


def test_a_folder_with_other_files_may_hold_a_run(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("what torchrun said")
    assert main(["tokenize", "smoke", "--dir", str(tmp_path)]) == 0
    assert read_manifest(tmp_path / "tokenize").kind == "tokenize"


def test_garbage_in_the_record_of_stages_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["tokenize", "smoke", "--dir", str(tmp_path)]) == 0
    for garbage in (b"\x80\x00\n", b"[]\n", b'{"stage": 3}\n', b'{"stage": "tokenize"'):
        (tmp_path / "stages.jsonl").write_bytes(garbage)
        assert re.search(r"stages\.jsonl(:1)?: damaged", refused(capsys, "report", "smoke", "--dir", str(tmp_path)))


def test_a_run_copied_elsewhere_is_whole(capsys: pytest.CaptureFixture[str], finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    assert main(["report", "smoke", *_QUICK, "--dir", str(tmp_path / "copy")]) == 0
    stages = [json.loads(line)["stage"] for line in (tmp_path / "copy" / "stages.jsonl").read_text().splitlines()]
    assert "evaluate" in stages


def test_the_second_command_in_a_directory_is_told_of_the_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from synpro_engine.config.lock import locked

    with locked(tmp_path / "run"):
        told = refused(capsys, "tokenize", "smoke", "--dir", str(tmp_path / "run"))
        assert f"process {os.getpid()} on {os.uname().nodename}" in told
    assert main(["tokenize", "smoke", "--dir", str(tmp_path / "run")]) == 0
