"""Sampling completions from a model that is in training, in its own process and from its own weights.

`Sampler.generate` reads top to bottom: admit prompts while pages last, read them, then feed every live sequence some
tokens, each as it was drawn, or the latest with some that were guessed, until all have ended. Where pages run out the
latest sequences are put aside and computed again later.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from synpro_engine.config import UserError
from synpro_engine.sampler.batch import LiveBatch, LiveSequence, record
from synpro_engine.sampler.cache import page_keys, pages_for
from synpro_engine.sampler.config import Completion, SamplerConfig, SamplingConfig
from synpro_engine.sampler.decode import Decoder
from synpro_engine.sampler.drawing import Drawer, Drawn, worth
from synpro_engine.sampler.endings import Endings, TextOf
from synpro_engine.sampler.graphs import recorder
from synpro_engine.sampler.reading import PromptReader
from synpro_engine.sampler.sampling import bias_vector, uniforms
from synpro_engine.sampler.speculate import Drafter, least_hope, pairs_of
from synpro_engine.sampler.static import StaticSteps
from synpro_engine.sampler.work import Request, SamplerStats, Work

if TYPE_CHECKING:
    from synpro_engine.model.model import Model


class Sampler:
    """Samples from `model`'s parameter storage: no copy and no sync, an optimizer step shows in the next token.

    Under tensor parallelism all ranks of the group call `generate` with the same arguments and get the same
    completions; data-parallel ranks call it with prompts of their own. `stats` describes the latest call,
    `drafted`, `kept` and `looped` all calls (see `SamplerStats`).
    """

    def __init__(self, model: Model, config: SamplerConfig | None = None, text_of: TextOf | None = None) -> None:
        """`text_of` decodes token ids; without it there are no stop strings.

        Raises UserError when the model is split into pipeline stages, and where graphs are wanted that its
        tensor-parallel ranks cannot have.
        """
        self.config = config or SamplerConfig()
        self.stats = SamplerStats()
        self.drafted = self.kept = self.looped = 0
        self._text_of = text_of
        self._decoder = Decoder(model)
        self._static: StaticSteps | None = None
        if self.config.graphs and self._decoder.device.type == "cuda":
            self._static = StaticSteps(self._decoder, self.config, recorder(self._decoder.tp))

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of the longest prompt that `generate` takes: the context less one token to be drawn."""
        return self._decoder.config.seq_len - 1

    def most_tokens(self, prompt_tokens: int, sampling: SamplingConfig) -> int:
        """Of a completion of a prompt of so many: what `sampling` lets it have, within the context."""
        return min(sampling.most_tokens(prompt_tokens), self._decoder.config.seq_len - prompt_tokens)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        group_size: int,
        sampling: SamplingConfig,
        stop_ids: frozenset[int],
        seeds: Sequence[int],
        vocab_limit: int | None = None,
        max_new_tokens: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """Sample `group_size` completions of each prompt; returns [prompt][member].

        `seeds` has one number per prompt; a completion is a function of the weights, its prompt, its seed and
        its member number alone (up to rounding: not of what else is in the batch). A completion ends with a stop
        id, as `sampling` says, after the `max_new_tokens` of its prompt, where these are given, or where prompt and
        completion fill the model's `seq_len`. Ids at or above `vocab_limit` are never drawn.

        Raises UserError for an empty prompt or one that leaves no room within `seq_len`, and for settings that do not
        fit, and FloatingPointError when the model's logits are not finite.
        """
        assert group_size >= 1 and len(seeds) == len(prompts), "one seed per prompt"
        self._check(prompts)
        if max_new_tokens is None:
            max_new_tokens = [self.most_tokens(len(prompt), sampling) for prompt in prompts]
        request = Request(
            prompts=prompts, seeds=seeds, group_size=group_size,
            most=max_new_tokens, endings=self._endings(sampling, stop_ids),
        )  # fmt: skip
        batch = self._batch(request)
        reader, self.stats = PromptReader(self._decoder, batch.pool), SamplerStats()
        work = Work(
            request=request, batch=batch, reader=reader, aside=[],
            drawer=Drawer(sampling, vocab_limit, self._bias(sampling, vocab_limit), self._decoder.tp),
            # Longest first: what is read together is padded least.
            waiting=sorted(range(len(prompts)), key=lambda index: len(prompts[index])),
            results=[[None] * group_size for _ in prompts],
        )  # fmt: skip
        while work.waiting or work.aside or batch.sequences:
            # Until nothing fits: sequences may end with their first token and make room at once.
            while self._resume(work) or self._admit(work):
                self._collect(work)
            self._decode(work)
            self._collect(work)
        self.stats.prompt_tokens, self.stats.known_tokens = reader.tokens, reader.known
        self.stats.cache_bytes = batch.pool.bytes
        self.drafted, self.kept = self.drafted + self.stats.drafted, self.kept + self.stats.kept
        self.looped += self.stats.looped
        return [[completion for completion in group if completion is not None] for group in work.results]

    def _batch(self, request: Request) -> LiveBatch:
        shape = self._decoder.cache_shape
        pages = max(1, self.config.cache_mib * 2**20 // shape.bytes_per_page)
        if self._static is None:
            self._decoder.looked_at()
            return LiveBatch(shape, pages)
        return LiveBatch(shape, pages, self._static.begin(request, pages))

    def _endings(self, sampling: SamplingConfig, stop_ids: frozenset[int]) -> Endings:
        if sampling.stop and self._text_of is None:
            raise UserError("`sampling.stop`: this sampler knows ids alone; give it `text_of`")
        texts, loop_tokens = tuple(sampling.stop), sampling.loop_tokens
        return Endings(stop_ids=stop_ids, texts=texts, text_of=self._text_of, loop_tokens=loop_tokens)

    def _bias(self, sampling: SamplingConfig, vocab_limit: int | None) -> torch.Tensor | None:
        vocab = self._decoder.config.vocab_size if vocab_limit is None else vocab_limit
        bias_V = bias_vector(sampling.biases, vocab, self._decoder.dtype)
        return None if bias_V is None else bias_V.to(self._decoder.device)

    def _check(self, prompts: Sequence[Sequence[int]]) -> None:
        seq_len = self._decoder.config.seq_len
        for index, prompt in enumerate(prompts):
            if not prompt:
                raise UserError(f"prompt {index} is empty; a completion needs at least one token before it")
            if len(prompt) > self.max_prompt_tokens:
                raise UserError(
                    f"prompt {index} has {len(prompt)} tokens; with `model.seq_len` = {seq_len} it must have fewer"
                )

    def _admissible(self, work: Work) -> list[int]:
        """The next prompts (longest first) that fit beside the live sequences; at least one when none is live."""
        batch, size = work.batch, work.request.group_size
        chosen, pages, counted = list[int](), 0, set[bytes]()
        for index in reversed(work.waiting):
            prompt = work.request.prompts[index]
            keys = page_keys(prompt)
            pages += pages_for(len(prompt)) - len(keys) + batch.pool.cost(key for key in keys if key not in counted)
            counted.update(keys)
            rows = len(batch.sequences) + size * (len(chosen) + 1)
            # A page for each sequence beside: a batch that is full to the brim would put one aside with its next token.
            fits = rows <= self.config.max_batch and pages + rows <= batch.pool.available
            # Alone, a group is decoded whatever it takes: refusing it would end the run over a limit that is there for
            # speed.
            if (batch.sequences or chosen) and not fits:
                break
            chosen.append(index)
        return chosen

    def _admit(self, work: Work) -> bool:
        """Read prompts that fit, once each, and draw every member's first token; whether there were any."""
        # Those that were put aside come first: they are older, and it was for want of pages.
        indices = [] if work.aside else self._admissible(work)
        if not indices:
            return False
        start, prompts, batch = time.perf_counter(), work.request.prompts, work.batch
        del work.waiting[-len(indices) :]
        at_once = max(1, self.config.prefill_tokens // len(prompts[indices[0]]))
        for at in range(0, len(indices), at_once):
            part = indices[at : at + at_once]
            pages, logits_GV = work.reader.read([prompts[index] for index in part])
            sequences = list[LiveSequence]()
            for index, its in zip(part, pages, strict=True):
                group, members = batch.open_group(index, len(prompts[index]), its), self._members(index, work.request)
                for sequence in members:
                    batch.add(sequence, group)
                sequences += members
            # A pass for each prompt and a draw for each member: the first distribution is the group's.
            logits_BV = logits_GV.repeat_interleave(work.request.group_size, 0)
            drafts: list[list[int]] = [[]] * len(sequences)
            drawn = work.drawer.at_once(logits_BV, self._uniforms(sequences, drafts, 1)[0])
            self._record(drawn, sequences, drafts, work)
        self.stats.prefill_seconds += time.perf_counter() - start
        return True

    def _members(self, index: int, request: Request) -> list[LiveSequence]:
        prompt = request.prompts[index]
        room = min(request.most[index], self._decoder.config.seq_len - len(prompt))
        pairs = pairs_of(prompt) if self.config.speculate else None
        return [
            LiveSequence(
                prompt=index, member=member, seed=request.seeds[index], room=room,
                drafter=None if pairs is None else Drafter(prompt, pairs), loops=request.endings.watch(),
            )
            for member in range(request.group_size)
        ]  # fmt: skip

    def _resume(self, work: Work) -> bool:
        """Take up the sequence that was put aside last, and compute what its pages held; whether it fits."""
        if not work.aside:
            return False
        batch, sequence = work.batch, work.aside[-1]
        prompt, stored = work.request.prompts[sequence.prompt], len(sequence.token_ids) - 1
        group = batch.group_of(sequence.prompt)
        pages = pages_for(stored) + (pages_for(len(prompt)) if group is None else 0)
        if batch.sequences and pages + len(batch.sequences) + 1 > batch.pool.available:
            return False
        start = time.perf_counter()
        work.aside.pop()
        if group is None:
            (its,), _ = work.reader.read([prompt])
            group = batch.open_group(sequence.prompt, len(prompt), its)
        batch.add(sequence, group)
        if stored:
            again = batch.again(sequence)
            self._decoder.feed(again.token_B, again.steps[0], batch.pool)
        self.stats.prefill_seconds += time.perf_counter() - start
        return True

    def _decode(self, work: Work) -> None:
        batch, start = work.batch, time.perf_counter()
        if not batch.sequences:
            return
        drafts, steps = self._make_room(work)
        uniform_NB = self._uniforms(batch.sequences, drafts, steps)
        drawn = self._take(work, drafts, uniform_NB)
        appended = self._record(drawn, batch.sequences, drafts, work)
        self.stats.steps += steps
        if self.config.speculate:
            self.stats.drafted += sum(map(len, drafts))
            self.stats.kept += appended - len(drafts)
        self.stats.decode_seconds += time.perf_counter() - start

    def _take(self, work: Work, drafts: Sequence[Sequence[int]], uniform_NB: torch.Tensor) -> Drawn:
        """Feed drafts and take as many steps as there are random numbers for."""
        batch, steps = work.batch, len(uniform_NB)
        if self._static is not None:
            drawn = self._static.take(*batch.feed(drafts, steps), uniform_NB, work.drawer, batch.pool)
            if drawn is not None:
                return drawn
        return work.drawer.take(batch.stride(drafts, steps), uniform_NB, self._decoder, batch.pool)

    def _make_room(self, work: Work) -> tuple[list[list[int]], int]:
        """What is guessed for each live sequence and how many steps are taken, with pages for all.

        Else without guesses, then in fewer steps, and then with fewer live. One sequence goes on whatever it takes, for
        refusing it would end the run over a limit that is there for speed.
        """
        batch, drafts, steps = work.batch, self._drafts(work.batch), self._steps(work)
        if batch.missing(drafts, steps) > batch.pool.available:
            drafts = [[] for _ in drafts]
        while steps > 1 and batch.missing(drafts, steps) > batch.pool.available:
            steps //= 2
        while len(batch.sequences) > 1 and batch.missing(drafts, steps) > batch.pool.available:
            work.aside.append(batch.put_aside())
            drafts.pop()
            self.stats.put_aside += 1
        return drafts, steps

    def _drafts(self, batch: LiveBatch) -> list[list[int]]:
        """What is guessed behind each live sequence's latest token. Of its tokens alone, so ranks guess alike."""
        least = least_hope(len(batch.sequences), self._decoder.device.type)
        return [sequence.draft(self.config.speculate, least) for sequence in batch.sequences]

    def _steps(self, work: Work) -> int:
        """How many steps are taken before the host sees what they drew; the same on all tensor-parallel ranks."""
        if self.config.speculate:
            return 1  # the next guess is made of what was drawn
        wanted = self.config.stride
        if wanted is None and self._decoder.device.type == "cpu":
            return 1  # nothing is waited for
        if wanted is None:
            wanted = worth(self.stats.new_tokens, self.stats.ended, max(work.request.most))
        # Behind the last token of all there is nothing to draw.
        left = max(sequence.room - len(sequence.token_ids) for sequence in work.batch.sequences)
        return min(wanted, left, work.drawer.most_steps)

    def _uniforms(self, sequences: Sequence[LiveSequence], drafts: Sequence[Sequence[int]], steps: int) -> torch.Tensor:
        """The random numbers [steps, rows] of what is drawn behind each token that is fed, fp64.

        Each by the number of its own position: neither a guess nor a stride changes a token.
        """
        rows = [
            (s.seed, s.member, len(s.token_ids) + at + step)
            for step in range(steps)
            for s, draft in zip(sequences, drafts, strict=True)
            for at in range(len(draft) + 1)
        ]
        return uniforms(*zip(*rows, strict=True)).view(steps, -1).to(self._decoder.device)

    def _record(
        self, drawn: Drawn, sequences: Sequence[LiveSequence], drafts: Sequence[Sequence[int]], work: Work
    ) -> int:
        appended = record(sequences, drafts, drawn, work.request.endings)
        self.stats.new_tokens += appended
        return appended

    def _collect(self, work: Work) -> None:
        for sequence in work.batch.retire():
            work.results[sequence.prompt][sequence.member] = sequence.completion()
            self.stats.ended += 1
            self.stats.looped += sequence.end == "loop"
