"""`synpro influence` by references: of a run's own several, and of files that are named for one scoring."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synpro_engine.cli.main import main
from tests.cli.refusals import refused

SMALL = ["pretrain.max_steps=4", "pretrain.plateau=null", "probe.sampled_steps=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of tasks, and documents of which half are like the first one's answers."""
    made, chance = tmp_path_factory.mktemp("files"), random.Random(3)
    for name, verb in (("sums", "plus"), ("colours", "mixed with")):
        pairs = [(chance.randint(0, 99), chance.randint(0, 99)) for _ in range(40)]
        records = [{"prompt": f"What is {a} {verb} {b}?", "response": f"{a} {verb} {b} is {a + b}."} for a, b in pairs]
        (made / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    texts = [f"{n} {'plus' if n % 2 else 'mixed with'} {n + 1} is {2 * n + 1}." for n in range(12)]
    (made / "docs.jsonl").write_text(
        "".join(json.dumps({"id": f"d{n}", "text": t}) + "\n" for n, t in enumerate(texts))
    )
    return made


def recipe(folder: Path, names: Sequence[str]) -> list[str]:
    references = ", ".join(f"{name}: {{source: {folder / name}.jsonl}}" for name in names)
    return [*SMALL, f"references={{{references}}}", "corpus.split={train: 0.9, reference: 0.0, validation: 0.1}"]


def ran(folder: Path, names: Sequence[str], directory: Path) -> Path:
    assert main(["probe", "smoke", *recipe(folder, names), "--dir", str(directory)]) == 0
    return directory


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that goes by the sums alone, up to its probe."""
    return ran(folder, ["sums"], tmp_path_factory.mktemp("alone") / "run")


@pytest.fixture(scope="module")
def both(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ran(folder, ["sums", "colours"], tmp_path_factory.mktemp("both") / "run")


def scored(arguments: Sequence[str], folder: Path, output: Path) -> list[dict[str, Any]]:
    assert main(["influence", *arguments, "--input", str(folder / "docs.jsonl"), "--output", str(output)]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_a_file_named_for_one_scoring_scores_as_the_same_file_in_the_recipe(
    folder: Path, alone: Path, tmp_path: Path
) -> None:
    of_run = ["smoke", *recipe(folder, ["sums"]), "--dir", str(alone)]
    expected = scored(of_run, folder, tmp_path / "probe.jsonl")
    found = scored([*of_run, "--reference", str(folder / "sums.jsonl")], folder, tmp_path / "file.jsonl")
    assert [r["value"] for r in found] == pytest.approx([r["value"] for r in expected], rel=1e-4, abs=1e-7)
    assert all("references" not in record for record in (*found, *expected))


def test_scores_along_each_reference_stand_beside_the_value_and_make_it_up(
    folder: Path, both: Path, tmp_path: Path
) -> None:
    records = scored(["smoke", *recipe(folder, ["sums", "colours"]), "--dir", str(both)], folder, tmp_path / "s.jsonl")
    names = ["reference-colours", "reference-sums"]
    assert all(list(record["references"]) == names for record in records)
    along = np.array([[record["references"][name] for name in names] for record in records])
    values = np.array([record["value"] for record in records])
    parts, *_ = np.linalg.lstsq(along, values, rcond=None)
    assert np.allclose(along @ parts, values, rtol=1e-3, atol=1e-6) and (parts > 0).all()
    assert not np.allclose(along[:, 0], along[:, 1], rtol=0.05)


def test_files_at_a_checkpoint_are_told_apart_by_their_names_and_scoring_goes_on_along_them(
    folder: Path, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--checkpoint", str(alone / "pretrain"), "--reference", str(folder / "sums.jsonl")]
    given += ["--reference", f"{{source: {folder / 'colours.jsonl'}, weight: 2}}"]
    records = scored(given, folder, tmp_path / "s.jsonl")
    assert all(list(record["references"]) == ["colours", "sums"] for record in records)
    lines = (tmp_path / "s.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "s.jsonl").write_text("".join(lines[:5]))
    assert scored(given, folder, tmp_path / "s.jsonl") == records
    arguments = ["influence", *given[:-2], "--input", str(folder / "docs.jsonl"), "--output", str(tmp_path / "s.jsonl")]
    assert "holds the directions of other references" in refused(capsys, *arguments)


def test_one_document_is_explained_along_a_file_and_nothing_is_left_behind(
    folder: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    given = ["--checkpoint", str(alone / "pretrain"), "--reference", str(folder / "sums.jsonl")]
    assert main(["influence", *given, "--input", str(folder / "docs.jsonl"), "--explain", "d3"]) == 0
    assert not list(folder.glob("*directions*"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--reference", "nowhere.jsonl"], "--reference nowhere.jsonl: nowhere.jsonl: no such file"),
        (["--reference", "{sauce: x}"], "unknown key `sauce` (did you mean `source`?)"),
        (["--reference", "{source: a"], "not valid YAML"),
        (["--reference", "{weight: 2}"], "key `source` is missing"),
        (["--reference", "a/x.jsonl", "--reference", "b/x.jsonl"], "another one has that name"),
        (["--reference", "x.jsonl", "--probe", "y"], "stands in place of --probe"),
        (["--reference", "{docs}"], "neither `prompt` and `response`"),
    ],
)
def test_a_reference_that_is_none_is_refused_in_a_line(
    folder: Path, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    (tmp_path / "docs.jsonl").write_text('{"title": "no text"}\n')
    given = [str(tmp_path / "docs.jsonl") if argument == "{docs}" else argument for argument in given]
    arguments = ["--checkpoint", str(alone / "pretrain"), *given, "--input", str(folder / "docs.jsonl")]
    assert message in refused(capsys, "influence", *arguments, "--output", str(tmp_path / "scores.jsonl"))
    assert not (tmp_path / "scores.jsonl").exists()
