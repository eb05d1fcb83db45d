"""AdamW over Megatron's distributed optimizer: building it, its parameter groups, a guarded update, the learning rate.

Each data-parallel rank keeps the fp32 master weights and moments of its own share of the parameters only (ZeRO-1, arXiv
1910.02054). Where the optimizer is Muon, `muon` updates the matrices of the blocks, and AdamW all else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer import get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.optimizer_config import ParamKey, ParamPredicate, ParamWithNamePredicate
from torch import Tensor
from torch.distributed import all_reduce
from torch.nn.utils import get_total_norm

from synpro_engine.backend.spans import megatron_timers
from synpro_engine.config import UserError
from synpro_engine.dist import on_every_rank
from synpro_engine.model.canonical import Kind
from synpro_engine.model.model import Model
from synpro_engine.train.optimizer_config import OptimizerConfig, ScheduleConfig
from synpro_engine.train.owned import MegatronOptimizer, Shard

MATRICES: dict[str, Kind] = {
    "linear_qkv.weight": "qkv",
    "linear_proj.weight": "whole",
    "linear_fc1.weight": "gate_up",
    "linear_fc2.weight": "whole",
}
"""The matrices of blocks by the end of their names, and what each fuses."""
MOMENTUM = "momentum"
_MOMENTS = ("exp_avg", "exp_avg_sq")

# The embedding keeps its scale by itself; every other parameter decays, norm weights, biases and an untied
# output layer included. A tied output layer on the last pipeline stage is the embedding again, and marked as shared.
_EMBEDDING = ParamKey(name="*word_embeddings.weight", attr="shared_embedding")


def _own_output(parameter: Tensor, name: str) -> bool:
    return name.endswith("output_layer.weight") and not getattr(parameter, "shared_embedding", False)


_PARTS = {
    "embedding": _EMBEDDING,
    "output": ParamKey(with_name_predicate=ParamWithNamePredicate("output", _own_output)),
    "vectors": ParamKey(predicate=ParamPredicate("vector", lambda parameter: parameter.dim() == 1)),
}
"""Of the model, with rates of their own (`RatesConfig`); no parameter is of two."""
_OF_MUON = tuple(f"*.layers.*.{name}" for name in MATRICES)
_MUON = ParamKey(name=_OF_MUON)  # pyright: ignore[reportArgumentType]


def build_optimizer(
    config: OptimizerConfig, wrapped: Sequence[DistributedDataParallel], dtype: torch.dtype
) -> MegatronOptimizer:
    """The distributed optimizer over the trainable parameters of all chunks. Collective.

    bf16 parameters get fp32 master copies; fp32 parameters are updated in place.
    """
    assert dtype in (torch.float32, torch.bfloat16), dtype
    settings = MegatronOptimizerConfig(
        optimizer="adam",
        lr=config.lr,
        weight_decay=config.weight_decay,
        adam_beta1=config.beta1,
        adam_beta2=config.beta2,
        adam_eps=config.eps,
        clip_grad=config.clip,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=True,
        timers=megatron_timers,
    )
    # Megatron's standard is the other way round: vectors (norms, biases) do not decay, and the embedding does.
    overrides: Any = {_EMBEDDING: {"wd_mult": 0.0}}
    for part in _apart(config):  # only these, for each group is updated on its own; keys of one parameter add up
        overrides[_PARTS[part]] = overrides.get(_PARTS[part], {}) | {"part": part}
    if config.name == "muon":
        overrides[_MUON] = {"muon": True}
    # No gloo groups exist beside NCCL's (see `topology`); Megatron would use them to gather a checkpoint on the host.
    optimizer: MegatronOptimizer = get_megatron_optimizer(
        settings, list(wrapped), config_overrides=overrides, use_gloo_process_groups=False
    )
    assert not optimizer.is_stub_optimizer, "no parameter of the model requires a gradient"
    for part in optimizer.chained_optimizers:
        assert isinstance(part.optimizer, torch.optim.AdamW), type(part.optimizer)  # what Megatron is offered
        for group in part.optimizer.param_groups:  # one pass over memory; its default is many small operations
            group["fused"], group["foreach"] = True, False
    return optimizer


def _apart(config: OptimizerConfig) -> list[str]:
    """Parts of the model whose rate is another one."""
    return [part for part in _PARTS if getattr(config.rates, part) != 1]


def rate_of(config: OptimizerConfig, name: str, parameter: Tensor) -> float:
    """What `lr` is multiplied by for a parameter that AdamW moves; its name as `named_parameters` has it."""
    parts = [part for part, key in _PARTS.items() if key.matches(parameter, name)]  # pyright: ignore[reportArgumentType]
    return getattr(config.rates, parts[0]) if parts else 1.0


def check_rates(model: Model, config: OptimizerConfig) -> None:
    """Raise UserError, on every rank, where a rate is set of which nothing in the model trains. Collective."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for part in _apart(config):
        there = any(_PARTS[part].matches(p, name) for name, p in trained)
        if not any(on_every_rank(model.topology, lambda there=there: there)):
            hint = " (it is tied to the embedding)" if part == "output" and model.config.tie_embeddings else ""
            raise UserError(f"`optimizer.rates.{part}`: nothing that it is of trains here{hint}")


def is_of_muon(name: str) -> bool:
    """Whether Muon moves the parameter of this name, where the optimizer is Muon; as `named_parameters` has it."""
    return any(fnmatchcase(name, pattern) for pattern in _OF_MUON)


def moments(group: dict[str, Any]) -> tuple[str, ...]:
    """Names of what is kept of each parameter of a group, in fp32 and as long as its shard."""
    return (MOMENTUM,) if group.get("muon") else _MOMENTS


def begin_state(shard: Shard) -> None:
    """Give a shard the state of before its first update, as the optimizer makes it then; nothing where it has one."""
    if shard.state:
        return
    if not shard.group.get("muon"):
        # A fused step wants its count beside the parameter.
        shard.state["step"] = torch.zeros((), device=shard.main.device if shard.group["fused"] else "cpu")
    shard.state.update({moment: torch.zeros_like(shard.main) for moment in moments(shard.group)})


def set_hyperparameters(optimizer: MegatronOptimizer, config: OptimizerConfig, factor: float, decay: float) -> None:
    """Write this step's settings into every parameter group.

    factor: the schedule's, on the peak rates. decay: the step's weight decay, as the settings count it.
    All of them each time: loading a checkpoint brings back the groups of the run that saved it.
    """
    for group in optimizer.param_groups:
        part = group.get("part")
        peak = config.muon.lr if group.get("muon") else config.lr * (getattr(config.rates, part) if part else 1.0)
        group["lr"] = peak * factor
        # The updates multiply it by the rate, peak x factor; decoupled, the peak is taken off again. By the peak and
        # not by the rate, which a schedule may bring to 0.
        group["weight_decay"] = (decay / peak if config.decoupled_decay else decay) * group["wd_mult"]
        group["betas"] = (config.beta1, config.beta2)
        group["eps"] = config.eps


def gather_gradients(optimizer: MegatronOptimizer, device: torch.device) -> Tensor:
    """Bring the reduced gradients to the optimizer; the square of their norm, fp32 [], on `device`. Collective.

    Equal on every rank: a NaN of one rank reaches all the others here. Megatron's own norm reads one number after the
    other where no fused operation of Apex is there, and the host waits for each parameter.
    """
    optimizer.prepare_grads()
    gradients = list[Tensor]()
    for part in optimizer.chained_optimizers:
        # What Megatron 0.16 and 0.19 call the gradients without those of shared and of replicated parameters.
        counted = getattr(part, "get_grads_for_grad_norm", None) or part.get_main_grads_for_grad_norm
        gradients += counted()
    square = get_total_norm(gradients).to(device).square()  # 0 of a rank that holds none, on the CPU
    all_reduce(square, group=optimizer.get_grad_stats_parallel_group())
    return square


def update(
    optimizer: MegatronOptimizer, clip: float, norm: float, *, first: Callable[[], object] | None = None
) -> bool:
    """Clip the gradients that were gathered by their norm, and apply them; whether the optimizer did.

    first: updates shards of its own and takes their gradients away, so that AdamW leaves them alone. Parameters are
    gathered before this returns, unless their wrapper was told to do so behind the next pass.
    """
    for part in optimizer.chained_optimizers:
        parameters = part.get_parameters()
        # By the norm at hand: Megatron's own step would take it a second time.
        if clip > 0 and parameters:
            clip_grad_by_total_norm_fp32(parameters, max_norm=clip, total_norm=norm)
    if first is not None:
        first()
    # Not `step()`, which would prepare and clip once more.
    return bool(optimizer.step_with_ready_grads())


def lr_factor(config: ScheduleConfig, step: int) -> float:
    """Factor in [0, 1] on the peak learning rate for the step with 0-based index `step`, and a function of it alone.

    So that resuming needs nothing but the step. Megatron's own scheduler keeps a counter of its own and starts a
    warm-up at a rate of zero, so that its first step changes nothing.

    warm-up: (step + 1) / warmup_steps. With t in [0, 1] the part of the decay done and f the floor,
    cosine: f + (1 - f) (1 + cos(pi t)) / 2; wsd: f + (1 - f) (1 - t) or f + (1 - f) (1 - sqrt(t)).
    """
    assert step >= 0
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.kind == "constant":
        return 1.0
    assert config.total_steps is not None  # checked by ScheduleConfig
    if config.kind == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * _progress(step, config.warmup_steps, config.total_steps)))
    else:
        assert config.decay_steps is not None
        done = _progress(step, config.total_steps - config.decay_steps, config.total_steps)
        left = 1.0 - (math.sqrt(done) if config.decay_shape == "sqrt" else done)
    return config.floor + (1.0 - config.floor) * left


def decay_at(config: OptimizerConfig, step: int) -> float:
    """Weight decay of the step with 0-based index `step`, and a function of it alone.

    With t in [0, 1] the part done of the way from `hold_steps` to `total_steps`, d the decay and f the final one,
    linear: d + (f - d) t; cosine: d + (f - d) (1 - cos(pi t)) / 2.
    """
    schedule = config.decay_schedule
    if schedule.kind == "constant":
        return config.weight_decay
    assert schedule.total_steps is not None  # checked by DecayScheduleConfig
    done = _progress(step, schedule.hold_steps, schedule.total_steps)
    if schedule.kind == "cosine":
        done = 0.5 * (1.0 - math.cos(math.pi * done))
    return config.weight_decay + (schedule.final - config.weight_decay) * done


def _progress(step: int, start: int, end: int) -> float:
    return min(1.0, max(0.0, (step - start) / (end - start)))
