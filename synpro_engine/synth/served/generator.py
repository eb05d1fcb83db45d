"""A generator whose completions come from a server: the sampler's request as `/v1/completions` takes it, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, NoReturn

from synpro_engine.config import UserError, json_text
from synpro_engine.data import PublishedTokenizer, stable_hash
from synpro_engine.remote import CallFault, Calls, Service
from synpro_engine.sampler import Completion, SamplingConfig
from synpro_engine.synth.served.config import KEY, ServerConfig

PATH = "completions"
Share = Callable[[Callable[[], Any]], Any]
"""Runs a piece of work once for all ranks that would do the very same, and gives its plain JSON result to each."""
_ENDS = ("stop", "length")
_BY_NAME = {
    "return_token_ids": True,
    # A server takes what is left out from the generation settings that were published with the model.
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
_MOST_STOPS = 4  # OpenAI's protocol takes no more
_SEED_BITS = 31  # what all servers take: some keep seeds in 32 bits with a sign


@dataclass(frozen=True, kw_only=True)
class Request:
    """One completion that is wanted."""

    prompt: Sequence[int]
    seed: int
    max_tokens: int
    sampling: SamplingConfig
    stop_ids: frozenset[int]
    vocab_limit: int | None

    def body(self, model: str, config: ServerConfig, tokenizer: PublishedTokenizer) -> dict[str, Any]:
        """As the server takes it."""
        fields = {
            "model": model,
            "max_tokens": self.max_tokens,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            # By vLLM's and SGLang's names; unasked where nothing is set, for not every server knows them.
            "top_k": self.sampling.top_k,
            "min_p": self.sampling.min_p or None,
            "seed": self.seed,
        }
        if config.api == "tokens":
            fields |= {"prompt": list(self.prompt), "stop_token_ids": sorted(self.stop_ids)}
            fields |= {name: off for name, off in _BY_NAME.items() if fields.get(name) is None}
        else:
            ends = [tokenizer.spell([id]) for id in sorted(self.stop_ids)]
            fields |= {"prompt": self._spelt(tokenizer), "stop": ends[:_MOST_STOPS]}
        return {name: value for name, value in {**fields, **config.request}.items() if value is not None}

    def _spelt(self, tokenizer: PublishedTokenizer) -> str:
        """The prompt as text, without the begin-of-text that a server puts before what it reads."""
        put_there = tokenizer.begins_texts and self.prompt[0] == tokenizer.bos_id
        return tokenizer.spell(self.prompt[1:] if put_there else self.prompt)


class ServedGenerator:
    """Asks a server for completions: a `Generator` as the sampler is one.

    Under tensor parallelism one rank of the group asks for all of it.
    """

    def __init__(
        self,
        config: ServerConfig,
        model: str,
        tokenizer: PublishedTokenizer,
        service: Service,
        *,
        seq_len: int,
        share: Share,
    ) -> None:
        """model: its name there. seq_len: the context in which it was tuned, which bounds prompt and completion."""
        self.config, self.model, self.service = config, model, service
        self._tokenizer, self._seq_len, self._share = tokenizer, seq_len, share
        service.is_well = self.answers
        self._unread = ""
        self.guard: Callable[[], object] = lambda: None
        """Called after a batch in which calls failed: a server that was started anew may have other weights."""
        self._faults = 0

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of the longest prompt that `generate` takes: the context less one token to be drawn."""
        return self._seq_len - 1

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
        """`group_size` completions of each prompt, without log-probabilities; see `Sampler.generate`.

        Equal requests need not get equal answers: that is the server's affair. Raises UserError when a completion
        cannot be had, and Stopped when the job is asked to stop in an outage that is waited for.
        """
        requests = [
            Request(
                prompt=prompt, max_tokens=min(sampling.most_tokens(len(prompt)), self._seq_len - len(prompt)),
                sampling=sampling, seed=stable_hash(seed, "served", str(member)) & (2**_SEED_BITS - 1),
                stop_ids=stop_ids, vocab_limit=vocab_limit,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
            for member in range(group_size)
        ]  # fmt: skip
        answers: list[list[int]] = self._share(lambda: self._answers(requests))
        completions = [
            Completion(token_ids=ids, logprobs=[], full_logprobs=[], nuclei=None, finished=ids[-1] in stop_ids)
            for ids in answers
        ]
        return [completions[at : at + group_size] for at in range(0, len(completions), group_size)]

    def _answers(self, requests: Sequence[Request]) -> list[list[int]]:
        def answer(calls: Calls[int, list[int]], number: int) -> list[int] | None:
            request, attempts = requests[number], count(1)

            def body(seed: int) -> bytes:
                return self.encoded(replace(request, seed=seed))

            return calls.ask(
                PATH, body(request.seed), lambda reply: self.read(request, reply),
                # An answer that is of no use would come again for the same seed.
                again=lambda: body(request.seed ^ next(attempts)),
            )  # fmt: skip

        answers = self.service.each(range(len(requests)), answer)
        if self.service.counts["faults"] != self._faults:
            self.guard()
            self._faults = self.service.counts["faults"]
        return [self.fail() if ids is None else ids for ids in answers.values()]

    def answers(self, seconds: float) -> bool:
        """Whether the server answers a call of one token, now and within so many seconds."""
        greedy, any_id = SamplingConfig(temperature=0.0), frozenset({0})
        # A text, for an id may be that of begin-of-text, which would be spelt as an empty prompt.
        prompt = self._tokenizer.encode("a")
        request = Request(prompt=prompt, seed=0, max_tokens=1, sampling=greedy, stop_ids=any_id, vocab_limit=None)
        try:
            self.service.endpoint.post(PATH, self.encoded(request), seconds)
        except CallFault:
            return False
        return True

    def encoded(self, request: Request, **further: Any) -> bytes:
        """The body of a call."""
        return json_text(request.body(self.model, self.config, self._tokenizer) | further).encode()

    def read(self, request: Request, reply: Mapping[str, Any]) -> list[int] | None:
        """The tokens of an answer, with the stop id where it has one; None for what is no answer to the request."""
        try:
            choice = reply["choices"][0]
            reason, text, ids = choice["finish_reason"], choice["text"], choice.get("token_ids")
        except (KeyError, IndexError, TypeError, AttributeError):
            return self._unreadable("it is of another form than OpenAI's completions")
        if reason not in _ENDS or not isinstance(text, str):
            return self._unreadable("it does not say `stop` or `length`")
        known = ids is not None
        # What the server wrote as text comes to the same tokens, or to as good ones.
        ids = ids if known else self._tokenizer.encode(text)
        if not (isinstance(ids, list) and all(type(id) is int and id >= 0 for id in ids)):
            return self._unreadable("its `token_ids` are none")
        if reason == "stop" and not (ids and ids[-1] in request.stop_ids):
            ids = [*ids, min(request.stop_ids)]  # some servers keep it to themselves
        # Any of these is another distribution than the one that was asked for.
        if request.stop_ids.intersection(ids[:-1]):
            return self._unreadable("it goes on behind a stop id; does the server know `stop_token_ids`?")
        if request.vocab_limit is not None and any(id >= request.vocab_limit for id in ids):
            return self._unreadable("it has ids that the tokenizer has not")
        wanted = request.max_tokens
        if not ids or (known and (len(ids) > wanted + 1 or (reason == "length" and len(ids) < wanted))):
            return self._unreadable(f"it has {len(ids)} tokens of {wanted}; is the server's context shorter?")
        return ids

    def _unreadable(self, why: str) -> None:
        self._unread = why

    def fail(self) -> NoReturn:
        """Say why a completion was given up: UserError."""
        address, breaker = self.config.endpoint, self.service.breaker
        if self.service.refusal:
            raise UserError(f"`{KEY}`: {address} refuses a prompt ({self.service.refusal}); what is done is kept")
        if breaker.failing_s:
            raise UserError(
                f"`{KEY}.endpoint`: {address} does not answer ({breaker.reason}); what is done is kept, and a new start"
                " goes on from there"
            )
        if self._unread:
            raise UserError(f"`{KEY}`: an answer of {address} is of no use: {self._unread}")
        raise UserError(
            f"`{KEY}.deadline_s`: {address} did not answer in time ({breaker.reason}); what is done is kept"
        )
