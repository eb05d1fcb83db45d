"""Multiple-choice questions as token ids: what a model is to tell apart is the answers behind one prompt.

One question is a line of JSON. Prompt and answers have the tokens that running text has, as tasks that are learnt do: a
blank before the answers that joins their first token is theirs (`running_text`), and is none of their bytes.
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
    """Ids of what is given, without the token that begins a text; before the right answer, where that makes one."""
    choices: tuple[tuple[int, ...], ...]
    """Ids of each answer."""
    utf8_bytes: tuple[int, ...]
    """Of each answer."""
    gold: int
    """The number of the right one, from 0."""
    prompts: tuple[tuple[int, ...], ...] = ()
    """Ids of what is given before each answer, where that is not the same for all."""

    def before(self, choice: int) -> tuple[int, ...]:
        """Ids of what is given before an answer, by its number."""
        return self.prompts[choice] if self.prompts else self.prompt


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
    tasks: Iterable[Task], tokenizer: Tokenizer, longest: int, on_long: Callable[[Task], object] | None
) -> Iterator[tuple[Task, ChoiceQuestion]]:
    """Tasks with choices, and the question that each one is.

    longest: tokens of a window. on_long: called with each task of which an answer would leave no token of its prompt
    there, and which is left out; without it, or where no task is left, that is a UserError.
    """
    room = longest - 2 - (tokenizer.bos_id is not None)  # beside a token of the prompt, the end and the begin
    too_long, fits = None, False
    for task in tasks:
        prompts, choices = zip(*task.encode_answers(tokenizer), strict=True)
        most = max(map(len, choices))
        if most > room:
            error = UserError(
                f"{task.id}: an answer of {most} tokens does not fit the model's window of {longest}; leave it out"
                " or take a longer `model.seq_len`"
            )
            if on_long is None:
                raise error
            on_long(task)
            too_long = too_long or error
            continue
        fits = True
        yield (
            task,
            ChoiceQuestion(
                id=task.id,
                prompt=tuple(prompts[task.gold]),
                choices=tuple(map(tuple, choices)),
                utf8_bytes=tuple(len(text.encode()) for text in task.choices),
                gold=task.gold,
                prompts=tuple(map(tuple, prompts)) if task.prompts else (),
            ),
        )
    if too_long and not fits:
        raise too_long


def write_questions(questions: Iterable[ChoiceQuestion], path: Path) -> None:
    """Write each as a line of `path`."""
    with path.open("w", encoding="ascii") as file:
        file.writelines(json_text(question.model_dump()) + "\n" for question in questions)


def read_questions(path: Path, start_id: int) -> QuestionSet:
    """The questions of a file that `write_questions` wrote; UserError, which names the line, for a damaged one."""
    return QuestionSet(tuple(read_records(path, ChoiceQuestion)), start_id)
