"""Multiple-choice questions as records have them, and as token ids."""

from pathlib import Path
from typing import Any

import pytest

from synpro_engine.config import UserError
from synpro_engine.data import PromptedConfig, Task, find_source, read_tasks
from synpro_engine.data.choices import read_questions, with_questions
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
        ({"prompt": "2?", "choices": ["1", "2"]}, {}, "`gold` must be a number"),
        ({"prompt": "2?", "choices": ["1"], "gold": 0}, {}, "has 1 answers; there must be two or more"),
        ({"prompt": "2?", "choices": "1", "gold": 0}, {}, "`choices` must be a list of texts"),
        ({"prompt": "2?", "choices": ["1", " "], "gold": 0}, {}, "`choices[1]` is empty"),
        ({"prompt": "2?", "choices": ["1", 2], "gold": 0}, {}, "`choices[1]` must be a string, found int"),
        (
            {"question": "2?", "choices": {"text": ["1", "2"], "label": ["A", "B"]}, "answerKey": "C"}, ARC,
            "`answerKey` must be one of the 2 labels in `choices.label`",
        ),
    ],
)  # fmt: skip
def test_a_record_whose_right_answer_is_in_doubt_is_refused_by_its_line(
    tmp_path: Path, record: dict[str, Any], settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError) as caught:
        _read(write(tmp_path / "a.jsonl", record), **{"choices_field": "choices", **settings})
    assert told in str(caught.value) and "a.jsonl:1" in str(caught.value) and "\n" not in str(caught.value)


def test_questions_are_read_back_and_one_that_fits_no_window_is_left_out(tmp_path: Path) -> None:
    records = [
        {"id": "a", "prompt": "2?", "choices": ["1", "é"], "gold": 1},
        {"id": "b", "prompt": "3?", "choices": ["x" * 15, "3"], "gold": 1},
    ]
    tasks = _read(write(tmp_path / "a.jsonl", *records), choices_field="choices", joiner=" ")
    path, tokenizer = tmp_path / "q.jsonl", Bytes()
    long: list[Task] = []
    with path.open("w") as file:
        kept = list(with_questions(tasks, tokenizer, 16, file.write, long.append))
    assert [task.id for task in kept] == ["a"] and [task.id for task in long] == ["b"]
    [question] = read_questions(path, start_id=256).questions
    assert bytes(question.prompt).decode() == "2? " and question.gold == 1
    assert [bytes(ids).decode() for ids in question.choices] == ["1", "é"] and question.utf8_bytes == (1, 2)
    with pytest.raises(UserError, match="b: an answer of 15 tokens does not fit the model's window of 16"):
        list(with_questions(tasks, tokenizer, 16, lambda line: None, None))


def test_embedded_questions_have_their_choices() -> None:
    task = next(iter(read_tasks(find_source("embedded:arc_easy/validation"), PromptedConfig(choices_field="choices"))))
    assert len(task.choices) >= 3 and task.choices[task.gold] == task.parts[1].text
