"""Every layout against one process: initial values, scores and every gradient."""

from typing import Any

import numpy as np
import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate
from megatron.core.transformer.module import param_is_not_shared

from synpro_engine.dist import ParallelConfig, Topology, launched, sum_over
from synpro_engine.dist.testing import free_ports, job, run_ranks
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig, RopeScaling
from synpro_engine.model.model import Model, run_chunk
from synpro_engine.model.scoring import score_tokens
from synpro_engine.model.state import canonical_state, load_canonical

SHAPE: dict[str, Any] = {
    "layers": 4, "d_model": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab_size": 96, "seq_len": 32, "init_std": 0.1,
}  # fmt: skip
STRETCH = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
MODELS = {
    "olmo2": ModelConfig(family="olmo2", **SHAPE),
    "olmo2 tied": ModelConfig(family="olmo2", tie_embeddings=True, **SHAPE),
    "llama tied": ModelConfig(family="llama", tie_embeddings=True, **SHAPE),
    "llama 3": ModelConfig(family="llama", rope_scaling=STRETCH, **SHAPE | {"head_dim": 24}),
    "qwen2 tied": ModelConfig(family="qwen2", tie_embeddings=True, **SHAPE),
    "qwen3": ModelConfig(family="qwen3", **SHAPE | {"heads": 8, "head_dim": 10}),
}
LAYOUTS = {
    "TP2": ParallelConfig(tp=2),
    "TP2 SP": ParallelConfig(tp=2, sequence_parallel=True),
    "PP2": ParallelConfig(pp=2),
    "PP2 VPP2": ParallelConfig(pp=2, vpp=2),
    "CP2": ParallelConfig(cp=2),
}
Facts = dict[str, dict[str, np.ndarray]]


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(96, (5, 22), generator=torch.Generator().manual_seed(3))
    labels_BS = ids[:, 1:].clone()
    labels_BS[1, 15:] = -100
    labels_BS[:, 19:] = -100
    return ids[:, :-1], labels_BS  # 21 columns: sequence parallelism must pad


def _shaken(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Norms away from one and biases from zero, so that a shard taken from the wrong rank shows."""
    generator = torch.Generator().manual_seed(11)
    return {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}


def _gradients(model: Model, tokens_BS: torch.Tensor, labels_BS: torch.Tensor) -> dict[str, np.ndarray]:
    """Full gradients of the summed log-probability through Megatron's schedule, four microbatches of one row."""
    settings = model.megatron_config
    ddp = DistributedDataParallelConfig(grad_reduce_in_fp32=True)
    wrapped = [DistributedDataParallel(settings, ddp, chunk, disable_bucketing=True) for chunk in model.chunks]
    settings.finalize_model_grads_func = finalize_model_grads
    rows = [(model.pad(tokens_BS[i : i + 1]), labels_BS[i : i + 1]) for i in range(4)]

    def step(batches: Any, chunk: Any) -> tuple[torch.Tensor, Any]:
        tokens, labels = next(batches)

        def loss(hidden: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
            hidden = model.unpadded(hidden, labels.size(1))
            scores = model.logprobs_from_hidden(hidden, model.own_columns(labels))
            return -scores.logprob.sum(), {}

        return run_chunk(chunk, tokens), loss

    get_forward_backward_func()(
        forward_step_func=step, data_iterator=[iter(rows) for _ in wrapped], model=wrapped, num_microbatches=4,
        seq_length=rows[0][0].size(1), micro_batch_size=1, forward_only=False,
    )  # fmt: skip
    full = canonical_state(model, read=lambda parameter: parameter.main_grad)  # pyright: ignore
    return {name: tensor.numpy() for name, tensor in full.items()}


def _gradient_norm(model: Model, topology: Topology) -> float:
    """Over what Megatron counts: each shard once, replicated and tied parameters on one rank only."""
    counted = [p for p in model.parameters() if param_is_not_shared(p) and param_is_not_tensor_parallel_duplicate(p)]
    squares = sum((p.main_grad.square().sum() for p in counted), torch.zeros(()))  # pyright: ignore
    for axis in (topology.tp, topology.pp):
        sum_over(axis, squares)
    return squares.sqrt().item()


def _facts(topology: Topology, config: ModelConfig) -> Facts:
    model = build_model(config, topology, seed=5)
    initial = canonical_state(model)
    load_canonical(model, _shaken(initial))
    scores = score_tokens(model, *_batch(), micro_batch=2, entropy=True, temperature=0.9)
    assert scores.entropy is not None
    gradients = _gradients(model, *_batch())
    return {
        "initial": {name: tensor.numpy() for name, tensor in initial.items()},
        "scores": {"logprob": scores.logprob.numpy(), "entropy": scores.entropy.numpy()},
        "gradients": gradients,
        "norm": {"gradients": np.array(_gradient_norm(model, topology))},
    }


def _all_facts(layouts: dict[str, ParallelConfig], ports: list[int]) -> dict[tuple[str, str], Facts]:
    found = {}
    for (layout, parallel), port in zip(layouts.items(), ports, strict=True):
        with job(parallel, port) as topology:
            found |= {(layout, name): _facts(topology, config) for name, config in MODELS.items()}
    return found


def test_every_layout_equals_one_process_in_values_scores_and_gradients() -> None:
    with launched(ParallelConfig()) as topology:
        alone = {name: _facts(topology, config) for name, config in MODELS.items()}
    ports = free_ports(len(LAYOUTS))
    for rank, found in enumerate(run_ranks(_all_facts, 2, timeout_s=150.0, layouts=LAYOUTS, ports=ports)):
        for (layout, name), facts in found.items():
            want, where = alone[name], f"{layout}, {name}, rank {rank}"
            assert list(facts["initial"]) == list(want["initial"]), where
            for tensor in want["initial"]:
                np.testing.assert_array_equal(facts["initial"][tensor], want["initial"][tensor], err_msg=where)
            for kind in ("scores", "gradients", "norm"):
                for tensor, value in want[kind].items():
                    scale = np.abs(value).max()
                    error = np.abs(facts[kind][tensor] - value).max()
                    assert scale > 0 and error <= 1e-5 * scale, f"{where}, {kind} {tensor}: {error / scale:.1e}"
