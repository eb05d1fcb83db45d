"""What the optimizer keeps of a model's parameters, by the parameters' names and whole on every rank."""

from __future__ import annotations

import torch
from torch import Tensor

from synpro_engine.dist import sum_over
from synpro_engine.train.engine import Engine


def optimizer_values(engine: Engine, key: str) -> dict[str, Tensor]:
    """What the optimizer keeps of each trained parameter, by name: fp32 tensors of the parameter's local shape.

    key: "param" (the master weights), or of what AdamW moves "exp_avg" or "exp_avg_sq". Replicas keep a part each; here
    every rank gets the whole. Collective over replicas.
    """
    values = {}
    for name, parameter in engine.model.named_parameters():
        if not parameter.requires_grad:
            continue
        whole = torch.zeros_like(parameter, dtype=torch.float32)
        for part in engine.optimizer.chained_optimizers:
            if parameter in part.model_param_group_index_map:
                # The distributed optimizer shards entries, across the borders of parameters.
                shard = part._get_model_param_range_map(parameter)["param"]
                state = part._get_main_param_and_optimizer_states(parameter)[key]
                whole.view(-1)[shard.start : shard.end] = state.detach()
        # Each entry is held by one replica and 0 on the others, so the sum is exact.
        values[name] = sum_over(engine.model.topology.replicas, whole)
    return values
