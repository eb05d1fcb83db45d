"""How a generator is asked to work on a text, and how its answer is read: the same in tuning and in generation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pydantic import Field

from synpro_engine.config import Config
from synpro_engine.data import Tokenizer
from synpro_engine.sampler import Completion
from synpro_engine.synth.chat import ChatFormat, render_chat, stop_ids
from synpro_engine.synth.operations import Operation
from synpro_engine.synth.parsed import Parsed


class PromptConfig(Config):
    """How generators are prompted. One for tuning and generation: a generator is used as it was tuned."""

    max_tokens: int = Field(default=2048, gt=0)
    """Longest prompt. Slices that make a longer one, or one that fills the generator's context, are left out of tuning
    and rejected in generation."""
    prefill: bool = True
    """Start the assistant's turn with the operation's heading; small models seldom write it exactly."""
    keep_truncated: bool = False
    """Read an answer that ran out of tokens as if it had ended there (else it is rejected, and earns nothing)."""
    chat_format: ChatFormat = "auto"
    """Layout of the prompt; `auto` is the tokenizer's own chat template, `chatml`, `olmo2` and `plain` need none."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A completion as rewards see it: the slice it was made from, the whole answer, and what was read from it."""

    operation: str
    source: str
    raw: str
    parsed: Parsed
    token_ids: tuple[int, ...] | None = None
    """What the generator's tokenizer makes of `parsed.text`; None where the answer is refused. Not the sampled ids: the
    parser cuts some, ids may have no text (special ones, broken bytes), and a generator may spell a word in other
    pieces than its tokenizer does, as a model would never meet it in training on text."""


class Prompter:
    """One operation, put to generators that read with one tokenizer.

    Raises UserError, when first asked, for a chat format that the tokenizer does not have.
    """

    def __init__(self, operation: Operation, tokenizer: Tokenizer, config: PromptConfig) -> None:
        """`operation` is the effective one: without a prefill the model is told to write the heading."""
        # Decided once, so that tuning and generation cannot differ in it.
        self.operation = operation if config.prefill else operation.without_prefill()
        self.tokenizer, self.config = tokenizer, config

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end an answer."""
        return stop_ids(self.tokenizer, self.config.chat_format)

    def ask(self, text: str) -> list[int]:
        """The token ids of the prompt that asks for `text` to be worked on."""
        messages = self.operation.messages(text)
        return render_chat(messages, self.operation.prefill, self.tokenizer, self.config.chat_format)

    def read(self, source: str, completion: Completion) -> Candidate:
        """Read an answer to `source`: text of the prefill and the tokens, then the operation's parser."""
        # Without the stop id, which has text where a vocabulary does not mark it special.
        by_id = completion.finished and completion.stopped_by is None
        ids = completion.token_ids[:-1] if by_id else completion.token_ids
        # Decoded behind the prefill: many decoders drop the space that a text begins with.
        prefill = self.tokenizer.encode(self.operation.prefill)
        raw = self.tokenizer.decode([*prefill, *ids])
        if completion.stopped_by is not None:
            # Behind the prefill, which may have the string too: of what was drawn this is the first one.
            end = raw.find(completion.stopped_by, len(self.operation.prefill))
            raw = raw[:end] if end >= 0 else raw
        parsed = self.operation.parse(raw, finished=completion.finished or self.config.keep_truncated)
        return Candidate(
            operation=self.operation.name, source=source, raw=raw, parsed=parsed,
            token_ids=tuple(self.tokenizer.encode(parsed.text)) if parsed.ok else None,
        )  # fmt: skip
