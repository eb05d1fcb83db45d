"""A whole bulk generation with a small real generator, as a program: `generation_job.py OUT SECONDS_A_BATCH [join]`.

The generator is a bigram model of the prompt's own tokens, so what it writes depends on prompt and seed alone and
some of it is refused. Tests run this file in a process of its own to kill it, and load it to call its functions.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import synpro_engine  # noqa: F401 - installs the import hook
from synpro_engine.data import Document, HFTokenizer, Tokenizer
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.sampler import Completion, SamplingConfig
from synpro_engine.synth import (
    Candidate,
    GenerateConfig,
    Operation,
    Producer,
    PromptConfig,
    YieldReport,
    generate_corpus,
    join_generation,
    render_chat,
    stop_ids,
)

SEED = 3
PROMPT = PromptConfig(max_tokens=1200, chat_format="chatml")
CONFIG = GenerateConfig(
    max_chars=300,
    samples=2,
    batch_prompts=3,
    sampling=SamplingConfig(max_new_tokens=60),
)


def make_tokenizer() -> HFTokenizer:
    """Bytes as tokens, with ChatML's tokens and an end of document."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return HFTokenizer(made.to_str(), eos="<|endoftext|>", pad="<|endoftext|>")


def make_documents() -> list[Document]:
    """Documents of one to several slices, one of which is too short to be used."""
    rng = random.Random(SEED)
    words = "the river rose 1871 Anna mill town rain bank money worker winter because before after".split()
    sentence = lambda: " ".join(rng.choices(words, k=8)).capitalize() + ". "  # noqa: E731
    documents = [Document(f"doc/{i}", "".join(sentence() for _ in range(3 + 5 * i)).strip()) for i in range(6)]
    return [*documents, Document("short", "Too short.")]


class BigramGenerator:
    """Walks from token to token as the prompt does; sometimes it stops of itself, sometimes it does not."""

    max_prompt_tokens = 4096

    def __init__(self, tokenizer: Tokenizer, seconds: float = 0.0, stop: tuple[int, int] | None = None) -> None:
        """stop: a signal that this process gets, and before which call."""
        self._tokenizer = tokenizer
        self._seconds = seconds
        self._stop = stop
        self.calls = 0

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
        time.sleep(self._seconds)
        if self._stop is not None and self.calls == self._stop[1]:
            os.kill(os.getpid(), self._stop[0])
        self.calls += 1
        return [
            [self._one(prompt, f"{seed}/{i}", sampling.max_new_tokens, min(stop_ids)) for i in range(group_size)]
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]

    def _one(self, prompt: Sequence[int], key: str, limit: int, stop: int) -> Completion:
        rng = random.Random(key)
        plain = [id for id in prompt if self._tokenizer.decode([id])]
        ids = self._tokenizer.encode(" Rain. Content: " if rng.random() < 0.7 else "[topic] ")
        while len(ids) < limit - 1 and rng.random() > 0.02:
            follows = [b for a, b in itertools.pairwise(plain) if a == ids[-1]]
            ids.append(rng.choice(follows or plain))
        finished = rng.random() < 0.8
        ids += [stop] if finished else []
        return Completion(
            token_ids=ids, logprobs=[0.0] * len(ids), full_logprobs=[0.0] * len(ids), nuclei=None, finished=finished
        )


def generate_one(
    tokenizer: Tokenizer, operation: Operation, source: str, seed: int, member: int, config: GenerateConfig
) -> Candidate:
    """One completion, from nothing but what a record's provenance says."""
    prompt = render_chat(operation.messages(source), operation.prefill, tokenizer, PROMPT.chat_format)
    groups = BigramGenerator(tokenizer).generate(
        [prompt],
        group_size=member + 1,
        sampling=config.sampling,
        stop_ids=stop_ids(tokenizer, PROMPT.chat_format),
        seeds=[seed],
    )
    completion = groups[0][member]
    raw = operation.prefill + tokenizer.decode(completion.token_ids)
    parsed = operation.parse(raw, finished=completion.finished)
    return Candidate(operation=operation.name, source=source, raw=raw, parsed=parsed)


def letters(candidates: Sequence[Candidate]) -> list[Mapping[str, float]]:
    """A score that is easily checked: the share of letters among an accepted text's characters."""
    return [{"letters": sum(map(str.isalpha, c.parsed.text)) / len(c.parsed.text)} for c in candidates]


def make_producer(
    seconds: float = 0.0,
    prefix: str = "",
    stop: tuple[int, int] | None = None,
    config: GenerateConfig = CONFIG,
    trained: Tokenizer | None = None,
) -> Producer:
    tokenizer = make_tokenizer()
    return Producer(
        generator=BigramGenerator(tokenizer, seconds, stop), tokenizer=tokenizer, config=config, prompt=PROMPT,
        generator_hash="bigram", scorer=letters, prefix=prefix, trained=trained,
    )  # fmt: skip


def generate(
    out: Path, topology: Topology, seconds: float = 0.0, prefix: str = "", stop: tuple[int, int] | None = None
) -> tuple[YieldReport, int]:
    """The generation that all tests compare, and how many batches this rank had generated for it."""
    producer = make_producer(seconds, prefix, stop)
    report = generate_corpus(out, make_documents, producer, topology, seed=SEED)
    return report, producer.generator.calls  # pyright: ignore[reportAttributeAccessIssue]


if __name__ == "__main__":
    out, seconds = Path(sys.argv[1]), float(sys.argv[2])
    with launched(ParallelConfig()) as here:
        if sys.argv[3:] == ["join"]:
            join_generation(out, make_producer(seconds), here, seed=SEED)
        else:
            generate(out, here, seconds)
