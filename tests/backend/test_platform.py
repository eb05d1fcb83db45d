"""What is offered to Megatron is what works here: a package that can be found is tried before it is chosen."""

import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from synpro_engine.backend import platform
from synpro_engine.backend.shim import guard_imports

ROOT = Path(__file__).parents[2]
Install = Callable[[dict[str, str]], None]


def write(directory: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts packages of these files on the path, as on a machine with a GPU; afterwards nothing of them is left."""
    probes = (
        platform.import_fault,
        platform.flash_attention_fault,
        platform.engine_attention_fault,
        platform.gradient_extension_fault,
    )

    def forget() -> None:
        for probe in probes:
            probe.cache_clear()

    def put(files: dict[str, str]) -> None:
        write(tmp_path, files)
        forget()

    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    if not torch.cuda.is_available():  # trials compute where this machine can
        monkeypatch.setattr(platform, "_ones", lambda *shape, dtype=torch.bfloat16: torch.ones(shape, dtype=dtype))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    forget()
    yield put
    for name in set(sys.modules) - before:
        del sys.modules[name]
    forget()


NARROW = """
def flash_attn_func(q, k, v, causal):
    if q.shape[-1] > 64: raise RuntimeError('head dimension is not supported')
    return (q * k * v)[:, -q.shape[1]:]"""
OLD = "def flash_attn_func(q, k, v, causal): return (q * k * v)[:, :q.shape[1]]"
NO_BACKWARD = """
import torch
class F(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q): return q.clone()
    @staticmethod
    def backward(ctx, grad): raise RuntimeError('backward is not built')
def flash_attn_func(q, k, v, causal): return F.apply(q)"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "raise ImportError('libcudart.so: no file\\nand more')",
            "fails: ImportError: libcudart.so: no",
        ),
        ("raise RuntimeError('built for another torch')", "fails: RuntimeError: built for another torch"),
        ("import torch_of_old", "fails: ModuleNotFoundError: No module named 'torch_of_old'"),
        ("", "fails: ImportError: cannot import name 'flash_attn_func'"),
        ("def flash_attn_func(*_, **__): raise RuntimeError('no kernel image')", "no kernel image"),
        (NARROW, "head dimension is not supported"),
        (NO_BACKWARD, "backward is not built"),
        (OLD, "fails: ArithmeticError: queries that are fewer than keys are not the last ones"),
    ],
)
def test_a_flash_attention_that_cannot_run_is_passed_over_with_its_reason(install: Install, text: str, reason: str):
    install({"flash_attn/__init__.py": text})
    choice = platform.attention(128)
    assert choice.uses == "torch SDPA" and "\n" not in choice.why and re.search(reason, choice.why), choice.why


def test_attention_is_tried_at_the_width_of_the_models_heads(install: Install):
    install({"flash_attn/__init__.py": NARROW})
    assert platform.attention(64).uses == "flash-attn" and platform.attention(128).uses == "torch SDPA"


@pytest.mark.parametrize(
    ("text", "uses"),
    [
        (
            "class DotProductAttention:\n"
            "    def __init__(self, *_, **__): ...\n"
            "    def __call__(self, q, k, v): return q * k * v",
            "transformer-engine",
        ),
        ("class DotProductAttention:\n    def __init__(self, *_, **__): raise RuntimeError('no cuDNN')", "torch SDPA"),
        ("raise OSError('libcudnn.so.9: cannot open')", "torch SDPA"),
    ],
)
def test_transformer_engines_attention_is_taken_where_it_computes(install: Install, text: str, uses: str):
    install({"transformer_engine/__init__.py": "", "transformer_engine/pytorch/__init__.py": text})
    assert platform.attention().uses == uses


def test_what_is_not_installed_is_said_to_be_so(install: Install):
    install({})
    assert platform.attention().why == "flash_attn is not installed; transformer_engine.pytorch is not installed"
    assert platform.gradient_fusion().why == "fused_weight_gradient_mlp_cuda is not installed"


@pytest.mark.parametrize(
    ("text", "uses"),
    [
        ("def wgrad_gemm_accum_fp32(x, g, sums): sums += (g.T @ x).float()", "on"),
        ("def wgrad_gemm_accum_fp32(x, g, sums): pass", "off"),
        ("def wgrad_gemm_accum_fp32(x, g, sums): raise RuntimeError('no kernel image is available')", "off"),
        ("", "off"),
        ("raise OSError('undefined symbol')", "off"),
    ],
)
def test_gradient_fusion_is_asked_for_where_the_extension_adds_rightly(install: Install, text: str, uses: str):
    """Megatron refuses to build a model that asks for an extension which is not there."""
    install({"fused_weight_gradient_mlp_cuda.py": text})
    assert platform.gradient_fusion().uses == uses
    assert platform.megatron_flags()["gradient_accumulation_fusion"] == (uses == "on")


def asked(names: list[str], *, gpu: bool) -> list[str]:
    """Those of `names` that a module of Megatron gets when it imports them, asking as Megatron does."""
    lines = [f"try:\n import {name}\n got.append({name!r})\nexcept ImportError: pass" for name in names]
    module = types.ModuleType("asking")
    module.__dict__["got"] = got = []
    guard_imports(module, gpu=gpu)
    exec("\n".join(lines), module.__dict__)  # as a module's own lines are executed
    return got


def test_megatron_gets_no_package_that_fails_whatever_it_raises(install: Install):
    install({
        "apex/__init__.py": "raise RuntimeError('built for another torch')",
        "flash_attn/__init__.py": "raise OSError('libcudart.so.11: no such file')",
        "flash_attn_3/__init__.py": "import ctypes; ctypes.CDLL('libnowhere.so')",
        "transformer_engine/__init__.py": "",
        "transformer_engine/pytorch/__init__.py": "raise FileNotFoundError('libtransformer_engine.so')",
        "grouped_gemm.py": "x: int = undefined",
        "mamba_ssm/__init__.py": "",
    })  # fmt: skip
    names = ["apex", "flash_attn", "flash_attn_3", "transformer_engine", "grouped_gemm", "mamba_ssm", "json"]
    assert asked(names, gpu=True) == ["mamba_ssm", "json"]


def test_megatron_gets_no_fused_optimizer_and_without_a_gpu_nothing_that_needs_one(install: Install):
    install({
        "apex/__init__.py": "",
        "apex/optimizers.py": "FusedAdam = FusedSGD = object",
        "apex/multi_tensor_apply.py": "",
        "amp_C.py": "",
        "transformer_engine/__init__.py": "",
        "transformer_engine/pytorch/__init__.py": "",
        "transformer_engine/pytorch/optimizers.py": "FusedAdam = FusedSGD = object",
    })  # fmt: skip
    roots = ["apex", "transformer_engine"]
    fused = ["amp_C", "apex.optimizers", "apex.multi_tensor_apply", "transformer_engine.pytorch.optimizers"]
    assert asked(roots + fused, gpu=True) == roots
    assert asked(roots + fused, gpu=False) == []


def test_a_fault_of_megatrons_own_modules_stays_what_it_is(install: Install):
    install({"its_own/__init__.py": "", "its_own/part.py": "raise RuntimeError('a bug')"})
    module = types.ModuleType("its_own.asking")
    module.__package__ = "its_own"
    guard_imports(module, gpu=True)
    with pytest.raises(RuntimeError, match="a bug"):
        exec("import its_own\nfrom .part import thing", module.__dict__)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cannot be imported", "import and do not work"])
def test_an_engine_trains_among_packages_that(how: str, tmp_path: Path):
    """A process of its own: what Megatron imports is decided once."""
    broken = "raise RuntimeError('built for another torch')"
    adam = "class FusedAdam:\n    def __init__(self, *_, **__): raise RuntimeError('requires cuda extensions')\n"
    modules = ["apex/__init__.py", "apex/multi_tensor_apply/__init__.py", "amp_C.py"]
    modules += ["flash_attn/__init__.py", "flash_attn_3/__init__.py", "fused_weight_gradient_mlp_cuda.py"]
    modules += ["transformer_engine/__init__.py", "transformer_engine/pytorch/__init__.py", "einops/__init__.py"]
    files = dict.fromkeys(modules, broken if how == "cannot be imported" else "")
    if how != "cannot be imported":
        files |= {
            f"{name}/optimizers.py": adam + "FusedSGD = FusedAdam" for name in ("apex", "transformer_engine/pytorch")
        }
    write(tmp_path / "site", files)
    path = os.pathsep.join(map(str, (tmp_path / "site", ROOT, ROOT / "kernels", os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, str(ROOT / "tests/train/go_on.py"), "begin", str(tmp_path / "checkpoint")]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_the_peak_is_that_of_the_very_device_or_unknown(
    name: str, peak: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert platform.peak_flops() == peak
