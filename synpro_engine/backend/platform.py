"""What this machine offers and which implementation each part therefore uses.

The only place that asks whether CUDA, flash-attn, apex or transformer-engine are there. Answers are computed
when asked for, never at import.
"""

from __future__ import annotations

import functools
import importlib
import os
import platform as host_platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from synpro_engine.config import UserError, first_line

DtypeName = Literal["auto", "float32", "bfloat16"]

# Dense bf16 peak of one device in FLOP/s, from the vendors' data sheets (without sparsity).
# The first name that is a part of the device's counts.
_PEAK_BF16 = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H200 NVL": 835e12, "H200": 989e12, "H100": 989e12, "A100": 312e12,
    "GB200": 2500e12, "B200": 2250e12, "L40S": 362e12,
}  # fmt: skip


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


def compile_in_process() -> None:
    """Have torch's compiler start no helpers, where the user has not said how many by TORCHINDUCTOR_COMPILE_THREADS.

    A signal to the job's process group (Ctrl-C, a scheduler's SIGTERM) ends the helpers, and torch then waits for them
    for ever, while the job means to finish its step and save. Megatron compiles a few small functions, which need none.
    """
    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        import torch._inductor.config as inductor

        inductor.compile_threads = 1


def communication_backend() -> str:
    """NCCL under CUDA, gloo without."""
    return "nccl" if torch.cuda.is_available() else "gloo"


def resolve_dtype(name: DtypeName) -> torch.dtype:
    """`auto` is bf16 under CUDA and fp32 on the CPU (where bf16 matrix products are slower than fp32)."""
    if name == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def trains_on_gpu(dtype: torch.dtype) -> bool:
    """Whether models of this type are to be thought of on a GPU: there is one here, or the type is not for a CPU.

    So that a plan holds which is made where a cluster is logged in to, and no GPU is.
    """
    return torch.cuda.is_available() or dtype == torch.bfloat16


@functools.cache
def import_fault(module: str) -> str | None:
    """None where `module` imports, else why not, in a line.

    A module that can be found may still fail: an extension built for another torch, or left out when it was built.
    """
    try:
        # Imported in earnest: `find_spec` also finds a wheel that was built for another torch,
        # which fails at the first forward.
        importlib.import_module(module)
    except Exception as error:  # third-party modules fail at import with whatever they like
        return _in_a_line(module, error)
    return None


def _fault_of(module: str, trial: Callable[[], object]) -> str | None:
    """None where `module` imports and `trial` runs, else what is wrong, in a line."""
    fault = import_fault(module)
    if fault is None:
        try:
            trial()
        except Exception as error:  # whatever an extension raises
            return _in_a_line(module, error)
    return fault


def _in_a_line(module: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
        return f"{module} is not installed"
    return f"{module} fails: {type(error).__name__}: {first_line(error)}"


def _ones(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype, device="cuda")


@functools.cache
def flash_attention_fault(head_dim: int) -> str | None:
    """None where flash-attn computes forward and backward on this GPU at this width of a head, else why not.

    Queries that are fewer than keys must be the last ones to it, as they are since its version 2.1.
    """

    def trial() -> None:
        from flash_attn import flash_attn_func  # pyright: ignore[reportMissingImports]

        # With a backward pass, since a kernel may exist for one of the two only: training
        # would fail after the first forward.
        qkv = _ones(1, 2, 1, head_dim).requires_grad_()
        flash_attn_func(qkv, qkv, qkv, causal=True).sum().backward()
        # Ranks that share a sequence have fewer queries than keys: taken for the first ones they give no error.
        query, keys = _ones(1, 1, 1, head_dim), _ones(1, 2, 1, head_dim)
        values = torch.cat((query, 3 * query), 1)
        last = flash_attn_func(query, keys, values, causal=True)
        if not torch.allclose(last, flash_attn_func(keys, keys, values, causal=True)[:, -1:]):
            raise ArithmeticError("queries that are fewer than keys are not the last ones, as since version 2.1")

    return _fault_of("flash_attn", trial)


@functools.cache
def engine_attention_fault(head_dim: int) -> str | None:
    """The same for Transformer Engine's attention."""

    def trial() -> None:
        from transformer_engine.pytorch import DotProductAttention  # pyright: ignore[reportMissingImports]

        qkv = _ones(2, 1, 1, head_dim).requires_grad_()
        attend = DotProductAttention(1, head_dim, attention_dropout=0.0, attn_mask_type="causal")
        attend(qkv, qkv, qkv).sum().backward()

    return _fault_of("transformer_engine.pytorch", trial)


def attention(head_dim: int = 64) -> Choice:
    """flash-attn or Transformer Engine, in this order, where one works beside CUDA; else torch's attention.

    head_dim: width of the model's heads, at which they are tried.
    """
    if not torch.cuda.is_available():
        return Choice("attention", "torch SDPA", "no CUDA device")
    flash = flash_attention_fault(head_dim)
    if flash is None:
        return Choice("attention", "flash-attn", "tried: it computes here; fp32 weights take torch SDPA")
    engine = engine_attention_fault(head_dim)
    if engine is None:
        return Choice("attention", "transformer-engine", f"{flash}; fp32 weights take torch SDPA")
    return Choice("attention", "torch SDPA", f"{flash}; {engine}")


def optimizer() -> Choice:
    """torch's fused AdamW everywhere; Megatron is not offered another package's."""
    return Choice("optimizer", "torch AdamW, fused", "one form of state, so that checkpoints go on on any machine")


@functools.cache
def gradient_extension_fault() -> str | None:
    """None where apex's extension adds a weight's gradient to its fp32 sums on this GPU, else why not."""

    def trial() -> None:
        import fused_weight_gradient_mlp_cuda as extension  # pyright: ignore[reportMissingImports]

        ones, sums = _ones(16, 16), _ones(16, 16, dtype=torch.float32)
        # Onto sums that are not 0, so that an extension which writes where it should add is noticed.
        extension.wgrad_gemm_accum_fp32(ones, ones, sums)
        if not bool((sums == 17).all()):
            raise ArithmeticError("a product of ones was added wrongly")

    return _fault_of("fused_weight_gradient_mlp_cuda", trial)


def gradient_fusion() -> Choice:
    """Weight gradients added by their own product to the fp32 sums, by an extension that apex may be built without."""
    if not torch.cuda.is_available():
        return Choice("gradient fusion", "off", "no CUDA device")
    fault = gradient_extension_fault()  # NVIDIA apex's; PyPI's `apex` is another project
    return Choice("gradient fusion", "on" if fault is None else "off", fault or "tried: apex's extension adds here")


def peak_flops() -> float | None:
    """Dense bf16 FLOP/s of this process's device, or None where it is not known (so no MFU is made up)."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    if " MIG " in name:  # a slice, of which the name says the memory and not the multiprocessors
        return None
    # By part of the name, as vendors add memory and form to it; a GH200 holds the die of the H200.
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
        # On CUDA both are compiled at the first step, which is slow for that reason.
        "bias_dropout_fusion": cuda,
        "masked_softmax_fusion": False,  # only Megatron's own softmax attention would use it
        "persist_layer_norm": False,  # the norms are ours
        # Megatron raises while it builds a model where this is asked for and apex lacks the extension.
        "gradient_accumulation_fusion": gradient_fusion().uses == "on",
        "deallocate_pipeline_outputs": cuda,
    }


def limit_threads(processes_here: int) -> None:
    """Share the cores among the ranks of this machine unless the user set OMP_NUM_THREADS."""
    if "OMP_NUM_THREADS" not in os.environ:
        # By affinity, not by the machine's cores: a container or a scheduler may have given this job a few of them.
        # torchrun itself sets OMP_NUM_THREADS to 1 for several ranks, which then stands; `synpro launch` shares first.
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes_here))


def device_name() -> str:
    """The device of this process in words: the GPU's name, or the machine's processor architecture."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({host_platform.machine()})"
