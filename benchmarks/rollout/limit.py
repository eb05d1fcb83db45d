"""What a decoding step cannot be faster than, measured beside it: reading every weight once, and multiplying it.

The limit of a step with B rows is the longer of two times: the weights' bytes at the rate at which these threads read
memory that no cache holds, and 2 B FLOPs a weight at the rate of a large product. Neither is the machine's on paper,
for other tenants take a part of both; each round has its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.common.harness import Step, cpu_clock, interleave, measured_peak
from benchmarks.rollout.contenders import Shape, ours, prompts
from synpro_engine.data.tokenizer import PublishedTokenizer
from synpro_engine.model.model import Model

_STEPS = 24  # of decoding, that a figure is the mean of


def shares(
    model: Model, tokenizer: PublishedTokenizer, rows: Sequence[int], prompt: int, rounds: int,
    say: Callable[[str], None],
) -> list[Mapping[str, object]]:  # fmt: skip
    """One record for each number of rows: seconds of a step, the limit's, and the share of it that is reached."""
    weights = [parameter.detach() for parameter in model.parameters()]
    weight_bytes = sum(weight.nbytes for weight in weights)
    # Multiplied are all matrices; a tied embedding is one of them, for it is the output layer too.
    flops_a_row = 2.0 * sum(weight.numel() for weight in weights if weight.dim() == 2)
    product, product_flops = measured_peak(torch.device("cpu"), torch.float32)
    steps: dict[str, Step] = {"read": lambda turn: [weight.sum() for weight in weights], "product": product}
    step_seconds = dict[str, list[float]]()
    for count in rows:
        name = f"{count} rows"
        steps[name], step_seconds[name] = _steps_of(model, tokenizer, count, prompt)
    samples = interleave(steps, cpu_clock, rounds=rounds, warmups=1, progress=say)
    read_seconds = [sample.seconds for sample in samples["read"]]
    product_seconds = [sample.seconds for sample in samples["product"]]
    records: list[Mapping[str, object]] = []
    for count in rows:
        seconds = step_seconds[f"{count} rows"][-rounds:]
        limits = [
            max(read, count * flops_a_row * one / product_flops)
            for read, one in zip(read_seconds, product_seconds, strict=True)
        ]
        records.append(
            {
                "part": "limit",
                "rows": count,
                "prompt": prompt,
                "weight_bytes": weight_bytes,
                "flops_a_row": flops_a_row,
                "read_gb_per_s": weight_bytes / statistics.median(read_seconds) / 1e9,
                "product_gflop_per_s": product_flops / statistics.median(product_seconds) / 1e9,
                "step_seconds": statistics.median(seconds),
                "limit_seconds": statistics.median(limits),
                "share": statistics.median(a / b for a, b in zip(limits, seconds, strict=True)),
            }
        )
    return records


def _steps_of(model: Model, tokenizer: PublishedTokenizer, rows: int, prompt: int) -> tuple[Step, list[float]]:
    """A short rollout of groups of 8, and where each turn leaves the seconds of one of its steps."""
    shape = Shape(prompts=max(1, rows // 8), samples=min(8, rows), new=_STEPS + 1, prompt=prompt)
    rollout, sampler = ours(model, prompts(shape, tokenizer), shape)
    seconds: list[float] = []

    def step(turn: int) -> None:
        rollout(turn)
        seconds.append(sampler.stats.decode_seconds / sampler.stats.steps)

    return step, seconds
