"""Multiple-choice questions as token ids: what a model is to tell apart is the answers behind one prompt.

One question is a line of JSON. Prompt and answers are tokenised apart, as tasks that are learnt are, so that an answer
has the same tokens whatever stands before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from synpro_engine.config import Record, UserError, json_text
from synpro_engine.config.records import read_records
from synpro_engine.data.prompted import Task
from synpro_engine.data.tokenizer import Tokenizer


class ChoiceQuestion(Record):
    """A question, as a line of its file says it."""

    id: str
    prompt: tuple[int, ...]
    """Ids of what is given, without the token that begins a text."""
    choices: tuple[tuple[int, ...], ...]
    """Ids of each answer."""
    utf8_bytes: tuple[int, ...]
    """Of each answer."""
    gold: int
    """The number of the right one, from 0."""


@dataclass(frozen=True)
class QuestionSet:
    """Questions, and the id that stands before a text in training."""

    questions: tuple[ChoiceQuestion, ...]
    start_id: int

    @property
    def chance(self) -> float:
        """The accuracy of who guesses."""
        return sum(1 / len(question.choices) for question in self.questions) / len(self.questions)


def with_questions(
    tasks: Iterable[Task],
    tokenizer: Tokenizer,
    longest: int,
    write: Callable[[str], object],
    on_long: Callable[[Task], object] | None,
) -> Iterator[Task]:
    """Pass tasks with choices on, and write each one's line as it passes.

    longest: tokens of a window. on_long: called with each task of which an answer would leave no token of its prompt
    there, and which is left out; without it that is a UserError.
    """
    for task in tasks:
        prompt = [id for part in task.parts if not part.learnt for id in tokenizer.encode(part.text)]
        choices = [tokenizer.encode(text) for text in task.choices]
        if max(map(len, choices)) >= longest - 1:
            if on_long is None:
                most = max(map(len, choices))
                raise UserError(
                    f"{task.id}: an answer of {most} tokens does not fit the model's window of {longest}; leave it out"
                    " or take a longer `model.seq_len`"
                )
            on_long(task)
            continue
        line = {
            "id": task.id,
            "prompt": prompt,
            "choices": choices,
            "utf8_bytes": [len(text.encode()) for text in task.choices],
            "gold": task.gold,
        }
        write(json_text(line) + "\n")
        yield task


def read_questions(path: Path, start_id: int) -> QuestionSet:
    """The questions of a file that `with_questions` wrote; UserError, which names the line, for a damaged one."""
    return QuestionSet(tuple(read_records(path, ChoiceQuestion)), start_id)
