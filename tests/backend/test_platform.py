"""What is offered to Megatron is what works here: a package that can be found is tried before it is chosen."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from synpro_engine.backend import platform

Install = Callable[[dict[str, str]], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts packages of these files on the path, as on a machine with a GPU; afterwards nothing of them is left."""
    probes = (platform.import_fault, platform.flash_attention_fault)

    def forget() -> None:
        for probe in probes:
            probe.cache_clear()

    def put(files: dict[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        forget()

    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    forget()
    yield put
    for name in set(sys.modules) - before:
        del sys.modules[name]
    forget()


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
        ("def flash_attn_func(*_, **__): raise RuntimeError('no kernel image')", "no kernel image|NVIDIA|CUDA"),
    ],
)
def test_a_flash_attention_that_cannot_run_is_passed_over_with_its_reason(install: Install, text: str, reason: str):
    install({"flash_attn/__init__.py": text})
    choice = platform.attention()
    assert choice.uses == "torch SDPA" and "\n" not in choice.why and re.search(reason, choice.why), choice.why


def test_what_is_not_installed_is_said_to_be_so(install: Install):
    install({})
    assert platform.attention().why == "flash_attn is not installed; transformer_engine.pytorch is not installed"
    assert platform.optimizer().uses == "torch AdamW"


def test_an_apex_without_its_gradient_extension_serves_the_optimizer_alone(install: Install):
    """Megatron refuses to build a model that asks for the extension, so it is asked for only where it imports."""
    apex = {"apex/__init__.py": "", "apex/optimizers/__init__.py": "FusedAdam = FusedSGD = object"}
    install(apex)
    assert platform.optimizer().uses == "apex FusedAdam"
    assert platform.gradient_fusion().uses == "off" and not platform.megatron_flags()["gradient_accumulation_fusion"]
    install({"fused_weight_gradient_mlp_cuda.py": ""})
    assert platform.gradient_fusion().uses == "on" and platform.megatron_flags()["gradient_accumulation_fusion"]


def test_another_project_of_the_name_apex_is_not_taken_for_it(install: Install):
    install({"apex/__init__.py": ""})
    assert platform.optimizer().uses == "torch AdamW" and "apex.optimizers" in platform.optimizer().why
