"""Prompts with their responses, of which only the responses are learnt: tasks as a reference, read from records.

A record holds `prompt` and `response`, or a conversation in `messages` (each with `role` and `content`; what the
assistant says is response, all else is prompt), or plain text, all of which counts. Prompt and response have the tokens
that running text has: a blank between them is learnt with the response where it is a part of its first token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from pydantic import Field, model_validator

from synpro_engine.config import UserError
from synpro_engine.data.documents import BadDocument, ReadConfig, read_items
from synpro_engine.data.fields import Fault, checked, has, missing, text_at, value_at
from synpro_engine.data.running_text import encode_answers, encode_parts
from synpro_engine.data.sources import Source, find_source
from synpro_engine.data.tokenizer import Tokenizer


class PromptedConfig(ReadConfig):
    """How records of prompt and response are read. Which of the three forms a record has is seen by its fields."""

    LATER: ClassVar[frozenset[str]] = frozenset({"choices_field", "gold_field", "labels_field", "prompts_field"})

    prompt_field: str = Field(default="prompt", min_length=1)
    """Where a record holds what is given: a name or a dotted path, as `inputs` in FLAN's."""
    response_field: str = Field(default="response", min_length=1)
    """Where it holds what is to be learnt, as `targets` in FLAN's."""
    messages_field: str = Field(default="messages", min_length=1)
    """Where it holds a conversation: a list of objects with `role` and `content`."""
    choices_field: str | None = Field(default=None, min_length=1)
    """Where a record of `held_out` holds the answers that a multiple-choice question has, a list of texts, as
    `choices.text` in ARC's; the right one is then the response."""
    gold_field: str = Field(default="gold", min_length=1)
    """Where it says which of them is right: a number from 0, as HellaSwag's `label`, or one of its `labels_field`."""
    labels_field: str | None = Field(default=None, min_length=1)
    """Where it holds the answers' labels, in their order, by which `gold_field` then says it: `choices.label` in ARC's,
    whose `answerKey` is `A` or `1`."""
    prompts_field: str = Field(default="prompts", min_length=1)
    """Where it may hold a prompt for each answer in place of one for all, as WinoGrande's whose answers are two ways to
    fill a blank, and what follows is asked behind each."""
    joiner: str = "\n"
    """What stands between prompt and response, and between the turns of a conversation; a part of what is before it."""

    @model_validator(mode="after")
    def _what_goes_with_choices_has_them(self) -> Self:
        fields = type(self).model_fields
        for name in ("labels_field", "gold_field", "prompts_field") if self.choices_field is None else ():
            if getattr(self, name) != fields[name].default:
                raise ValueError(f"{name}: goes with `choices_field`, which names the answers")
        return self


class EncodedTask(NamedTuple):
    """A task's tokens, as far as a window takes them."""

    ids: list[int]
    learnt: list[bool]
    """Which of them are to be learnt."""
    text_bytes: int
    """In UTF-8, of the parts that those are of."""


class Part(NamedTuple):
    """A stretch of a task's text, and whether it is to be learnt."""

    text: str
    learnt: bool


@dataclass(frozen=True, slots=True)
class Task:
    """A text in parts, with a name that is unique in its source."""

    id: str
    parts: tuple[Part, ...]
    choices: tuple[str, ...] = ()
    """Of a multiple-choice question: all of its answers."""
    gold: int = 0
    """The number of the right one, from 0."""
    prompts: tuple[str, ...] = ()
    """What each answer stands behind, where that is not the same for all."""

    def count(self, tokenizer: Tokenizer) -> int:
        """Tokens of the whole task, with its end."""
        return sum(map(len, self._encoded(tokenizer))) + 1

    def encode_answers(self, tokenizer: Tokenizer) -> list[tuple[list[int], list[int]]]:
        """Of a multiple-choice question: for each answer the ids of what is given, and of itself behind that."""
        given = "".join(part.text for part in self.parts if not part.learnt)
        prompts = self.prompts or (given,) * len(self.choices)
        return encode_answers(tokenizer, list(zip(prompts, self.choices, strict=True)))

    def _encoded(self, tokenizer: Tokenizer) -> list[list[int]]:
        """Ids of each part; the right answer's are those that it is asked by."""
        if self.choices:
            return list(self.encode_answers(tokenizer)[self.gold])
        return encode_parts(tokenizer, [part.text for part in self.parts])

    def encode(self, tokenizer: Tokenizer, longest: int) -> EncodedTask:
        """Token ids with their end, and which are to be learnt: at most `longest`, of a longer task its tail.

        The end is learnt where it follows a response. A response of which nothing is left before it is not learnt, for
        it would be without what it answers; UserError where none is left.
        """
        encoded = self._encoded(tokenizer)
        begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        cut = len(begin) + sum(map(len, encoded)) + 1 - longest
        ids, learnt, text_bytes = list[int](), list[bool](), 0
        for part, tokens in zip(self.parts, encoded, strict=True):
            # Some of what is before a response has to be left of it.
            counts = part.learnt and (cut <= 0 or len(ids) > cut)
            learnt += [counts] * len(tokens)
            ids += tokens
            text_bytes += len(part.text.encode()) if counts else 0
        ids, learnt = [*ids, tokenizer.eos_id], [*learnt, bool(learnt) and learnt[-1]]
        if not any(learnt):
            raise UserError(
                f"{self.id}: no response fits the model's window of {longest} tokens; leave it out or take a longer"
                " `model.seq_len`"
            )
        kept = max(0, cut)
        return EncodedTask([*begin, *ids[kept:]], [*([False] * len(begin)), *learnt[kept:]], text_bytes)


def read_tasks(
    source: str | Path | Source, reading: PromptedConfig, on_bad: Callable[[BadDocument], object] | None = None
) -> Iterator[Task]:
    """Yield the tasks of `source`, one at a time; arguments, errors and memory are `read_placed_documents`'."""
    source = source if isinstance(source, Source) else find_source(source)
    fields: tuple[str, ...] = (reading.prompt_field, reading.response_field, reading.messages_field, reading.text_field)
    nested: tuple[str, ...] = (reading.messages_field,)
    if reading.choices_field is not None:
        nested = (
            (reading.choices_field,) if reading.labels_field is None else (reading.choices_field, reading.labels_field)
        )
        nested = (*nested, reading.prompts_field)
        fields = (reading.prompt_field, reading.gold_field, *nested)

    def task(id: str, content: dict[str, Any]) -> Task:
        return (
            Task(id, tuple(_parts(content, reading)))
            if reading.choices_field is None
            else _question(id, content, reading)
        )

    return (task for _, task in read_items(source, reading, fields, task, on_bad, may_nest=nested))


def _question(id: str, fields: dict[str, Any], reading: PromptedConfig) -> Task:
    name = reading.choices_field
    assert name is not None
    choices = _texts(fields, name)
    if len(choices) < 2:
        raise Fault("missing field", f"`{name}` has {len(choices)} answers; there must be two or more to choose from")
    gold = _gold(fields, reading, len(choices))
    prompts = tuple(prompt + reading.joiner for prompt in _prompts(fields, reading.prompts_field, len(choices)))
    given = prompts[gold] if prompts else text_at(fields, reading.prompt_field, "prompt_field") + reading.joiner
    return Task(id, (Part(given, False), Part(choices[gold], True)), choices, gold, prompts)


def _prompts(fields: dict[str, Any], name: str, answers: int) -> tuple[str, ...]:
    """What each answer stands behind; nothing where the record has one prompt for all."""
    prompts = _texts(fields, name) if has(fields, name) else ()
    if prompts and len(prompts) != answers:
        why = f"`{name}` has {len(prompts)} texts for {answers} answers; `prompts_field` names another field"
        raise Fault("wrong type", why)
    return prompts


def _texts(fields: dict[str, Any], name: str) -> tuple[str, ...]:
    return tuple(_text(text, f"{name}[{at}]") for at, text in enumerate(_list(fields, name)))


def _text(text: object, path: str) -> str:
    if not isinstance(text, str):
        raise Fault("wrong type", f"`{path}` must be a string, found {type(text).__name__}")
    return checked(text, path)


def _list(fields: dict[str, Any], name: str) -> list[Any]:
    found = value_at(fields, name) if has(fields, name) else None
    if not isinstance(found, list):
        raise Fault("wrong type", f"`{name}` must be a list of texts, one for each answer")
    return found


def _gold(fields: dict[str, Any], reading: PromptedConfig, answers: int) -> int:
    """The number of the right answer."""
    name = reading.gold_field
    if not has(fields, name):
        raise missing(fields, f"`{name}` is missing; `gold_field` names another field")
    given = value_at(fields, name)
    if reading.labels_field is not None:
        # By type too, for true is no label 1.
        labels = [(type(label), label) for label in _list(fields, reading.labels_field)]
        if len(labels) != answers or labels.count((type(given), given)) != 1:
            raise Fault("wrong type", f"`{name}` must be one of the {answers} labels in `{reading.labels_field}`")
        return labels.index((type(given), given))
    # Looked up and not converted: of thousands of digits Python makes no number.
    spelt = {str(number): number for number in range(answers)}
    number = spelt.get(given) if isinstance(given, str) else given
    # A bool is an int, and means no place in a list.
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < answers:
        why = f"`{name}` must be a number from 0 to {answers - 1}, or with `labels_field` one of the labels"
        raise Fault("wrong type", why)
    return number


def _parts(fields: dict[str, Any], reading: PromptedConfig) -> list[Part]:
    if has(fields, reading.messages_field):
        return _conversation(value_at(fields, reading.messages_field), reading)
    if has(fields, reading.prompt_field) or has(fields, reading.response_field):
        response = Part(text_at(fields, reading.response_field, "response_field"), True)
        if value_at(fields, reading.prompt_field) == "":  # a response to nothing
            return [response]
        prompt = text_at(fields, reading.prompt_field, "prompt_field")
        return [Part(prompt + reading.joiner, False), response]
    if not has(fields, reading.text_field):
        names = f"`{reading.prompt_field}` and `{reading.response_field}`, `{reading.messages_field}`"
        wanted = f"neither {names} nor `{reading.text_field}` is there; `prompt_field`, `response_field`,"
        raise missing(fields, f"{wanted} `messages_field` and `text_field` name others")
    return [Part(text_at(fields, reading.text_field), True)]


def _conversation(messages: object, reading: PromptedConfig) -> list[Part]:
    name = reading.messages_field
    if not isinstance(messages, list) or not messages:
        raise Fault("wrong type", f"`{name}` must be a list of messages with `role` and `content`")
    turns: list[Part] = []
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise Fault("wrong type", f"`{name}[{place}]` must be an object with `role` and `content`")
        text = _content(message.get("content"), f"{name}[{place}].content")
        if text.strip():  # a turn may be empty, as one that calls a tool is
            turns.append(Part(text, message["role"] == "assistant"))
    if not any(turn.learnt for turn in turns):
        raise Fault("missing field", f"`{name}` has no text of role `assistant`: there is nothing to learn")
    return [*(Part(turn.text + reading.joiner, turn.learnt) for turn in turns[:-1]), turns[-1]]


def _content(content: object, path: str) -> str:
    """The text of a message: a string, nothing, or a list of parts that are all text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content if not content.strip() else checked(content, path)
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else part for part in content]
        if all(isinstance(text, str) for text in texts):
            return _content("".join(map(str, texts)), path)
    raise Fault("wrong type", f"`{path}` must be text, or a list of parts that are text")
