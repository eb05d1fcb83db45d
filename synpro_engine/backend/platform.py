"""What this machine offers and which implementation each part therefore uses.

The only place that asks whether CUDA, flash-attn, apex or transformer-engine are there. Answers are computed
when asked for, never at import.
"""

from __future__ import annotations

import functools
import importlib
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


def start_kernels_in_order() -> None:
    """For tensor parallelism on GPUs: a communication starts before the product that it is to hide behind.

    One queue to the device makes that so, where its owner has not said otherwise. To be called before CUDA starts;
    from Blackwell on it is not needed, but which device this is cannot be asked before.
    """
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")


def communication_backend() -> str:
    """NCCL under CUDA, gloo without."""
    return "nccl" if torch.cuda.is_available() else "gloo"


def resolve_dtype(name: DtypeName) -> torch.dtype:
    """`auto` is bf16 under CUDA and fp32 on the CPU (where bf16 matrix products are slower than fp32)."""
    if name == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


@functools.cache
def import_fault(module: str) -> str | None:
    """None where `module` imports, else why not, in a line.

    A module that can be found may still fail: an extension built for another torch, or left out when it was built.
    """
    try:
        importlib.import_module(module)
    except Exception as error:  # third-party modules fail at import with whatever they like
        return _in_a_line(module, error)
    return None


@functools.cache
def flash_attention_fault() -> str | None:
    """None where flash-attn computes on this GPU, else why not, in a line. Tried once, on two tokens."""
    fault = import_fault("flash_attn")
    if fault is not None:
        return fault
    try:
        from flash_attn import flash_attn_func  # pyright: ignore[reportMissingImports]

        qkv = torch.zeros(1, 2, 1, 64, dtype=torch.bfloat16, device="cuda")
        flash_attn_func(qkv, qkv, qkv, causal=True)
    except Exception as error:  # whatever its extension raises
        return _in_a_line("flash_attn", error)
    return None


def _in_a_line(module: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
        return f"{module} is not installed"
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{module} fails: {type(error).__name__}: {first}"


def attention() -> Choice:
    """flash-attn or Transformer Engine, in this order, where one works beside CUDA; else torch's attention."""
    if not torch.cuda.is_available():
        return Choice("attention", "torch SDPA", "no CUDA device")
    flash = flash_attention_fault()
    if flash is None:
        return Choice("attention", "flash-attn", "it computes here; fp32 weights take torch SDPA")
    engine = import_fault("transformer_engine.pytorch")
    if engine is None:
        return Choice("attention", "transformer-engine", f"{flash}; fp32 weights take torch SDPA")
    return Choice("attention", "torch SDPA", f"{flash}; {engine}")


def optimizer() -> Choice:
    """Megatron takes Transformer Engine's or apex's fused AdamW where one imports, else torch's."""
    engine, apex = (import_fault(name) for name in ("transformer_engine.pytorch.optimizers", "apex.optimizers"))
    if engine is None:
        return Choice("optimizer", "Transformer Engine FusedAdam", "transformer_engine imports")
    if apex is None:
        return Choice("optimizer", "apex FusedAdam", engine)
    return Choice("optimizer", "torch AdamW", f"{engine}; {apex}")


def gradient_fusion() -> Choice:
    """Weight gradients added by their own product to the fp32 sums, by an extension that apex may be built without."""
    if not torch.cuda.is_available():
        return Choice("gradient fusion", "off", "no CUDA device")
    fault = import_fault("fused_weight_gradient_mlp_cuda")  # NVIDIA apex's; PyPI's `apex` is another project
    return Choice("gradient fusion", "on" if fault is None else "off", fault or "apex's extension imports")


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
        "gradient_accumulation_fusion": gradient_fusion().uses == "on",
        "deallocate_pipeline_outputs": cuda,
    }


def limit_threads(processes_here: int) -> None:
    """Share the cores among the ranks of this machine unless the user set OMP_NUM_THREADS."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes_here))


def device_name() -> str:
    """The device of this process in words: the GPU's name, or the machine's processor architecture."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({host_platform.machine()})"
