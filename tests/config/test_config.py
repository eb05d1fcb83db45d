"""Configuration: what is refused, and with which words."""

import copy
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import Field

from synpro_engine.config import Config, UserError, load_config, to_yaml


class _Inner(Config):
    lr: float = Field(default=1e-3, gt=0)
    steps: int = 3
    names: tuple[str, ...] = ()


class _Outer(Config):
    train: _Inner = _Inner()
    parts: dict[str, _Inner] = Field(default={})
    other: _Inner | None = None
    seed: int = 0


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_overrides_win_over_the_file_and_scientific_numbers_are_numbers(tmp_path: Path) -> None:
    path = _file(tmp_path, "train: {lr: 1e-2, names: [a, b]}\nparts: {x: {steps: 9}}\n")
    config = load_config(_Outer, path, ["train.lr=3e-4", "parts.x.lr=2e-1", "other.names=[c]"])
    assert config.train.lr == 3e-4
    assert config.train.names == ("a", "b")
    assert (config.parts["x"].steps, config.parts["x"].lr) == (9, 0.2)
    assert config.other is not None and config.other.names == ("c",)


def test_a_resolved_config_reads_back_as_itself(tmp_path: Path) -> None:
    config = load_config(_Outer, {"train": {"names": ["a"]}}, ["seed=7"])
    assert load_config(_Outer, _file(tmp_path, to_yaml(config))) == config


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("train: {lrr: 1}", [], r"recipe.yaml: unknown key `train.lrr` \(did you mean `lr`\?\)"),
        ("parts: {x: {step: 1}}", [], r"`parts.x.step` \(did you mean `steps`\?\)"),
        ("other: {stepz: 1}", [], r"`other.stepz` \(did you mean `steps`\?\)"),
        ("", ["trian.lr=1.0"], r"unknown key `trian` \(did you mean `train`\?\)"),
        ("train: {steps: 1.5}", [], "`train.steps`.*integer"),
        ("train: {steps: '3'}", [], "`train.steps`.*integer"),
        ("train: {steps: true}", [], "`train.steps`.*integer"),
        ("train: {lr: -1.0}", [], "`train.lr`.*greater than 0.*-1.0"),
        ("train: {lr: .inf}", [], "`train.lr`.*finite number"),
        ("seed: 1\ntrain: [1, 2\n", [], r"recipe.yaml:\d+: not valid YAML"),
        ("seed: 1\n\ntrain: \x07\n", [], r"recipe.yaml:3: not valid YAML \(character"),
        ("seed: 2001-99-99", [], r"recipe.yaml: `seed`: .*integer, got '2001-99-99'"),
        ("- 1", [], "recipe.yaml:1: expected a mapping"),
        ("", ["seed"], "override `seed`: expected key=value, as in pretrain.optimizer.lr=3e-4"),
        ("", ["seed=\x07"], "the value is not valid YAML"),
        ("", ["seed=2001-99-99"], "`seed`: .*integer, got '2001-99-99'"),
        ("", ["seed.x=1"], "`seed`"),
    ],
)
def test_bad_input_is_one_line_that_names_the_place(
    tmp_path: Path, text: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(_Outer, _file(tmp_path, text), overrides)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing.yaml: no such file"):
        load_config(_Outer, tmp_path / "nothing.yaml")


def test_an_error_stays_one_line_that_commands_no_terminal_whatever_it_quotes() -> None:
    told = str(UserError("a.json: `x\ny\x1b[2J\r\u2028\ud800` é 字 is not a key"))
    assert told == r"a.json: `x\ny\x1b[2J\r\u2028\ud800` é 字 is not a key"
    assert str(copy.copy(UserError(told))) == told


class _Job(_Inner):
    EXECUTION: ClassVar[frozenset[str]] = frozenset({"steps"})


def test_what_only_says_how_work_is_done_is_not_recorded_at_any_depth() -> None:
    class Whole(Config):
        jobs: dict[str, _Job]
        names: tuple[_Job, ...]

    job = {"lr": 1e-3, "names": []}
    assert Whole(jobs={"a": _Job(steps=9)}, names=(_Job(),)).recorded() == {"jobs": {"a": job}, "names": [job]}


def test_an_execution_setting_that_is_no_setting_is_refused_where_it_is_declared() -> None:
    with pytest.raises(AssertionError, match="lists what is no setting: step"):

        class _Misspelt(_Inner):
            EXECUTION: ClassVar[frozenset[str]] = frozenset({"step"})


class _Grown(Config):
    LATER: ClassVar[frozenset[str]] = frozenset({"inner", "kind"})
    steps: int = 5
    kind: str = "raw"
    inner: _Inner = _Inner()


def test_what_came_later_is_recorded_only_where_it_is_set() -> None:
    assert _Grown().recorded() == {"steps": 5} == _Grown(kind="raw", inner=_Inner()).recorded()
    assert _Grown(kind="ema").recorded() == {"steps": 5, "kind": "ema"}
    assert _Grown(inner=_Inner(lr=1.0)).recorded()["inner"]["lr"] == 1.0


def test_what_was_stored_before_it_has_the_defaults() -> None:
    class Whole(Config):
        grown: _Grown = _Grown()

    given = Whole(grown=_Grown(steps=6, kind="ema"))
    assert given.completed({"grown": {"steps": 6}}) == {"grown": _Grown(steps=6).model_dump(mode="json")}
    assert given.completed({"grown": {"steps": 6, "kind": "x"}})["grown"]["kind"] == "x"
    assert given.completed({}) == {}, "what is not LATER is not filled in"


def test_what_came_later_has_a_default() -> None:
    with pytest.raises(AssertionError, match="LATER names what has no default: steps"):

        class _Without(Config):
            LATER: ClassVar[frozenset[str]] = frozenset({"steps"})
            steps: int
