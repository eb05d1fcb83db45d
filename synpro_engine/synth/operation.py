"""What an operation is: what a generator is asked to do with a slice of text, and how its answer is read."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from synpro_engine.config import UserError, json_text
from synpro_engine.synth.chat import ChatMessage
from synpro_engine.synth.parsed import Entry, Parsed, Reject

Cutter = Callable[[str], Sequence[tuple[int, int]]]
"""Spans of a document, first character and the one behind the last, in their order."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One way to present a text anew: a prompt, a chunk rule, a parser, and the rewards that it is tuned by.

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
    """Answers with fewer characters (of all entries' contents, where it has entries) are refused."""
    parser: Callable[..., Parsed]
    """`parser(answer, min_chars=N, finished=True)`: the text, its entries, or the reason of a refusal."""
    rewards: Mapping[str, float] = field(default_factory=dict)
    """Weights by reward, where a recipe gives none under `reward.NAME`."""
    cut: Cutter | None = None
    """The chunk rule: the spans of a document that are worked on; None: as `generate` cuts, by characters or tokens."""
    source_sha256: str = ""
    """Of the file that it was loaded from; empty for what is built in."""
    file: str = ""
    """That file, for messages; likewise."""

    def __post_init__(self) -> None:
        """TypeError for fields of another type: in a file of the user's own it is told with the line that made it."""
        for name in ("name", "heading", "instructions", "prefill"):
            _expect(isinstance(getattr(self, name), str), name, "text", getattr(self, name))
        shown = self.example
        is_pair = isinstance(shown, tuple | list) and len(shown) == 2 and all(isinstance(each, str) for each in shown)
        _expect(shown is None or is_pair, "example", "a text and an answer, or None", shown)
        _expect(type(self.min_chars) is int, "min_chars", "a whole number", self.min_chars)
        _expect(callable(self.parser), "parser", "a function", self.parser)
        _expect(self.cut is None or callable(self.cut), "cut", "a function or None", self.cut)
        _expect(isinstance(self.rewards, Mapping), "rewards", "weights by reward", self.rewards)
        for name, weight in self.rewards.items():
            is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
            _expect(is_number, f"rewards: {name}", "a number", weight)

    @property
    def prompt_version(self) -> str:
        """16 hex digits of SHA-256 over all that the model is shown besides the text, and over the operation's file."""
        # All that a model is shown, so that no edit of a prompt can forget to raise a number.
        shown = [self.name, self.heading, self.instructions, self.prefill, self.example]
        # A parser of the user's own has no version but its file's.
        own = [self.source_sha256] if self.source_sha256 else []
        return hashlib.sha256(json_text([*shown, *own]).encode()).hexdigest()[:16]

    def messages(self, text: str) -> list[ChatMessage]:
        """The conversation that asks for `text` to be worked on."""
        turns = [ChatMessage(role="system", content=self.instructions)]
        if self.example is not None:
            turns.append(ChatMessage(role="user", content=self.example[0]))
            turns.append(ChatMessage(role="assistant", content=self.example[1]))
        return [*turns, ChatMessage(role="user", content=text)]

    def parse(self, raw: str, *, finished: bool = True) -> Parsed:
        """Read a whole answer (prefill included); `finished` is False when its tokens were used up.

        A text of nothing is refused. Raises UserError where the parser gives something else than `Parsed`; those that
        are built in never raise.
        """
        parsed = self.parser(raw, min_chars=self.min_chars, finished=finished)
        if not isinstance(parsed, Parsed):
            raise self._misread(f"gives {type(parsed).__name__} in place of Parsed")
        reason = parsed.reason
        if not (isinstance(parsed.text, str) and isinstance(reason, str | None)) or parsed.ok == (reason is not None):
            raise self._misread("gives neither a text nor a reason, or both")
        listed = isinstance(parsed.entries, Sequence) and not isinstance(parsed.entries, str)
        if not listed or not all(isinstance(entry, Entry) for entry in parsed.entries):
            raise self._misread("gives something else in place of entries")
        if not all(isinstance(part, str) for entry in parsed.entries for part in (entry.topic, entry.content)):
            raise self._misread("gives an entry whose topic or content is no text")
        if parsed.ok and not parsed.text.strip():
            return Parsed(ok=False, text="", reason=Reject.EMPTY, exact=False)
        return parsed

    def _misread(self, what: str) -> UserError:
        where = f"{self.file}: " if self.file else ""
        return UserError(f"`generate.operations`: {where}the parser of `{self.name}` {what}")

    def without_prefill(self) -> Operation:
        """The same operation where the model has to write the heading itself, and is told to."""
        told = "" if self.heading in self.instructions else f' Begin with the line "{self.heading}".'
        return dataclasses.replace(self, prefill="", instructions=self.instructions + told)


def _expect(holds: bool, name: str, what: str, found: object) -> None:
    if not holds:
        raise TypeError(f"{name}: expected {what}, got {found!r:.40}")
