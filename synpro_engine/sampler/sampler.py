"""Sampling completions from a model that is in training, in its own process and from its own weights.

`Sampler.generate` reads top to bottom: admit prompts while pages last, read them, then feed every live sequence one
token at a time, or some that were guessed, until all have ended. Where pages run out the latest sequences are put aside
and computed again later.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from synpro_engine.config import UserError
from synpro_engine.dist import Axis
from synpro_engine.sampler.batch import LiveBatch, LiveSequence, record
from synpro_engine.sampler.cache import page_keys, pages_for
from synpro_engine.sampler.config import Completion, SamplerConfig, SamplingConfig
from synpro_engine.sampler.decode import Decoder
from synpro_engine.sampler.endings import Endings, TextOf
from synpro_engine.sampler.reading import PromptReader
from synpro_engine.sampler.sampling import Draw, bias_vector, draw, uniforms
from synpro_engine.sampler.speculate import Drafter, least_hope, pairs_of

if TYPE_CHECKING:
    from synpro_engine.model.model import Model


@dataclass(kw_only=True)
class SamplerStats:
    """Work and time of one `generate` on this rank. A prompt counts once per group.

    drafted: tokens that were guessed and fed (`SamplerConfig.speculate`). kept: those of them that were drawn too.
    looped: completions that were ended because they repeated themselves (`SamplingConfig.loop_tokens`).
    known_tokens: of prompts, not read because others that begin alike were. put_aside: how often a sequence made room
    for others. cache_bytes: memory of keys and values.
    """

    prompt_tokens: int = 0
    known_tokens: int = 0
    put_aside: int = 0
    looped: int = 0
    cache_bytes: int = 0
    new_tokens: int = 0
    steps: int = 0
    drafted: int = 0
    kept: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _Request:
    prompts: Sequence[Sequence[int]]
    seeds: Sequence[int]
    group_size: int
    sampling: SamplingConfig
    endings: Endings
    vocab_limit: int | None
    most: Sequence[int]
    bias_V: torch.Tensor | None


@dataclass(frozen=True, kw_only=True)
class _Work:
    """A request on its way: indices of prompts that wait, the longest last; sequences put aside, the latest last."""

    request: _Request
    batch: LiveBatch
    reader: PromptReader
    waiting: list[int]
    aside: list[LiveSequence]
    results: list[list[Completion | None]]


class Sampler:
    """Samples from `model`'s parameter storage: no copy and no sync, an optimizer step shows in the next token.

    Under tensor parallelism all ranks of the group call `generate` with the same arguments and get the same
    completions; data-parallel ranks call it with prompts of their own. `stats` describes the latest call,
    `drafted`, `kept` and `looped` all calls (see `SamplerStats`).
    """

    def __init__(self, model: Model, config: SamplerConfig | None = None, text_of: TextOf | None = None) -> None:
        """`text_of` decodes token ids; without it there are no stop strings.

        Raises UserError when the model is split into pipeline stages.
        """
        self.config = config or SamplerConfig()
        self.stats = SamplerStats()
        self.drafted = self.kept = self.looped = 0
        self._text_of = text_of
        self._decoder = Decoder(model)

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of the longest prompt that `generate` takes: the context less one token to be drawn."""
        return self._decoder.config.seq_len - 1

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
            max_new_tokens = [sampling.most_tokens(len(prompt)) for prompt in prompts]
        request = _Request(
            prompts=prompts, seeds=seeds, group_size=group_size, sampling=sampling, vocab_limit=vocab_limit,
            most=max_new_tokens, endings=self._endings(sampling, stop_ids), bias_V=self._bias(sampling, vocab_limit),
        )  # fmt: skip
        shape = self._decoder.cache_shape
        batch = LiveBatch(shape, max(1, self.config.cache_mib * 2**20 // shape.bytes_per_page))
        reader, self.stats = PromptReader(self._decoder, batch.pool), SamplerStats()
        work = _Work(
            request=request, batch=batch, reader=reader, aside=[],
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

    def _admissible(self, work: _Work) -> list[int]:
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

    def _admit(self, work: _Work) -> bool:
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
            self._draw(logits_BV, sequences, [[]] * len(sequences), work.request)
        self.stats.prefill_seconds += time.perf_counter() - start
        return True

    def _members(self, index: int, request: _Request) -> list[LiveSequence]:
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

    def _resume(self, work: _Work) -> bool:
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
            self._decoder.feed(batch.again(sequence), batch.pool)
        self.stats.prefill_seconds += time.perf_counter() - start
        return True

    def _decode(self, work: _Work) -> None:
        batch, start = work.batch, time.perf_counter()
        if not batch.sequences:
            return
        drafts = self._make_room(work)
        logits_BV = self._decoder.step(batch.next_step(drafts), batch.pool)
        appended = self._draw(logits_BV, batch.sequences, drafts, work.request)
        self.stats.steps += 1
        self.stats.drafted += sum(map(len, drafts))
        self.stats.kept += appended - len(drafts)
        self.stats.decode_seconds += time.perf_counter() - start

    def _make_room(self, work: _Work) -> list[list[int]]:
        """What is guessed for each live sequence, with pages for all: else without guesses, and then with fewer live.

        One sequence goes on whatever it takes, for refusing it would end the run over a limit that is there for speed.
        """
        batch, drafts = work.batch, self._drafts(work.batch)
        if batch.missing(drafts) > batch.pool.available:
            drafts = [[] for _ in drafts]
        while len(batch.sequences) > 1 and batch.missing(drafts) > batch.pool.available:
            work.aside.append(batch.put_aside())
            drafts.pop()
            self.stats.put_aside += 1
        return drafts

    def _drafts(self, batch: LiveBatch) -> list[list[int]]:
        """What is guessed behind each live sequence's latest token. Of its tokens alone, so ranks guess alike."""
        least = least_hope(len(batch.sequences), self._decoder.device.type)
        return [sequence.draft(self.config.speculate, least) for sequence in batch.sequences]

    def _draw(
        self, logits_BV: torch.Tensor, sequences: list[LiveSequence], drafts: list[list[int]], request: _Request
    ) -> int:
        """Draw behind each token that was fed, and record what stands; the number of tokens that does."""
        tp, drawn = self._decoder.tp, None
        if tp.rank == 0:
            # One pass that writes nothing: a NaN is both the least and the largest of whatever holds it.
            if not bool(torch.isfinite(torch.stack(torch.aminmax(logits_BV))).all()):
                raise FloatingPointError("the model's logits are not finite: its weights have diverged")
            # Each by the number of its own position: a guess changes no token, it only finds it earlier.
            rows = [
                (s.seed, s.member, len(s.token_ids) + at)
                for s, draft in zip(sequences, drafts, strict=True)
                for at in range(len(draft) + 1)
            ]
            uniform_B = uniforms(*zip(*rows, strict=True)).to(logits_BV.device)
            drawn = draw(logits_BV, request.sampling, uniform_B, request.vocab_limit, request.bias_V)
        drawn = _of_first_rank(drawn, len(logits_BV), tp, logits_BV.device)
        appended = record(sequences, drafts, drawn, request.endings)
        self.stats.new_tokens += appended
        return appended

    def _collect(self, work: _Work) -> None:
        for sequence in work.batch.retire():
            work.results[sequence.prompt][sequence.member] = sequence.completion()
            self.stats.looped += sequence.end == "loop"


def _of_first_rank(drawn: Draw | None, rows: int, tp: Axis, device: torch.device) -> Draw:
    """The draw of the first tensor-parallel rank, whole, on all of them; the others bring None.

    The ranks hold equal logits, but a CUDA cumulative sum may differ in its last bit from run to run: ranks that drew
    by themselves could part in a token, and wait for each other for ever, or in the nucleus, and train apart.
    """
    if drawn is not None and tp.size == 1:
        return drawn
    # fp64 holds ids exactly beside log-probabilities: one broadcast a token instead of four.
    packed = torch.zeros(4, rows, dtype=torch.float64, device=device)
    if drawn is not None:
        counts_B = torch.zeros_like(packed[0]) if drawn.nucleus_counts_B is None else drawn.nucleus_counts_B
        packed.copy_(torch.stack([drawn.token_B, drawn.logprob_B, drawn.full_logprob_B, counts_B]))
    dist.broadcast(packed, group=tp.group, group_src=0)
    token_B, logprob_B, full_logprob_B, counts_B = packed
    # All know it from the first broadcast, and so take part in the second, or none does.
    total = int(counts_B.sum())  # 0 where nothing was cut: a cut leaves each row an id at least
    ids = None
    if total:
        ids = torch.empty(total, dtype=torch.int64, device=device)
        if drawn is not None and drawn.nucleus_ids is not None:
            ids.copy_(drawn.nucleus_ids)
        dist.broadcast(ids, group=tp.group, group_src=0)
    return Draw(
        token_B=token_B.long(), logprob_B=logprob_B, full_logprob_B=full_logprob_B,
        nucleus_counts_B=None if ids is None else counts_B.long(), nucleus_ids=ids,
    )  # fmt: skip
