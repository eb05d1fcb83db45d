"""A generator of letters that takes seconds to tune, and what it is rewarded for."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.reward import Candidate, Composer, FunctionReward
from synpro_engine.rl.config import TuneConfig
from synpro_engine.rl.policy import prepare_policy
from synpro_engine.rl.trainer import tune
from synpro_engine.synth import Operation, Parsed, PromptConfig, Prompter, Reject, Slice
from synpro_engine.train.metrics import read_metrics

LETTERS = string.ascii_lowercase[:20] + " .:?"
LONGEST = 24
"""Letters of a completion at most."""
_WANTED = 12  # letters
_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


class Letters:
    """One id per letter; the last id ends a document. Letters that there are not are all the first."""

    vocab_size, eos_id, pad_id = len(LETTERS) + 1, len(LETTERS), len(LETTERS)
    bos_id, end_ids, fingerprint = None, frozenset[int](), "0" * 64

    def encode(self, text: str) -> list[int]:
        """One id for each letter."""
        return [max(0, LETTERS.find(letter)) for letter in text.lower()]

    def decode(self, ids: Sequence[int]) -> str:
        """The letters, without the end."""
        return "".join(LETTERS[i] for i in ids if i != self.eos_id)

    def special_id(self, literal: str) -> int | None:
        """There is none."""
        del literal

    def save(self, directory: Path) -> Path:
        """Nothing needs saving."""
        return directory


def length(candidate: Candidate) -> float:
    """1 at 12 letters, less by a twelfth for each letter more or less."""
    return max(0.0, 1.0 - abs(len(candidate.parsed.text) - _WANTED) / _WANTED)


def form(candidate: Candidate) -> float:
    """A third each for one colon, for words on both sides of it, and for a full stop at the end."""
    text = candidate.parsed.text
    before, _, after = text.partition(":")
    return (float(text.count(":") == 1) + float(bool(before.strip() and after.strip(" ."))) + text.endswith(".")) / 3.0


TASKS: dict[str, Callable[[Candidate], float]] = {"length": length, "form": form}


def _parse(raw: str, *, min_chars: int, finished: bool) -> Parsed:
    del min_chars, finished
    return Parsed(ok=bool(raw), text=raw, reason=None if raw else Reject.EMPTY)


_OPERATION = Operation(
    name="toy", heading="", instructions="write", prefill="", example=None, min_chars=0, parser=_parse
)


def curve(config: TuneConfig, task: str, seed: int, directory: Path) -> list[dict[str, Any]]:
    """Tune a fresh generator; the records of its steps."""
    shape = ModelConfig(
        family="llama", layers=2, d_model=48, heads=4, kv_heads=2, ffn=96, vocab_size=28, seq_len=96,
        tie_embeddings=True, init_std=0.08,
    )  # fmt: skip
    prompt = PromptConfig(keep_truncated=True, chat_format="plain")
    with launched(ParallelConfig(), seed) as topology:
        policy = build_model(shape, topology, seed=seed)
        reference_policy = prepare_policy(policy, config)
        tune(
            config, policy=policy, reference_policy=reference_policy,
            prompter=Prompter(replace(_OPERATION), Letters(), prompt),
            slices=[Slice(doc_id=w, start=0, end=len(w), text=w) for w in _WORDS],
            scorer=Composer([FunctionReward(task, TASKS[task], range=(0.0, 1.0))], {"toy": {task: 1.0}}),
            reward_weights={task: 1.0}, directory=directory, seed=seed, label=f"{task}, seed {seed}",
        )  # fmt: skip
    return [record for record in read_metrics(directory / "metrics.jsonl") if record["kind"] == "tune"]
