"""Tune a text generator with GRPO on a reward of your own.

Three things are yours: the reward (a class with a name, a range and a number for each candidate), the operation (what
the generator is asked for, and how its answer is read), and the texts it is asked about. Sampling, advantages, the KL
term, checkpoints and several processes are the engine's.

    python examples/grpo_own_reward.py                                  # a tiny model of letters, under a minute
    python examples/grpo_own_reward.py --model embedded:smollm2-135m --lr 2e-5 --steps 8 --dir runs/smollm2  # minutes
    torchrun --nproc-per-node 2 examples/grpo_own_reward.py --dir runs/own-reward-2

Prints the mean reward of some steps from the first to the last, and a completion of each of these two. The tiny model
learns to write little but the letter: what is rewarded is what you get. Called again with the same --dir a run goes on
where it was.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models

from synpro_engine import (
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    SamplingConfig,
    TuneConfig,
    build_model,
    import_model,
    launched,
    load_tokenizer,
    prepare_policy,
    read_metrics,
    run_script,
    tune,
)
from synpro_engine.config import json_text
from synpro_engine.data import PublishedTokenizer
from synpro_engine.dist import Topology, on_main
from synpro_engine.model.model import Model
from synpro_engine.reward import Candidate, Composer
from synpro_engine.synth import Operation, Parsed, PromptConfig, Prompter, Slice

TEXTS = ("the sea was calm.", "a letter came in may.", "nobody had seen the key.", "we left before the rain.")
START, END = "<|im_start|>", "<|im_end|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz .\n"
TEMPLATE = (
    "{% for m in messages %}" + START + "{{ m['role'] }}\n{{ m['content'] }}" + END + "\n{% endfor %}"
    "{% if add_generation_prompt %}" + START + "assistant\n{% endif %}"
)  # fmt: skip


class Share:
    """The reward: which part of what was written is one letter."""

    range = (0.0, 1.0)

    def __init__(self, letter: str) -> None:
        self.name, self._letter = f"share_{letter}", letter

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        """A value for each; a candidate also has the `source` it answers, and its `token_ids`."""
        texts = [candidate.parsed.text for candidate in candidates]
        return [text.count(self._letter) / max(1, len(text)) for text in texts]


def read(raw: str, **_: object) -> Parsed:
    """Take any answer as it is; what an operation refuses here (`ok=False`) earns 0, and no reward is asked."""
    return Parsed(ok=True, text=raw)


GO_ON = Operation(
    name="go_on", heading="", instructions="go on with this text.", prefill="", example=None, min_chars=0, parser=read
)


def letters(directory: Path) -> None:
    """Write a tokenizer of single letters, with a chat template, as Hugging Face has them."""
    directory.mkdir(parents=True, exist_ok=True)
    words = tokenizers.Tokenizer(models.BPE(vocab={letter: id for id, letter in enumerate(LETTERS)}, merges=[]))
    words.decoder = decoders.Fuse()
    words.add_special_tokens([START, END])
    words.save(str(directory / "tokenizer.json"))
    settings = {"eos_token": END, "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json_text(settings), encoding="utf-8")


def load(args: argparse.Namespace, topology: Topology) -> tuple[Model, PublishedTokenizer]:
    """The generator: a model of yours, or a tiny one with random weights."""
    place = args.dir / "tokenizer"
    if args.model is not None:
        policy, place = import_model(args.model, topology, tokenizer_dir=place, seq_len=512)
        return policy, load_tokenizer(place)
    on_main(topology, lambda: letters(place))
    shape = ModelConfig(
        family="llama", layers=2, d_model=64, heads=4, kv_heads=2, ffn=128, vocab_size=32, seq_len=160
    )  # fmt: skip
    return build_model(shape, topology, seed=args.seed), load_tokenizer(place)


def run(args: argparse.Namespace, topology: Topology) -> None:
    """Tune the generator, and say what became of its reward."""
    policy, tokenizer = load(args, topology)
    config = TuneConfig(
        steps=args.steps, prompts_per_step=4, group_size=8, optimizer=OptimizerConfig(lr=args.lr, weight_decay=0.0),
        sampling=SamplingConfig(temperature=1.0, max_new_tokens=args.tokens),
    )  # fmt: skip
    reference_policy, reward = prepare_policy(policy, config), Share(args.letter)
    weights = {reward.name: 1.0}
    tune(
        config, policy=policy, reference_policy=reference_policy,
        prompter=Prompter(GO_ON, tokenizer, PromptConfig()),
        slices=[Slice(doc_id=f"text-{n}", start=0, end=len(text), text=text) for n, text in enumerate(TEXTS)],
        scorer=Composer([reward], {GO_ON.name: weights}), reward_weights=weights, directory=args.dir, seed=args.seed,
    )  # fmt: skip
    if topology.is_main:
        show(args.dir)


def show(directory: Path) -> None:
    """Print what tuning wrote down."""
    steps, samples = (read_metrics(directory / name) for name in ("metrics.jsonl", "samples/metrics.jsonl"))
    for record in [*steps[: -1 : max(1, len(steps) // 6)], steps[-1]]:
        print(f"step {record['step']:3}: mean reward {record['reward']:.3f}, KL {record['kl']:.4f}")
    print(f"first: {samples[0]['completion']!r}\nlast:  {samples[-1]['completion']!r}")


def main() -> None:
    """Read the arguments and join the job (of one process, or of those that torchrun started)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="embedded:smollm2-135m, a GGUF file or a Hugging Face directory; else tiny")
    parser.add_argument("--letter", default="e", help="the letter to be rewarded (%(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="steps of GRPO, 4 prompts x 8 completions (%(default)s)")
    parser.add_argument("--tokens", type=int, default=24, help="longest completion in tokens (%(default)s)")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak rate; 1e-6 to 2e-5 for a real model (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and sampling (%(default)s)")
    parser.add_argument("--dir", type=Path, default=Path("runs/own-reward"), help="the run's directory (%(default)s)")
    args = parser.parse_args()
    with launched(ParallelConfig(), args.seed) as topology:
        run(args, topology)


if __name__ == "__main__":
    sys.exit(run_script(main))
