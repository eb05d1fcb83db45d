"""What is trained: a recipe with some settings changed, and so many of its micro-batches in a step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from benchmarks.common.settings import shape_of
from synpro_engine.config import UserError
from synpro_engine.cycle import Recipe, load_recipe
from synpro_engine.data import Batch
from synpro_engine.train.metrics import flops_per_token, hardware_flops_per_token

CPU_CASES = (
    ("quickstart", ()),
    (
        "quickstart",
        (
            "model.layers=8", "model.d_model=512", "model.heads=8", "model.kv_heads=8", "model.ffn=1408",
            "model.vocab_size=8192", "model.seq_len=512", "pretrain.micro_batch=4",
        ),
    ),
)  # fmt: skip
"""What a machine without a GPU trains unless told otherwise: recipe and settings."""
CUDA_CASES = (("synpro-400m", ()), ("synpro-1.1b", ()))
_OPTIMIZER = "pretrain.optimizer.name="
ADAMW = f"{_OPTIMIZER}adamw"


@dataclass(frozen=True)
class Case:
    """One training step's work. A step of the recipe has more micro-batches, which would only repeat what is timed."""

    recipe_name: str
    overrides: tuple[str, ...]
    micro_batches: int

    @property
    def recipe(self) -> Recipe:
        """Read anew each time, for a case is sent to other processes by its names. UserError as `load_recipe`."""
        return load_recipe(self.recipe_name, self.overrides)

    @property
    def title(self) -> str:
        """For people."""
        recipe = self.recipe
        model, rows = recipe.model, recipe.pretrain.micro_batch
        return f"{recipe.name}: {shape_of(model)}, {self.micro_batches} x {rows} x {model.seq_len}"

    @property
    def tokens(self) -> int:
        """Of one data-parallel rank in a step."""
        recipe = self.recipe
        return self.micro_batches * recipe.pretrain.micro_batch * recipe.model.seq_len

    @property
    def flops_per_token(self) -> tuple[float, float]:
        """Of the model, for MFU; and with what is computed twice, for HFU."""
        recipe = self.recipe
        length = recipe.model.seq_len
        recomputed = recipe.pretrain.output_layer == "recomputed"
        hardware = hardware_flops_per_token(
            recipe.model, length, recomputed_output=recomputed, recompute=recipe.pretrain.recompute
        )
        return flops_per_token(recipe.model, length), hardware

    def batches(self, turn: int) -> list[Batch]:
        """Random tokens on the host, as a loader deals them: the same for everyone who asks for this turn."""
        recipe = self.recipe
        size = (self.micro_batches, recipe.pretrain.micro_batch, recipe.model.seq_len + 1)
        drawn = torch.randint(recipe.model.vocab_size, size, generator=torch.Generator().manual_seed(turn))
        return [Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()) for ids in drawn]


def cases(recipes: Sequence[tuple[str, Sequence[str]]], sweeps: Sequence[str], micro_batches: int) -> Iterator[Case]:
    """Every recipe with every combination of the sweeps' values. UserError for a sweep that is none.

    sweeps: `KEY=V1,V2,...` each.
    """
    for name, overrides in recipes:
        # By AdamW, as the rivals do, where nothing else is asked for; told as any other change of the recipe.
        other = load_recipe(name, overrides).pretrain.optimizer.name != "adamw"
        changed = (ADAMW, *overrides) if other and not any(o.startswith(_OPTIMIZER) for o in overrides) else overrides
        for combination in combinations(sweeps):
            yield Case(name, (*changed, *combination), micro_batches)


def combinations(sweeps: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination of the sweeps' values as settings; of no sweeps one without any. UserError as `cases`."""
    axes: list[list[str]] = []
    for sweep in sweeps:
        key, equals, values = sweep.partition("=")
        if not (key and equals and all(values.split(","))):
            raise UserError(f"--sweep: {sweep!r} is not KEY=VALUE,VALUE,...")
        axes.append([f"{key}={value}" for value in values.split(",")])
    return list(itertools.product(*axes))
