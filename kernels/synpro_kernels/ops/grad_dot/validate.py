"""Argument checks that the functions here share. Each raises ValueError naming the argument and what was expected.

Segment ids are checked where their values are read: `check_id_range` makes the host wait for them,
`nan_where_out_of_range` does not.
"""

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import FLOATS, precise_dtype

_IDS = (torch.int32, torch.int64)


def check_tokens(name: str, tensor: Tensor, *, like: Tensor | None = None, like_name: str = "x") -> None:
    """`tensor` is floating [..., width]; under `like` also of its leading shape, dtype and device."""
    if tensor.dim() < 1 or tensor.dtype not in FLOATS or tensor.shape[-1] < 1:
        raise ValueError(f"{name}: expected floating [..., width >= 1], got {tensor.dtype} {tuple(tensor.shape)}")
    if like is not None:
        check_same(name, tensor, like, like_name)
        if tensor.shape[:-1] != like.shape[:-1]:
            expected = f"{tuple(like.shape[:-1])} leading dimensions like {like_name}"
            raise ValueError(f"{name}: expected {expected}, got {tuple(tensor.shape)}")


def check_same(name: str, tensor: Tensor, like: Tensor, like_name: str) -> None:
    """`tensor` has the dtype and the device of `like`."""
    if tensor.dtype != like.dtype:
        raise ValueError(f"{name}: expected {like.dtype} like {like_name}, got {tensor.dtype}")
    check_device(name, tensor, like, like_name)


def check_device(name: str, tensor: Tensor, like: Tensor, like_name: str) -> None:
    """`tensor` is where `like` is."""
    if tensor.device != like.device:
        raise ValueError(f"{name}: expected device {like.device} like {like_name}, got {tensor.device}")


def check_shape(name: str, tensor: Tensor, *trailing: int) -> None:
    """`tensor` is `trailing` or [K, *trailing] with K >= 1."""
    shape, want = tuple(tensor.shape), tuple(trailing)
    if shape != want and not (len(shape) == len(want) + 1 and shape[1:] == want and shape[0] >= 1):
        listed = ", ".join(map(str, want))
        raise ValueError(f"{name}: expected [{listed}] or [K, {listed}], got {shape}")


def check_direction(direction: Tensor, *trailing: int, like: Tensor, like_name: str) -> None:
    """A direction that is read, not multiplied on tensor cores: also fp32 beside half-precision tokens."""
    check_shape("direction", direction, *trailing)
    if direction.dtype not in (like.dtype, precise_dtype(like.dtype)):
        expected = f"{like.dtype} like {like_name} or {precise_dtype(like.dtype)}"
        raise ValueError(f"direction: expected {expected}, got {direction.dtype}")
    check_device("direction", direction, like, like_name)


def check_ids(segment_ids: Tensor, segments: int, shape: torch.Size, device: torch.device) -> None:
    """One integer id a token, and a possible number of segments. The ids' range is checked where they are read."""
    if segment_ids.dtype not in _IDS:
        raise ValueError(f"segment_ids: expected int32 or int64, got {segment_ids.dtype}")
    if segment_ids.shape != shape:
        raise ValueError(f"segment_ids: expected shape {tuple(shape)}, got {tuple(segment_ids.shape)}")
    if segment_ids.device != device:
        raise ValueError(f"segment_ids: expected device {device} like the tokens, got {segment_ids.device}")
    if segments < 0:
        raise ValueError(f"segments: expected >= 0, got {segments}")


def check_id_range(ids_T: Tensor, segments: int) -> None:
    """Raise ValueError for an id outside [-1, segments); waits for the device."""
    wrong_T = (ids_T < -1) | (ids_T >= segments)
    if bool(wrong_T.any()):
        raise ValueError(f"segment_ids: expected -1 to {segments - 1}, got {int(ids_T[wrong_T][0])}")


def nan_where_out_of_range(sums: Tensor, ids_T: Tensor, segments: int) -> Tensor:
    """Overwrite all sums with NaN where an id is outside [-1, segments): raising would make the host wait."""
    # On the device and over all sums: which of them a stray token should have entered is not known.
    return sums.masked_fill_(((ids_T < -1) | (ids_T >= segments)).any(), torch.nan)


def refuse_gradients(**tensors: Tensor) -> None:
    """No function here has a backward pass, and detaching in silence would hide a wrong call."""
    if not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if tensor.requires_grad:
            raise ValueError(
                f"{name}: requires grad, but this has no backward pass; pass {name}.detach() or use torch.no_grad()"
            )
