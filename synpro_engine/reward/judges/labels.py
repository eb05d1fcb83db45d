"""Questions as prompts of token ids, answered by a label at a known place: behind the last token.

Texts stand first, the source before all, then the question, then the entry that it is asked about: what questions share
they begin with.
"""

from __future__ import annotations

import hashlib
import string
from dataclasses import dataclass
from functools import cached_property

from synpro_engine.config import UserError, json_text
from synpro_engine.data import Tokenizer
from synpro_engine.reward.judges import typed
from synpro_engine.reward.judges.questions import QuestionConfig
from synpro_engine.sampler.tree import common
from synpro_engine.synth.chat import LAYOUT, ChatFormat, ChatMessage, render_chat

_CUE = "Answer: "
"""Begins the judge's turn, so that a label is all that can follow."""


def labels_of(question: QuestionConfig) -> tuple[str, ...]:
    """A label for each answer, as short as it can be: yes or no, digits of levels, else letters."""
    names = question.names
    if question.type == "truth":
        return names
    first = int(question.lowest) if question.lowest >= 0 and question.lowest.is_integer() else 1
    # Two digits may be two tokens, of which the first is another level's.
    if question.type == "score" and first + len(names) <= 10:
        return tuple(str(first + n) for n in range(len(names)))
    return tuple(string.ascii_uppercase[: len(names)])


@dataclass(frozen=True)
class Labelled:
    """A question as one tokenizer writes it."""

    question: QuestionConfig
    tokenizer: Tokenizer
    chat_format: ChatFormat

    def prompt(self, state: str, entry: str = "") -> list[int]:
        """The ids of the question about these texts, up to where the labels part."""
        ids = self._render(state, entry, self._labels[0])
        return ids[: len(ids) - len(self.tails[0])]

    def version(self, *, hard: bool) -> str:
        """16 hex digits: what is asked, in which layout, and what is made of the answer."""
        layout = [LAYOUT[self.chat_format]] if self.chat_format in LAYOUT else []
        shown = [self.question.version, hard, self.chat_format, *layout]
        return hashlib.sha256(json_text(shown).encode()).hexdigest()[:16]

    @cached_property
    def tails(self) -> list[list[int]]:
        """The ids of each label from there on. UserError where one is another's, or begins it."""
        spelt = [self._render("", "", label) for label in self._labels]
        # Where they part and no earlier: some vocabularies have the space before a digit as a token of its own.
        shared = min(common(spelt[0], other) for other in spelt[1:])
        tails = [ids[shared:] for ids in spelt]
        for number, (label, tail) in enumerate(zip(self._labels, tails, strict=True)):
            for other, longer in zip(self._labels, tails, strict=True):
                if label != other and longer[: len(tail)] == tail:
                    how = "the same tokens" if longer == tail else "tokens that begin those"
                    raise UserError(f"its tokenizer makes of label `{label}` {how} of `{other}` (answer {number + 1})")
        return tails

    @cached_property
    def _labels(self) -> tuple[str, ...]:
        return labels_of(self.question)

    def _render(self, state: str, entry: str, label: str) -> list[int]:
        kind = {"truth": "yes or no", "choice": "the letter"}.get(self.question.type) or (
            "the number" if self._labels[0].isdigit() else "the letter"
        )
        told = [] if self.question.type == "truth" else self.question.told(self._labels)
        parts = [
            state, "\n".join([self.question.ask, *told]), typed.entry_of(entry) if entry else "",
            f"Answer with {kind} alone.",
        ]  # fmt: skip
        message = ChatMessage(role="user", content="\n\n".join(part for part in parts if part))
        return render_chat([message], f"{_CUE}{label}", self.tokenizer, self.chat_format)


def chat_format_of(tokenizer: Tokenizer, wanted: ChatFormat) -> ChatFormat:
    """`auto` is the tokenizer's own chat template, and `plain` where it has none."""
    files = getattr(tokenizer, "files", None)
    if wanted != "auto":
        return wanted
    return "auto" if files is not None and "default" in files.chat_templates else "plain"
