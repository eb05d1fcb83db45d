"""Settings in YAML mean what version 1.2 says, a key stands once, and no document costs more than a moment."""

import math
import random
import string
import time
from pathlib import Path
from typing import Any

import pytest

from synpro_engine.config import UserError, read_yaml
from synpro_engine.config.base import parse_override
from synpro_engine.config.yaml_core import YAMLFault, dump_yaml, parse_yaml
from tests.cli.refusals import refused


@pytest.mark.parametrize(
    ("word", "meaning"),
    [
        ("060", 60), ("0o17", 15), ("0x1f", 31), ("-7", -7), ("+7", 7), ("1e-3", 1e-3), ("3E4", 3e4), ("-.5", -0.5),
        ("1.", 1.0), (".inf", math.inf), ("-.inf", -math.inf), ("true", True), ("False", False), ("null", None),
        ("~", None), ("", None), ("1:00", "1:00"), ("190:20:30.15", "190:20:30.15"), ("1_000", "1_000"),
        ("0b11", "0b11"), ("yes", "yes"), ("No", "No"), ("on", "on"), ("off", "off"), ("2024-01-01", "2024-01-01"),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"), ("1e", "1e"), ("'060'", "060"), ("=", "="), ("<<", "<<"),
    ],
)  # fmt: skip
def test_a_plain_word_means_what_yaml_1_2_says_in_files_and_overrides(tmp_path: Path, word: str, meaning: Any) -> None:
    (tmp_path / "r.yaml").write_text(f"key: {word}\n")
    read = read_yaml(tmp_path / "r.yaml")["key"]
    assert (read, type(read)) == (meaning, type(meaning))
    if word:
        assert parse_override(f"key={word}") == (("key",), meaning)


def test_what_is_written_is_read_back_as_it_was() -> None:
    chance = random.Random(0)
    words = [
        "no",
        "1e3",
        "1e-3",
        "060",
        "1:00",
        "~",
        "",
        "0o7",
        "<<",
        "=",
        "2024-01-01",
        ".5",
        "null",
        "True",
        "x: y",
        "#",
        "\n",
    ]
    words += ["".join(chance.choices(string.printable + "é漢\u2028", k=chance.randint(1, 8))) for _ in range(3000)]
    numbers = [1e-5, 1e16, 1e300, 5e-324, -0.0, 0.1, 3, -(2**62), True, None]
    data = {"words": words, **{f"k{word}": word for word in words}, "numbers": numbers}
    assert parse_yaml(dump_yaml(data)) == data


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("seed: 1\nname: x\nseed: 2\n", 3, "key `seed` is given twice, first on line 1"),
        ("a:\n  b: {c: 1,\n  c: 2}\n", 3, "key `c` is given twice"),
        ("a: &a\n  b: 1\nc:\n  <<: *a\n  d: 2\n  d: 3\n", 6, "key `d` is given twice"),
        ("1: x\n", 1, "a key must be text"),
        ("~: x\n", 1, "a key must be text"),
        ("? [a]\n: x\n", 1, "a key must be text"),
        ("a: &x [*x]\n", 1, "stands inside that node"),
        ("x: &x {<<: *x}\n", 1, "stands inside that node"),
        ("a: 1\nb: " + "[" * 10_000 + "]" * 10_000, 2, "levels of nesting"),
        ("a: 1\nb: " + "{a: " * 10_000, 2, "levels of nesting"),
        ("- " * 20_000, 1, "levels of nesting"),
        ("a: 1\nb: !!timestamp 2024-01-01\n", 2, "tag !!timestamp is not for settings"),
        ("b: !!python/object/apply:os.system [ls]\n", 1, "tag !!python/object/apply:os.system"),
        ("b: !mine x\n", 1, "tag !mine"),
        ("b: !!int 1_0x\n", 1, "is no number"),
        ("b: !!bool yes\n", 1, "neither true nor false"),
        ("b: " + "9" * 5000, 1, "is no number that can be read"),
        ("a: 1\n---\nb: 2\n", 2, "found another document"),
        ("x" * 300_000, None, "larger than"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_no_settings_need_is_refused_with_its_line(
    tmp_path: Path, text: str, line: int | None, message: str
) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        read_yaml(tmp_path / "r.yaml")
    told = str(caught.value)
    assert (
        told.startswith(f"{tmp_path}/r.yaml:{line or ''}") and message in told and "\n" not in told and len(told) < 400
    )


def test_an_alias_bomb_is_refused_at_once(tmp_path: Path) -> None:
    levels = [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12)]
    merges = [f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}" for n in range(1, 12)]
    for text in ("\n".join(["l0: &l0 lol", *levels]), "\n".join(["m0: &m0 {a: 1}", *merges])):
        (tmp_path / "r.yaml").write_text(text)
        begun = time.monotonic()
        with pytest.raises(UserError, match=r"r.yaml:\d+: .*with its aliases written out"):
            read_yaml(tmp_path / "r.yaml")
        assert time.monotonic() - begun < 5


def test_anchors_and_merges_of_ordinary_recipes_stay() -> None:
    data = parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n")
    assert data == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}
    chain = parse_yaml("a: &a {x: 1, y: 2}\nb: &b {<<: *a, y: 3}\nc: &c {<<: *b, y: 4}\nd: {<<: *c, z: 5}\n")
    assert chain["c"] == {"x": 1, "y": 4} and chain["d"] == {"x": 1, "y": 4, "z": 5}
    with pytest.raises(YAMLFault, match="key `y` is given twice, first on line 2"):
        parse_yaml("a: &a {x: 1}\nb: &b {<<: *a, y: 3, y: 4}\nc: {<<: *b}\n")


@pytest.mark.parametrize("name", ["..", ".", "a/b", "-x", ".hidden", "x" * 300, "", "a b", "a\n"])
def test_a_name_that_is_no_folder_of_its_own_is_refused(capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert "`name`" in refused(capsys, "keys", "smoke", f"name={dump_yaml({'n': name})[3:]}")


def test_a_recipe_that_cannot_be_one_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    long, folder = "r" * 300 + ".yaml", tmp_path / "folder.yaml"
    folder.mkdir()
    contents = {"binary": b"\x80\x00\xff", "zeros": b"\0" * 50, "empty": b"", "list": b"- 1\n", "word": b"smoke\n"}
    for name, content in contents.items():
        (tmp_path / f"{name}.yaml").write_bytes(content)
        assert f"{name}.yaml" in refused(capsys, "keys", str(tmp_path / f"{name}.yaml"))
    assert "File name too long" in refused(capsys, "keys", long)
    assert "Is a directory" in refused(capsys, "keys", str(folder))
    assert "no recipe" in refused(capsys, "keys", "r" * 300)
    assert "Not a directory" in refused(capsys, "keys", str(tmp_path / "list.yaml" / "x.yaml"))


@pytest.mark.parametrize("key", ["corpus.source", "tokenizer.path", "generator.source"])
def test_a_path_that_no_file_system_takes_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, key: str
) -> None:
    for path in ("s" * 300, '"a\\0b"'):
        assert refused(capsys, "run", "smoke", f"{key}={path}", "--dir", str(tmp_path / "run"))
    assert "File name too long" in refused(capsys, "run", "smoke", "--dir", str(tmp_path / ("d" * 300)))


def test_overrides_follow_the_same_rules_as_files() -> None:
    for text in ("a={b: 1, b: 2}", "a=&x [*x]", "a=" + "[" * 500, "a=!!python/name:os.system x"):
        with pytest.raises(UserError, match=r"override `a=.*not valid YAML") as caught:
            parse_override(text)
        assert "\n" not in str(caught.value)
