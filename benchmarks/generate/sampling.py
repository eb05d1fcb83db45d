"""Sampling from a generator's shape with random weights: tokens a second, and the time of one step of decoding.

The output layer is scaled so that logits spread as those of a half-trained model do: from a flat distribution the
nucleus would be most of the vocabulary, and handing it over most of the time.

With `graphs` decoding steps are replayed as CUDA graphs, and draws are held against those without first.

A step feeds each live sequence one token. Its limit is the memory that it must read: every weight once, and the
keys and values of every sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from benchmarks.generate.profile import device_time
from synpro_engine.backend import platform
from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.model import Model
from synpro_engine.sampler import Completion, Sampler, SamplerConfig, SamplingConfig

OLMO2_1B = ModelConfig(
    family="olmo2", layers=16, d_model=2048, heads=16, kv_heads=16, ffn=8192, vocab_size=100352, seq_len=4096
)
"""The shape of OLMo-2-0425-1B-Instruct, the generator of the large recipes."""
_LOGIT_STD = 3.0
"""As in `linear_logprob`: about log V - 4.5 nats of entropy."""


def generator(shape: ModelConfig, topology: Topology) -> Model:
    """The model that samples, which takes longer to make than all that is measured of it."""
    model = build_model(shape, topology, dtype=platform.resolve_dtype("auto"))
    head = model.output_weight()
    head.data *= _LOGIT_STD / (
        head.detach().float().std() * shape.d_model**0.5
    )  # what it is given has a mean square of 1
    return model


def measure(
    model: Model,
    *,
    rows: int,
    prompt: int,
    new: int,
    top_p: float,
    graphs: bool,
    profile: Callable[[str, str], None] | None,
) -> Mapping[str, object]:
    """One record: `rows` completions, in groups of 8, of prompts of `prompt` tokens, none of which ends by itself."""
    shape = model.config
    plain = SamplerConfig(max_batch=rows, cache_mib=1 << 16)
    sampler = Sampler(model, plain.model_copy(update={"graphs": graphs}))
    prompts = torch.randint(0, shape.vocab_size, (max(1, rows // 8), prompt)).tolist()

    def sample(tokens: int, sampler: Sampler = sampler) -> list[list[Completion]]:
        return sampler.generate(
            prompts,
            group_size=min(8, rows),
            sampling=SamplingConfig(temperature=1.0, top_p=top_p, max_new_tokens=tokens),
            stop_ids=frozenset(),
            seeds=list(range(len(prompts))),
        )

    on_gpu = model.topology.device.type == "cuda"
    apart = _apart(sample, Sampler(model, plain), min(new, 16)) if graphs else {}
    sample(new)  # as many as are timed: kernels are compiled, and graphs recorded, by the pages that these take
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    sample(new)
    stats = sampler.stats
    if profile and on_gpu:
        profile(f"sample-{rows}-{top_p}{'-graphs' * graphs}", device_time(lambda: sample(8)))
    return {
        "rows": rows,
        "prompt": prompt,
        "new": new,
        "top_p": top_p,
        "graphs": graphs,
        **apart,
        "prompt_tokens_per_s": stats.prompt_tokens / stats.prefill_seconds,
        "new_tokens_per_s": (stats.new_tokens - rows) / stats.decode_seconds,
        "step_seconds": stats.decode_seconds / stats.steps,
        "weight_bytes": shape.parameter_count() * model.dtype.itemsize,
        "peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
    }


def _apart(sample: Callable[..., list[list[Completion]]], plain: Sampler, tokens: int) -> Mapping[str, int]:
    """Completions whose tokens graphs change, and those that differ between two runs without: sums may on a GPU."""
    found = [sample(tokens), sample(tokens, plain), sample(tokens, plain)]
    graphs, one, other = ([its.token_ids for group in groups for its in group] for groups in found)

    def differing(ours: Sequence[list[int]], theirs: Sequence[list[int]]) -> int:
        return sum(our != their for our, their in zip(ours, theirs, strict=True))

    return {"differing": differing(graphs, one), "differing_without": differing(one, other)}
