"""What a generator is asked to do with a slice of text: rephrase it, or reformat it into entries.

An operation has the words of its prompt and the parser that reads the answer. The prompts follow the requirements of
SynPro (arXiv 2605.17849) in our own words, short enough for a model of 135M parameters.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from synpro_engine.config import UserError, json_text, nearest
from synpro_engine.synth.chat import ChatMessage
from synpro_engine.synth.parse import parse_reformat, parse_rephrase
from synpro_engine.synth.parsed import REFORMAT_HEADING, REPHRASE_HEADING, Parsed


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One way to present a text anew.

    `prefill` is put at the start of the assistant's turn, so the model goes on from the heading: small models
    hardly ever write an exact heading by themselves. What a model wrote is read together with its prefill.
    """

    name: str
    heading: str
    instructions: str
    prefill: str
    example: tuple[str, str] | None
    """A text and a good answer to it, shown as an earlier exchange."""
    min_chars: int
    """Answers with fewer characters (of all entries' contents, for reformat) are refused."""
    parser: Callable[..., Parsed]

    @property
    def prompt_version(self) -> str:
        """16 hex digits of SHA-256 over everything the model is shown besides the text."""
        # All that a model is shown, so that no edit of a prompt can forget to raise a number.
        shown = [self.name, self.heading, self.instructions, self.prefill, self.example]
        return hashlib.sha256(json_text(shown).encode()).hexdigest()[:16]

    def messages(self, text: str) -> list[ChatMessage]:
        """The conversation that asks for `text` to be worked on."""
        turns = [ChatMessage(role="system", content=self.instructions)]
        if self.example is not None:
            turns.append(ChatMessage(role="user", content=self.example[0]))
            turns.append(ChatMessage(role="assistant", content=self.example[1]))
        return [*turns, ChatMessage(role="user", content=text)]

    def parse(self, raw: str, *, finished: bool = True) -> Parsed:
        """Read a whole answer (prefill included); `finished` is False when its tokens were used up. Never raises."""
        return self.parser(raw, min_chars=self.min_chars, finished=finished)

    def without_prefill(self) -> Operation:
        """The same operation where the model has to write the heading itself, and is told to."""
        told = "" if self.heading in self.instructions else f' Begin with the line "{self.heading}".'
        return dataclasses.replace(self, prefill="", instructions=self.instructions + told)


REPHRASE = Operation(
    name="rephrase",
    heading=REPHRASE_HEADING,
    instructions=(
        "You are a text rewriter. Rewrite the input text in other words. Keep every fact, name, number, pronoun, "
        "technical term and example, and keep the layout. Leave out navigation, advertisements and footers. "
        f'Add nothing. Begin with the line "{REPHRASE_HEADING}".'
    ),
    prefill=REPHRASE_HEADING + "\n",
    example=None,
    min_chars=20,
    parser=parse_rephrase,
)

_EXAMPLE = (
    "The mill at Harwick burned down on 3 May 1871. Its owner, Anna Pell, rebuilt it within two years and hired "
    "40 new workers, because the town had no other employer. She borrowed the money from a bank in Leeds.",
    f"{REFORMAT_HEADING}\n"
    "- Topic: The fire at Harwick. Content: The mill burned down on 3 May 1871, and two years later it had been "
    "rebuilt.\n"
    "- Topic: Why the mill mattered. Content: Nobody else in the town gave people work, so Anna Pell rebuilt it "
    "and hired 40 more workers.\n"
    "- Topic: Paying for it. Content: A bank in Leeds lent her the money.",
)

REFORMAT = Operation(
    name="reformat",
    heading=REFORMAT_HEADING,
    instructions=(
        "You turn the input text into a few study entries: facts, analysis, concepts, comparisons, problems and "
        "solutions, 8 at most. Use only what the text says. Write one entry a line, in plain text: "
        "- Topic: ... Content: ..."
    ),
    prefill=REFORMAT_HEADING + "\n- Topic:",
    example=_EXAMPLE,
    min_chars=20,
    parser=functools.partial(parse_reformat, example=" ".join(_EXAMPLE)),
)

OPERATIONS = {operation.name: operation for operation in (REPHRASE, REFORMAT)}


def operation_named(name: str) -> Operation:
    """Find an operation; UserError (with the nearest name) when there is none."""
    if name not in OPERATIONS:
        raise UserError(f"`operations`: no operation `{name}`{nearest(name, OPERATIONS)}")
    return OPERATIONS[name]
