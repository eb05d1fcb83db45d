"""Operations from a user's file: what they are called, what is refused, and that only a given recipe runs them."""

from pathlib import Path

import pytest

from synpro_engine.config import UserError, load_config, read_yaml, to_yaml
from synpro_engine.config.describe import describe
from synpro_engine.config.errors import Stopped
from synpro_engine.config.own_code import Own, calling
from synpro_engine.cycle import Recipe, load_recipe
from synpro_engine.data import Document
from synpro_engine.synth import (
    GenerateConfig,
    Reject,
    SliceConfig,
    load_operations,
    operation_named,
    operations,
    slices_of,
    work_items,
)

FILE = """\
from synpro_engine.synth import Entry, Operation, Parsed

def read(raw, *, min_chars, finished=True):
    {body}

own = Operation(
    name="any", heading="Terms:", instructions="List the terms.", prefill="Terms:", example={example}, min_chars=1,
    parser=read, rewards={{"influence": 2.0, "format": 1.0}}, cut={cut},
)
"""
GOOD = 'return Parsed(ok=True, text=raw, entries=(Entry(topic="a", content=raw),))'


def write(path: Path, body: str = GOOD, example: str = "None", cut: str = "None") -> Path:
    path.write_text(FILE.format(body=body, example=example, cut=cut))
    return path


def recipe(*operations: object, more: tuple[str, ...] = ()) -> Recipe:
    return load_recipe("smoke", [f"generate.operations=[{', '.join(map(str, operations))}]", "tune={}", *more])


def test_an_operation_goes_by_the_name_in_its_file_and_brings_its_rewards(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py")
    resolved = recipe("faq", f"{file}:own")
    assert resolved.generate.names == ("faq", "own") and resolved.generate.files == {"own": file}
    assert resolved.reward.weights("own") == {"influence": 2.0, "format": 1.0}
    assert resolved.reward.weights("faq") == operation_named("faq").rewards
    assert recipe(f"{file}:own", more=("reward.own={quality: 1}",)).reward.weights("own") == {"quality": 1.0}
    assert operation_named("own").name == "own"
    assert 'reward.own={"influence": 2.0, "format": 1.0}' in list(describe(resolved))


def test_every_edit_of_the_file_is_another_prompt_version(tmp_path: Path) -> None:
    file, versions = tmp_path / "mine.py", set[str]()
    for body in (GOOD, GOOD + "  # the same", GOOD.replace("content=raw", "content=raw[:9]")):
        recipe(f"{write(file, body)}:own")
        versions.add(operation_named("own").prompt_version)
    assert len(versions) == 3


def test_a_stored_recipe_is_read_without_running_what_it_names(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py")
    stored = tmp_path / "config.yaml"
    stored.write_text(to_yaml(recipe(f"{file}:own")))
    file.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    again = load_config(Recipe, read_yaml(stored))
    assert again.reward.weights("own") == {"influence": 2.0, "format": 1.0}
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("body", "example", "fault"),
    [
        ("return raw", "None", "the parser of `own` gives str in place of Parsed"),
        ("return Parsed(ok=True, text=raw, entries=raw or 'x')", "None", "gives something else in place of entries"),
        ("return Parsed(ok=True, text=raw, entries=('a', 'b'))", "None", "gives something else in place of entries"),
        ("return Parsed(ok=True, text=raw, entries=None)", "None", "gives something else in place of entries"),
        (
            "return Parsed(ok=True, text=raw, entries=[Entry(topic=1, content=raw)])",
            "None",
            "gives an entry whose topic or content is no text",
        ),
        ("return Parsed(ok=False, text='')", "None", "gives neither a text nor a reason, or both"),
        ("return Parsed(ok=False, text='', reason=5)", "None", "gives neither a text nor a reason, or both"),
        ("return raw[99]", "None", "mine.py:4: raised IndexError: string index out of range"),
        ("while True: pass", "None", "mine.py:4: took longer than 0.2 s"),
        (
            GOOD,
            "'a text'",
            "mine.py:6: raised TypeError: example: expected a text and an answer, or None, got 'a text'",
        ),
        (GOOD, "('a',)", "mine.py:6: raised TypeError: example: expected a text and an answer"),
        ("return Parsed(ok=False, text='', reason='odd')", "('a', 'b')", "refuses its own example (odd)"),
        ("1 / 0\n\n1 / 0", "None", "mine.py:6: raised ZeroDivisionError: division by zero"),
        ("import this_is_nowhere\n\nimport this_is_nowhere", "None", "mine.py:6: raised ModuleNotFoundError"),
        ("return (", "None", "mine.py:4: raised SyntaxError"),
        ("pass\n\nraise SystemExit(3)", "None", "mine.py:6: raised SystemExit: 3"),
    ],
)
def test_a_file_that_gives_no_operation_is_told_in_one_line(
    tmp_path: Path, body: str, example: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "_LONGEST_S", 0.2)
    file = write(tmp_path / "mine.py", body, example)
    with pytest.raises(UserError) as caught:
        recipe(f"{file}:own")
    told = str(caught.value)
    assert told.startswith(f"`generate.operations`: {tmp_path}") and fault in told and "\n" not in told


def test_a_wish_to_stop_that_falls_into_ones_own_code_is_no_fault_of_it() -> None:
    def stopped() -> None:
        raise Stopped("SIGTERM: left at once")

    with pytest.raises(Stopped, match="SIGTERM"):
        calling(Own(Path("mine.py"), "own"), "generate.operations", stopped)


@pytest.mark.parametrize(
    ("named", "fault"),
    [
        ("{file}:owl", "has no `owl` (did you mean `own`?)"),
        ("{file}:Entry", "`Entry` is no synpro_engine.synth.Operation but type"),
        ("{file}", "`generate.operations`: `{file}`: an operation of your own is named as path/to/file.py:NAME"),
        ("{file}:faq", "`faq` is built in; give yours another name"),
        ("{file}:own, {file}:own", "`generate.operations`: `own` is named twice"),
        ("gone.py:own", "`generate.operations`: gone.py: cannot be read (No such file or directory)"),
        ("fax", "`generate.operations`: no operation `fax` (did you mean `faq`?)"),
    ],
)
def test_a_name_that_leads_to_no_operation_is_told_by_its_key(tmp_path: Path, named: str, fault: str) -> None:
    file = write(tmp_path / "mine.py")
    with pytest.raises(UserError) as caught:
        recipe(named.format(file=file))
    assert fault.format(file=file) in str(caught.value) and "generate.operations" in str(caught.value)


def test_an_operation_is_not_called_like_a_setting_of_the_rewards(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py")
    file.write_text(file.read_text() + "judges = functions = own\n")
    for name in ("judges", "functions"):
        with pytest.raises(UserError, match=rf"generate.operations: `reward.{name}` is a setting; give yours another"):
            recipe(f"{file}:{name}")


def test_a_key_of_the_rewards_is_a_setting_or_an_operation() -> None:
    for key, fault in (
        ("reward.fax={influence: 1}", r"reward.fax: no such operation \(did you mean `faq`"),
        ("reward.influence_clop=1", r"unknown key `influence_clop` \(did you mean `influence_clip`"),
        ("reward.faq={influenc: 1}", r"faq: no reward `influenc` \(did you mean `influence`"),
    ):
        with pytest.raises(UserError, match=fault):
            recipe("faq", more=(key,))


def test_a_chunk_rule_cuts_in_place_of_the_settings_and_is_checked(tmp_path: Path) -> None:
    document = Document("d", "x" * 100 + "\n" + "y" * 100)
    load_operations(
        [f"{write(tmp_path / 'a.py', cut='lambda text: [(0, len(text) // 2), (len(text) // 2 + 1, len(text))]')}:own"]
    )
    config = load_config(GenerateConfig, {"operations": [f"{tmp_path / 'a.py'}:own", "faq"]})
    items = list(work_items(lambda: [document], config, 0))
    assert [item.key for item in items] == ["d:0-100:own", "d:0-201:faq", "d:101-201:own"]
    for spans in ([(0, 202)], [(5, 5)], [(50, 60), (50, 70)], [(-1, 5)]):
        with pytest.raises(UserError, match="a chunk rule gives characters"):
            list(slices_of(document, SliceConfig(min_source_chars=1), cut=lambda _, spans=spans: spans))


@pytest.mark.parametrize(
    ("cut", "fault"),
    [
        ("lambda text: 1 / 0", "a.py:8: raised ZeroDivisionError: division by zero"),
        ("lambda text: 5", "raised TypeError: 'int' object is not iterable"),
        ("lambda text: 'ab'", "a chunk rule gives ['a', 'b']; spans are pairs of whole numbers"),
        ("lambda text: [(0, 9.0)]", "a chunk rule gives [(0, 9.0)]; spans are pairs of whole numbers"),
        ("lambda text: [(0, len(text) + 1)]", "a chunk rule gives characters 0 to"),
        ("'paragraphs'", "raised TypeError: cut: expected a function or None, got 'paragraphs'"),
    ],
)
def test_a_chunk_rule_that_cannot_cut_is_told_before_anything_runs(tmp_path: Path, cut: str, fault: str) -> None:
    file = write(tmp_path / "a.py", cut=cut)
    with pytest.raises(UserError) as caught:
        recipe(f"{file}:own")
    told = str(caught.value)
    assert told.startswith("`generate.operations`: ") and fault in told and "\n" not in told


def test_what_fails_on_one_text_alone_ends_the_job_with_its_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = f"if 'odd' in raw: raw[9 ** 9]\n    while 'endless' in raw: pass\n    {GOOD}"
    file = write(tmp_path / "a.py", body, cut="lambda text: [(0, 1 // ('odd' not in text) * len(text))]")
    recipe(f"{file}:own")
    own = operation_named("own")
    assert own.parse("a text").ok
    monkeypatch.setattr(operations, "_LONGEST_S", 0.2)
    for text, fault in (("an odd one", "a.py:4: raised IndexError"), ("endless", "a.py:5: took longer than 0.2 s")):
        with pytest.raises(UserError, match=rf"^`generate.operations`: .*{fault}"):
            own.parse(text)
    with pytest.raises(UserError, match=r"^`generate.operations`: .*a.py:10: raised ZeroDivisionError"):
        list(slices_of(Document("d", "an odd one"), SliceConfig(), cut=own.cut))


def test_an_answer_that_leaves_no_text_is_refused(tmp_path: Path) -> None:
    recipe(f"{write(tmp_path / 'a.py', 'return Parsed(ok=True, text=raw)')}:own")
    for text in ("", " \n"):
        read = operation_named("own").parse(text)
        assert not read.ok and read.reason == Reject.EMPTY


def test_a_share_of_the_slices_is_of_the_smallest_hashes() -> None:
    documents = [Document(f"d{n}", f"text {n} " * 20) for n in range(400)]

    def keys(share: float, **more: object) -> set[str]:
        config = load_config(GenerateConfig, {"operations": ["faq"], "shares": {"faq": share}, **more})
        return {item.slice.key for item in work_items(lambda: documents, config, 0)}

    assert len(keys(1.0)) == 400 and keys(0.25) < keys(0.5) < keys(1.0)
    assert 70 < len(keys(0.25)) < 130
    assert len(keys(0.25, max_slices=100)) == 25 and keys(0.25, max_slices=100) < keys(1.0, max_slices=100)
    assert len(keys(0.01, max_slices=10)) == 1, "no operation is left without a slice"
    for wrong, fault in (({"fax": 0.5}, "shares.fax: is not among operations"), ({"faq": 0.0}, "greater than 0")):
        with pytest.raises(UserError, match=fault):
            load_config(GenerateConfig, {"operations": ["faq"], "shares": wrong})
