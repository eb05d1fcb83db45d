"""What this machine offers and which implementation each part therefore uses.

The only place that asks whether CUDA, flash-attn, apex or transformer-engine are there. Answers are computed
when asked for, never at import.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform as host_platform
from dataclasses import dataclass
from typing import Literal

import torch

from synpro_engine.config import UserError

DtypeName = Literal["auto", "float32", "bfloat16"]

# Dense bf16 peak of one device in FLOP/s, from the vendors' data sheets (without sparsity).
_PEAK_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "B200": 2250e12, "GH200": 989e12, "L40S": 362e12}


@dataclass(frozen=True)
class Choice:
    """One decision: what `part` will use, and why, in words for `synpro doctor`."""

    part: str
    uses: str
    why: str


def device(local_rank: int = 0) -> torch.device:
    """The device of this process; sets it as the current one under CUDA."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(f"local rank {local_rank} has no GPU: this machine shows {torch.cuda.device_count()}")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def communication_backend() -> str:
    """NCCL under CUDA, gloo without."""
    return "nccl" if torch.cuda.is_available() else "gloo"


def resolve_dtype(name: DtypeName) -> torch.dtype:
    """`auto` is bf16 under CUDA and fp32 on the CPU (where bf16 matrix products are slower than fp32)."""
    if name == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


@functools.cache
def importable(module: str) -> bool:
    """Whether a top-level module can be found, without importing it."""
    return importlib.util.find_spec(module) is not None


@functools.cache
def has_nvidia_apex() -> bool:
    """NVIDIA's apex; PyPI's package of that name is another project, told apart by its modules."""
    return importable("apex") and importlib.util.find_spec("apex.optimizers") is not None


def attention() -> Choice:
    """flash-attn or Transformer Engine, in this order, where one is installed beside CUDA; else torch's attention."""
    if not torch.cuda.is_available():
        return Choice("attention", "torch SDPA", "no CUDA device")
    if importable("flash_attn"):
        return Choice("attention", "flash-attn", "CUDA and flash_attn are there; fp32 weights take torch SDPA")
    if importable("transformer_engine"):
        why = "CUDA and transformer_engine are there, flash_attn is not; fp32 weights take torch SDPA"
        return Choice("attention", "transformer-engine", why)
    return Choice("attention", "torch SDPA", "neither flash_attn nor transformer_engine is installed")


def optimizer() -> Choice:
    """Megatron takes Transformer Engine's or apex's fused AdamW when present, else torch's."""
    if torch.cuda.is_available() and importable("transformer_engine"):
        return Choice("optimizer", "Transformer Engine FusedAdam", "transformer_engine is there")
    if torch.cuda.is_available() and has_nvidia_apex():
        return Choice("optimizer", "apex FusedAdam", "apex is there")
    return Choice("optimizer", "torch AdamW", "neither transformer_engine nor apex")


def peak_flops() -> float | None:
    """Dense bf16 FLOP/s of this process's device, or None where it is not known (so no MFU is made up)."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peak for key, peak in _PEAK_BF16.items() if key in name), None)


def megatron_flags() -> dict[str, bool]:
    """TransformerConfig flags that this machine needs; each is a trap when left at its default.

    On the CPU `bias_activation_fusion` would start a long compilation, the fused softmax, norm and weight
    gradient need CUDA extensions, and `deallocate_pipeline_outputs` corrupts gradients over gloo.
    """
    cuda = torch.cuda.is_available()
    return {
        "use_cpu_initialization": not cuda,
        "bias_activation_fusion": cuda,
        "bias_dropout_fusion": cuda,
        "masked_softmax_fusion": False,  # only Megatron's own softmax attention would use it
        "persist_layer_norm": False,  # the norms are ours
        "gradient_accumulation_fusion": cuda and has_nvidia_apex(),
        "deallocate_pipeline_outputs": cuda,
    }


def limit_threads(processes_here: int) -> None:
    """Share the cores among the ranks of this machine unless the user set OMP_NUM_THREADS."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes_here))


def device_name() -> str:
    """The device of this process in words: the GPU's name, or the machine's processor architecture."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({host_platform.machine()})"
