"""The checks that every entry makes of a layer's arguments. Values of targets are checked where they are used."""

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import FLOATS


def check_layer(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    vocab_start: int,
    *,
    host_target: bool = False,
) -> None:
    """Raise ValueError naming the first argument that does not fit, and what was expected.

    `host_target`: the targets may be on the host.
    """
    if hidden.dim() < 1 or hidden.shape[-1] < 1 or hidden.dtype not in FLOATS:
        raise ValueError(f"hidden: expected floating [..., H] with H >= 1, got {hidden.dtype} {tuple(hidden.shape)}")
    width = hidden.shape[-1]
    if weight.dim() != 2 or weight.shape[0] < 1 or weight.shape[1] != width:
        raise ValueError(f"weight: expected [V, {width}] with V >= 1, got {tuple(weight.shape)}")
    if target.shape != hidden.shape[:-1]:
        raise ValueError(f"target: expected shape {tuple(hidden.shape[:-1])}, got {tuple(target.shape)}")
    if target.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"target: expected int32 or int64, got {target.dtype}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected shape {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != hidden.dtype:
            raise ValueError(f"{name}: expected {hidden.dtype} like hidden, got {tensor.dtype}")
    placed = {"weight": weight, "target": target, "bias": bias}
    if host_target and target.device.type == "cpu":
        del placed["target"]
    for name, tensor in placed.items():
        if tensor is not None and tensor.device != hidden.device:
            raise ValueError(f"{name}: expected device {hidden.device} like hidden, got {tensor.device}")
    # NaN fails both comparisons, so it is refused with the rest.
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature: expected a finite number > 0, got {temperature}")
    if softcap is not None and not 0.0 < softcap < float("inf"):
        raise ValueError(f"softcap: expected None or a finite number > 0, got {softcap}")
    if vocab_start < 0:
        raise ValueError(f"vocab_start: expected >= 0, got {vocab_start}")


def check_per_token(name: str, values: Tensor, target: Tensor) -> None:
    """Raise ValueError unless `values` has one entry per target, on its device."""
    if values.shape != target.shape:
        raise ValueError(f"{name}: expected shape {tuple(target.shape)} like target, got {tuple(values.shape)}")
    if values.device != target.device:
        raise ValueError(f"{name}: expected device {target.device} like target, got {values.device}")
    if values.requires_grad:
        raise ValueError(f"{name}: expected a tensor without requires_grad, its gradient is not computed")


def check_along(along: Tensor | None, weight: Tensor, reduction: str) -> None:
    """Raise ValueError unless the directions fit the weight and the reduction."""
    if along is None:
        return
    if along.dim() != 3 or along.shape[1:] != weight.shape or not along.is_floating_point():
        expected = f"floating [K, {weight.shape[0]}, {weight.shape[1]}]"
        raise ValueError(f"along: expected {expected}, got {along.dtype} {tuple(along.shape)}")
    if along.device != weight.device:
        raise ValueError(f"along: expected device {weight.device} like weight, got {along.device}")
    if reduction != "sum":
        raise ValueError(f"reduction: expected 'sum' with along, got {reduction!r}")


def check_main_grad(weight: Tensor, into_main_grad: bool) -> None:
    """Raise ValueError where the weight's gradient is to go to a `main_grad` that is not there."""
    held = getattr(weight, "main_grad", None)
    if into_main_grad and (held is None or held.shape != weight.shape):
        raise ValueError("into_main_grad: expected a weight with main_grad (one in Megatron's gradient buffers)")
