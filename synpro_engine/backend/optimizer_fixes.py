"""Mends Megatron's distributed optimizer where it runs on torch's AdamW, so that its state can be saved and resumed.

Three faults (megatron-core 0.16.1, without Transformer Engine or apex): a load template of a fresh optimizer, or of a
rank that owns no parameter, fails on an assertion; loading `fully_reshardable` state looks for a `step` tensor that was
never stored; and after loading, all parameters share one `step` tensor, which each of them then advances, so that a
resumed run drifts without any error. With Transformer Engine or apex nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.optimizer import distrib_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch import Tensor


def uses_torch_adam() -> bool:
    """Whether Megatron fell back to torch's AdamW, the only case that needs mending."""
    return not distrib_optimizer.HAVE_APEX_OR_TE


def make_resumable(optimizer: DistributedOptimizer) -> None:
    """Turn a distributed optimizer over torch's AdamW into a `ResumableDistributedOptimizer`, in place."""
    assert type(optimizer) is DistributedOptimizer, type(optimizer)
    if uses_torch_adam():
        # Megatron names the class inside its factory; a subclass without fields of its own can take its place.
        optimizer.__class__ = ResumableDistributedOptimizer


class ResumableDistributedOptimizer(DistributedOptimizer):
    """The distributed optimizer over torch's AdamW, with state that can be saved at any step and loaded."""

    def state_dict(self) -> dict[str, Any]:
        """Settings of the parameter groups and the common step; identical on every rank. Collective."""
        inner = self.optimizer.state_dict()
        step = self._common_step()
        groups = [{k: v for k, v in group.items() if k != "params"} | {"step": step} for group in inner["param_groups"]]
        return {"optimizer": {"param_groups": groups}}

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As Megatron's, but also before the first step, when torch's AdamW has no moments yet. Collective."""
        for main, group in self._main_params():
            if not self.optimizer.state[main]:
                self.optimizer.state[main] = _fresh_state(main, fused=bool(group.get("fused")))
        return super().sharded_state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As Megatron's; afterwards each parameter has a `step` of its own again."""
        super().load_state_dict(state_dict)
        for state in self.optimizer.state.values():
            state["step"] = state["step"].clone()

    def _set_main_param_and_optimizer_states(self, model_param: Tensor, tensors: dict[str, Tensor]) -> None:
        """Copy the tensors that were loaded, and only those: the step travels with the parameter groups."""
        group, order = self.model_param_group_index_map[model_param]
        main = self.optimizer.param_groups[group]["params"][order]
        state = self.optimizer.state[main]
        for name, value in tensors.items():
            (main if name == "param" else state[name]).detach().copy_(value)

    def _main_params(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for group in self.optimizer.param_groups:
            for main in group["params"]:
                yield main, group

    def _common_step(self) -> int:
        """Updates made so far; a rank that owns no parameter learns it from the others."""
        own = {int(state["step"].item()) for state in self.optimizer.state.values() if "step" in state}
        assert len(own) <= 1, f"parameters of one optimizer at different steps: {sorted(own)}"
        device = torch.cuda.current_device() if dist.get_backend() == "nccl" else "cpu"
        step = torch.tensor([max(own, default=0)], device=device)
        dist.all_reduce(step, op=dist.ReduceOp.MAX)
        return int(step.item())


def _fresh_state(main: Tensor, *, fused: bool) -> dict[str, Tensor]:
    """What torch's AdamW makes at its first step; its fused form wants the step beside the parameter."""
    step = torch.zeros((), device=main.device) if fused else torch.tensor(0.0)
    return {"step": step, "exp_avg": torch.zeros_like(main), "exp_avg_sq": torch.zeros_like(main)}
