"""Steps of a recipe's pretrained model: tokens a second, MFU, and peak memory beside what `synpro plan` counts.

Tokens are random, since their number is all that time and memory go by. One step is a few micro-batches of the recipe's
size, and not its whole batch: more of them would only repeat what is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.common.harness import clock_for, interleave, summarise
from benchmarks.throughput.profile import device_time
from synpro_engine.backend import platform
from synpro_engine.cycle import Recipe
from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model
from synpro_engine.train.engine import Engine
from synpro_engine.train.footprint import Footprint
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.metrics import flops_per_token


@dataclass(frozen=True)
class Rows:
    """A micro-batch of random tokens, each predicting the next."""

    tokens_BS: Tensor
    labels_BS: Tensor


def measure(
    recipe: Recipe, topology: Topology, *, micro_batches: int, rounds: int, profile: Callable[[str, str], None] | None
) -> Mapping[str, object]:
    """One record. profile: takes a name and a table of what one step's time goes to."""
    model, config, dtype = recipe.model, recipe.pretrain, platform.resolve_dtype(recipe.dtype)
    torch.manual_seed(0)
    engine = Engine(build_model(model, topology, dtype=dtype), config.optimizer)
    ids = torch.randint(
        0, model.vocab_size, (micro_batches, config.micro_batch, model.seq_len + 1), device=topology.device
    )
    batches = [Rows(row[:, :-1].contiguous(), row[:, 1:].contiguous()) for row in ids]
    tokens = micro_batches * config.micro_batch * model.seq_len
    loss = LanguageModelLoss(config.z_loss)

    def step(turn: int) -> object:
        return engine.step(batches, loss, denominator=float(tokens))

    on_gpu = topology.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    timing = summarise(interleave({"step": step}, clock_for(topology.device), rounds=rounds, warmups=2)["step"])
    peak = torch.cuda.max_memory_allocated() if on_gpu else None
    if profile and on_gpu:
        profile(f"train-{recipe.name}", device_time(lambda: step(0)))
    footprint = Footprint(model, topology.layout, dtype)
    rate, limit = tokens / timing.median, platform.peak_flops()
    return {
        "part": "train",
        "tokens_per_step": tokens,
        "micro_batch": config.micro_batch,
        "timing": vars(timing),
        "tokens_per_s": rate,
        "mfu": None if limit is None else rate * flops_per_token(model, model.seq_len) / limit,
        "peak_bytes": peak,
        "planned_bytes": footprint.training + footprint.activations(config.micro_batch, model.seq_len),
    }
