"""From prompts to records: generate one batch, read the answers, score what is accepted, note where it comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from synpro_engine.data import Tokenizer
from synpro_engine.sampler import Completion, SamplingConfig
from synpro_engine.synth.operations import operation_named
from synpro_engine.synth.parsed import Reject
from synpro_engine.synth.prompting import Candidate, PromptConfig, Prompter
from synpro_engine.synth.work import GenerateConfig, WorkItem


class Generator(Protocol):
    """What bulk generation asks of a sampler (`synpro_engine.sampler.Sampler` and `ServedGenerator` are such)."""

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


RewardFunction = Callable[[Sequence[Candidate]], Sequence[Mapping[str, float]]]
"""Rewards by name for each candidate, all finite."""


@dataclass(frozen=True, kw_only=True)
class Producer:
    """Makes the records of a batch: everything a batch needs besides its items.

    `generator_hash` names the checkpoint. `prefix` begins every record's id: corpora of one source that will be read
    together need one each.
    """

    generator: Generator
    tokenizer: Tokenizer
    config: GenerateConfig
    prompt: PromptConfig
    generator_hash: str
    scorer: RewardFunction | None = None
    prefix: str = ""
    trained: Tokenizer | None = None
    """Of the model that is trained on the texts, where it encodes as `tokenizer` does: what each text was encoded to is
    then kept for token files of this one."""
    common: Mapping[str, Any] = field(default_factory=dict)
    """What the provenance of every record says beside what is its own."""

    @cached_property
    def prompters(self) -> dict[str, Prompter]:
        """By operation."""
        return {name: Prompter(operation_named(name), self.tokenizer, self.prompt) for name in self.config.names}

    @property
    def token_files(self) -> Tokenizer | None:
        """The tokenizer of the token files that lie beside the texts; None where there are none."""
        # Texts that are joined are other texts, whose ids are not those of their parts.
        return None if self.config.join else self.trained

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt that is answered: the user's limit or the generator's, whichever is less."""
        return min(self.prompt.max_tokens, self.generator.max_prompt_tokens)

    def batch(self, items: Sequence[WorkItem]) -> list[dict[str, Any]]:
        """One record per completion, in order of the items; collective over the generator's ranks."""
        prompts = [self.prompters[item.operation].ask(item.slice.text) for item in items]
        # By tokens, which only a rendered prompt has: a limit on characters would depend on the text.
        fits = [i for i, prompt in enumerate(prompts) if len(prompt) <= self.longest_prompt]
        groups: list[list[Completion]] = [[] for _ in items]
        if fits:
            generated = self.generator.generate(
                [prompts[i] for i in fits],
                group_size=self.config.samples,
                sampling=self.config.sampling,
                stop_ids=next(iter(self.prompters.values())).stop_ids,  # of the chat format, not of the operation
                seeds=[items[i].seed for i in fits],
                # Rows of padding in the embedding have no text: drawn, they would decode to nothing or fail.
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
            # A record all the same: each prompt of the work list is in the corpus or among the refused.
            if not group:
                records.append(self._too_long(item, len(prompt)))
            for member, completion in enumerate(group):
                candidate = self.prompters[item.operation].read(item.slice.text, completion)
                records.append(self._record(item, member, len(prompt), completion, candidate))
                if candidate.parsed.ok:
                    accepted.append(records[-1])
                    candidates.append(candidate)
        # All of a batch in one call, for the scorer is collective over the generator's ranks and batches better. Its
        # ranks have the same candidates, so all of them call it or none.
        if self.scorer is not None and candidates:
            for record, rewards in zip(accepted, self.scorer(candidates), strict=True):
                record["rewards"] = dict(rewards)
        return records

    def _id(self, item: WorkItem, member: int) -> str:
        return f"{self.prefix}{item.key}:{member}"

    def _record(
        self, item: WorkItem, member: int, prompt_tokens: int, completion: Completion, candidate: Candidate
    ) -> dict[str, Any]:
        parsed, ids = candidate.parsed, candidate.token_ids or ()
        record = {
            "id": self._id(item, member),
            "text": parsed.text,
            "reason": parsed.reason,
            "cut": dict(parsed.cut),
            "raw": None if parsed.ok else candidate.raw,
            "rewards": {},
            "provenance": self.provenance(item, member, completion.finished),
            "prompt_tokens": prompt_tokens,
            "completion_tokens": len(completion.token_ids),
            "text_tokens": len(ids),
        }
        return record if self.token_files is None else record | {"ids": ids}

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
            "prompt_version": self.prompters[item.operation].operation.prompt_version,
            "generator": self.generator_hash,
            "engine": "sampler" if self.config.server is None else "server",
            "sampling": self.config.sampling.model_dump(),
            "seed": item.seed,
            "member": member,
            "finished": finished,
            **self.common,
        }
