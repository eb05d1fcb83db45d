"""From prompts to records: generate one batch, read the answers, score what is accepted, note where it comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from synpro_engine.data import Tokenizer
from synpro_engine.sampler import Completion, SamplingConfig
from synpro_engine.synth.chat import render_chat, stop_ids
from synpro_engine.synth.operations import Operation, operation_named
from synpro_engine.synth.parsed import Parsed, Reject
from synpro_engine.synth.work import GenerateConfig, WorkItem


class Generator(Protocol):
    """What bulk generation asks of a sampler (`synpro_engine.sampler.Sampler` is one)."""

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of the longest prompt that `generate` takes; a longer one may raise."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        group_size: int,
        sampling: SamplingConfig,
        stop_ids: frozenset[int],
        seeds: Sequence[int],
        vocab_limit: int | None = None,
    ) -> list[list[Completion]]:
        """`group_size` completions of each prompt; a pure function of prompt, seed and settings."""
        ...


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A completion as rewards see it: the slice it was made from, the whole answer, and what was read from it."""

    operation: str
    source: str
    raw: str
    parsed: Parsed
    token_ids: tuple[int, ...] | None = None
    """The generator's tokens (without the stop id) where they are what its tokenizer makes of `parsed.text`. None
    where the parser cut some, where an id within has no text (special ids, broken bytes), and where the generator
    spelt the text in another way than the tokenizer does."""


def read_answer(
    operation: Operation, source: str, completion: Completion, tokenizer: Tokenizer, *, keep_truncated: bool
) -> Candidate:
    """Read a completion of `source`: text of the prefill and the tokens, then the operation's parser."""
    # Without the stop id, which has text where a vocabulary does not mark it special.
    ids = completion.token_ids[:-1] if completion.finished else completion.token_ids
    # Decoded behind the prefill: many decoders drop the space that a text begins with.
    raw = tokenizer.decode([*tokenizer.encode(operation.prefill), *ids])
    parsed = operation.parse(raw, finished=completion.finished or keep_truncated)
    # Equal text is not enough: decoding drops special ids and repairs broken bytes.
    spelt = parsed.ok and tokenizer.encode(parsed.text) == list(ids)
    return Candidate(
        operation=operation.name, source=source, raw=raw, parsed=parsed, token_ids=tuple(ids) if spelt else None
    )


RewardFunction = Callable[[Sequence[Candidate]], Sequence[Mapping[str, float]]]
"""Rewards by name for each candidate, all finite."""


@dataclass(frozen=True, kw_only=True)
class Producer:
    """Makes the records of a batch: everything a batch needs besides its items. `prefix` begins every record's id."""

    generator: Generator
    tokenizer: Tokenizer
    config: GenerateConfig
    generator_hash: str
    scorer: RewardFunction | None = None
    prefix: str = ""
    operations: Mapping[str, Operation] = field(init=False)

    def __post_init__(self) -> None:
        """Look the operations up once."""
        operations = {name: operation_named(name, prefill=self.config.prefill) for name in self.config.operations}
        object.__setattr__(self, "operations", operations)

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt that is answered: the user's limit or the generator's, whichever is less."""
        return min(self.config.max_prompt_tokens, self.generator.max_prompt_tokens)

    def prompt(self, item: WorkItem) -> list[int]:
        """The token ids that ask for one item."""
        operation = self.operations[item.operation]
        messages = operation.messages(item.slice.text)
        return render_chat(messages, operation.prefill, self.tokenizer, self.config.chat_format)

    def answer(self, item: WorkItem, completion: Completion) -> Candidate:
        """Read one completion of an item."""
        operation, keep = self.operations[item.operation], self.config.keep_truncated
        return read_answer(operation, item.slice.text, completion, self.tokenizer, keep_truncated=keep)

    def batch(self, items: Sequence[WorkItem]) -> list[dict[str, Any]]:
        """One record per completion, in order of the items; collective over the generator's ranks."""
        prompts = [self.prompt(item) for item in items]
        fits = [i for i, prompt in enumerate(prompts) if len(prompt) <= self.longest_prompt]
        groups: list[list[Completion]] = [[] for _ in items]
        if fits:
            generated = self.generator.generate(
                [prompts[i] for i in fits],
                group_size=self.config.samples,
                sampling=self.config.sampling,
                stop_ids=stop_ids(self.tokenizer, self.config.chat_format),
                seeds=[items[i].seed for i in fits],
                vocab_limit=self.tokenizer.vocab_size,
            )
            for i, group in zip(fits, generated, strict=True):
                groups[i] = group
        return self._scored(items, prompts, groups)

    def _scored(
        self, items: Sequence[WorkItem], prompts: list[list[int]], groups: list[list[Completion]]
    ) -> list[dict[str, Any]]:
        records, accepted, candidates = [], [], []
        for item, prompt, group in zip(items, prompts, groups, strict=True):
            if not group:
                records.append(self._too_long(item, len(prompt)))
            for member, completion in enumerate(group):
                candidate = self.answer(item, completion)
                records.append(self._record(item, member, len(prompt), completion, candidate))
                if candidate.parsed.ok:
                    accepted.append(records[-1])
                    candidates.append(candidate)
        if self.scorer is not None and candidates:
            for record, rewards in zip(accepted, self.scorer(candidates), strict=True):
                record["rewards"] = dict(rewards)
        return records

    def _id(self, item: WorkItem, member: int) -> str:
        return f"{self.prefix}{item.key}:{member}"

    def _record(
        self, item: WorkItem, member: int, prompt_tokens: int, completion: Completion, candidate: Candidate
    ) -> dict[str, Any]:
        parsed = candidate.parsed
        return {
            "id": self._id(item, member),
            "text": parsed.text,
            "reason": parsed.reason,
            "cut": dict(parsed.cut),
            "raw": None if parsed.ok else candidate.raw,
            "rewards": {},
            "provenance": self.provenance(item, member, completion.finished),
            "prompt_tokens": prompt_tokens,
            "completion_tokens": len(completion.token_ids),
            "text_tokens": len(self.tokenizer.encode(parsed.text)),
        }

    def _too_long(self, item: WorkItem, prompt_tokens: int) -> dict[str, Any]:
        return {
            "id": self._id(item, 0),
            "text": "",
            "reason": Reject.PROMPT_TOO_LONG,
            "cut": {},
            "raw": "",
            "rewards": {},
            "provenance": self.provenance(item, 0, False),
            "prompt_tokens": prompt_tokens,
            "completion_tokens": 0,
            "text_tokens": 0,
        }

    def provenance(self, item: WorkItem, member: int, finished: bool) -> dict[str, Any]:
        """Where a text comes from: source, place (characters), prompt, checkpoint, sampling, seed."""
        piece = item.slice
        return {
            "source": piece.doc_id,
            "start": piece.start,
            "end": piece.end,
            "source_sha256": hashlib.sha256(piece.text.encode()).hexdigest(),
            "operation": item.operation,
            "prompt_version": self.operations[item.operation].prompt_version,
            "generator": self.generator_hash,
            "sampling": self.config.sampling.model_dump(),
            "seed": item.seed,
            "member": member,
            "finished": finished,
        }
