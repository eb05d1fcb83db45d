"""A whole tuning job that takes seconds: letters as tokens, a tiny generator, a reward for one letter."""

import os
from collections.abc import Sequence
from pathlib import Path

from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.model import Model
from synpro_engine.reward import Candidate, Composer
from synpro_engine.reward.canary import Canary
from synpro_engine.reward.types import Reward
from synpro_engine.rl.config import TuneConfig
from synpro_engine.rl.policy import prepare_policy
from synpro_engine.rl.trainer import TuneResult, tune
from synpro_engine.sampler import SamplingConfig
from synpro_engine.synth import Operation, Parsed, PromptConfig, Prompter, Reject, Slice
from synpro_engine.train.optimizer_config import OptimizerConfig
from synpro_engine.train.parking import NOTHING, Reading

LETTERS = "abcdefghijklmnopqrstuvwxyz \n.:"
SLICES = [Slice(doc_id=f"d{i}", start=0, end=len(t), text=t) for i, t in enumerate(("one", "two", "three", "four"))]


class Letters:
    """One id per letter; the last id ends a document."""

    vocab_size, eos_id, pad_id = len(LETTERS) + 1, len(LETTERS), len(LETTERS)
    bos_id, end_ids, fingerprint = None, frozenset(), "0" * 64

    def encode(self, text: str) -> list[int]:
        return [max(0, LETTERS.find(letter)) for letter in text.lower()]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(LETTERS[i] for i in ids if i != self.eos_id)

    def special_id(self, literal: str) -> int | None:
        return None

    def save(self, directory: Path) -> Path:
        return directory


class Share:
    """The share of one letter in the text; may break off after some calls, as a killed run does, or get a signal."""

    range = (0.0, 1.0)

    def __init__(self, letter: str, calls: int | None = None, signal: int | None = None) -> None:
        self.name, self._letter, self._left, self._signal = f"share_{letter}", letter, calls, signal

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        if self._left is not None:
            if self._left == 0 and self._signal is None:
                raise KeyboardInterrupt
            if self._left == 0:
                os.kill(os.getpid(), self._signal)
            self._left -= 1
        return [c.parsed.text.count(self._letter) / max(1, len(c.parsed.text)) for c in candidates]


def _parse(raw: str, *, min_chars: int, finished: bool) -> Parsed:
    del min_chars, finished
    return Parsed(ok=bool(raw), text=raw, reason=None if raw else Reject.EMPTY)


OPERATION = Operation(
    name="toy", heading="", instructions="write", prefill="", example=None, min_chars=0, parser=_parse
)
WEIGHTS = {"share_a": 1.0, "share_e": 0.25}
PROMPT = PromptConfig(keep_truncated=True, chat_format="plain")
CONFIG = TuneConfig(
    steps=12, prompts_per_step=4, group_size=6, micro_batch=9, train_last_blocks=2, kl_beta=0.01, warmup_fraction=0.0,
    optimizer=OptimizerConfig(lr=3e-2, beta2=0.99, weight_decay=0.0), checkpoint_every=4, log_samples=1,
    sampling=SamplingConfig(temperature=1.0, top_p=0.9, max_new_tokens=10),
)  # fmt: skip


def build(topology: Topology) -> Model:
    config = ModelConfig(
        family="llama", layers=3, d_model=32, heads=4, kv_heads=2, ffn=48, vocab_size=36, seq_len=64,
        tie_embeddings=True, init_std=0.08,
    )  # fmt: skip
    return build_model(config, topology, seed=5)


def run(
    topology: Topology,
    directory: Path,
    config: TuneConfig = CONFIG,
    *,
    kill_after: int | None = None,
    signal: int | None = None,
    operation: Operation = OPERATION,
    prompt: PromptConfig = PROMPT,
    policy: Model | None = None,
    held_out: Sequence[Slice] | None = None,
    instead: Reward | None = None,
    reads: Reading = NOTHING,
) -> tuple[TuneResult, Model]:
    """Tune `policy`, or a fresh toy one; returns the result and the policy. instead: of the reward for one letter."""
    policy = build(topology) if policy is None else policy
    composer = Composer([Share("e", kill_after, signal), instead or Share("a")], {"toy": WEIGHTS})
    reference_policy = prepare_policy(policy, config)
    result = tune(
        config, policy=policy, reference_policy=reference_policy, prompter=Prompter(operation, Letters(), prompt),
        slices=SLICES, scorer=composer,
        canary=Canary(composer, Letters().encode) if config.judge_canary.every else None, held_out=held_out,
        reward_weights=WEIGHTS, directory=directory, seed=1, reads=reads,
    )  # fmt: skip
    return result, policy
