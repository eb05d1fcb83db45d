"""Which backend computes an op. Ops list their backends in tables; the choice among them is made here alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from synpro_kernels.common.arithmetic import FLOATS, HALVES
from synpro_kernels.common.extension import csrc_loaded
from synpro_kernels.common.launch import capability_of
from synpro_kernels.common.triton_status import triton_status

BackendName = Literal["torch", "csrc", "triton"]
Dtypes = tuple[torch.dtype, ...]
Kernels = TypeVar("Kernels")

UP_TO_FP32: Dtypes = (*HALVES, torch.float32)


@dataclass(frozen=True, kw_only=True)
class Backends(Generic[Kernels]):
    """The backends of one op: a function, or a group of them, in three versions that take the same arguments.

    C++ and Triton are given as functions that return their version, called when a tensor goes there: the extension may
    not have been built, and Triton takes a second to import and may be missing.
    """

    torch: Kernels
    csrc: Callable[[], Kernels] | None = None
    csrc_dtypes: Dtypes = UP_TO_FP32
    triton: Callable[[], Kernels] | None = None
    triton_dtypes: Dtypes = HALVES
    triton_multiplies: bool = True
    """Whether the Triton kernels hold matrix tiles, which are made for NVIDIA GPUs from sm_80 on."""

    def choose(self, *tensors: Tensor) -> BackendName:
        """Triton on CUDA and C++ on the CPU, where they are there and take all the dtypes; else PyTorch."""
        device = tensors[0].device.type
        # `takes` comes first, so that Triton is not imported for dtypes that it would not get.
        if device == "cuda" and self.takes("triton", *tensors) and triton_status()[0]:
            # Older GPUs lack the instructions that the tiles are cut for; on AMD's a capability means something else.
            tiles_run = torch.version.hip is None and capability_of(tensors[0]) >= 80
            if tiles_run or not self.triton_multiplies:
                return "triton"
        if device == "cpu" and self.takes("csrc", *tensors) and csrc_loaded():
            return "csrc"
        return "torch"

    def takes(self, name: BackendName, *tensors: Tensor) -> bool:
        """Whether the op has this backend for the tensors' dtypes; whether it can run here is another matter."""
        dtypes = self._dtypes[name]
        return all(tensor.dtype in dtypes for tensor in tensors)

    @cached_property
    def _dtypes(self) -> dict[BackendName, Dtypes]:
        return {
            "torch": FLOATS,
            "csrc": self.csrc_dtypes if self.csrc is not None else (),
            "triton": self.triton_dtypes if self.triton is not None else (),
        }

    def kernels(self, *tensors: Tensor) -> Kernels:
        """The op in the backend that is chosen for the tensors."""
        return self.named(self.choose(*tensors))

    def named(self, name: BackendName) -> Kernels:
        """The op in this backend. KeyError where it has none of that name."""
        if name == "torch":
            return self.torch
        load = self.csrc if name == "csrc" else self.triton
        if load is None:
            raise KeyError(f"this op has no {name} backend")
        return load()
