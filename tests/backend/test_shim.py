"""The CPU shim changes what Megatron sees, and nothing else."""

import subprocess
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import synpro_engine
from synpro_engine.backend import platform
from synpro_engine.backend.shim import install_hook, shim_active
from synpro_engine.cycle import load_recipe
from synpro_engine.data import Batch
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.model.build import build_model
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.optimizer_config import OptimizerConfig

assert synpro_engine.__version__

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the shim is for machines without CUDA")


@on_cpu
def test_megatron_sees_cpu_in_place_of_cuda_and_torch_itself_is_untouched() -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import random as megatron_random

    assert shim_active()
    assert parallel_state.torch is not torch and megatron_random.torch.cuda.current_device() == torch.device("cpu")
    assert megatron_random.torch.empty(2, device="cuda:0").device.type == "cpu"
    assert megatron_random.torch.empty(2, device=0).device.type == "cpu"
    assert torch.cuda.current_device.__module__.startswith("torch")
    with pytest.raises((RuntimeError, AssertionError)):
        torch.empty(2, device="cuda:0")


@on_cpu
def test_the_rng_states_of_megatron_are_the_cpu_generators() -> None:
    from megatron.core.tensor_parallel import random as megatron_random

    before = megatron_random._get_cuda_rng_state()
    first = torch.rand(3)
    megatron_random._set_cuda_rng_state(before)
    assert torch.equal(torch.rand(3), first)


def test_the_hook_refuses_to_come_after_megatron() -> None:
    code = "import sys, types; sys.modules['megatron.core'] = types.ModuleType('megatron.core'); import synpro_engine"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "before megatron.core" in done.stderr


def test_the_hook_is_installed_once() -> None:
    before = len(sys.meta_path)
    install_hook()
    assert len(sys.meta_path) == before


def test_importing_the_package_does_not_load_torch() -> None:
    code = "import sys, synpro_engine; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@on_cpu
def test_megatron_has_nothing_compiled_on_a_cpu() -> None:
    from megatron.core import jit

    assert jit.jit_fuser is jit.noop_decorator


@on_cpu
def test_without_cuda_the_flags_that_corrupt_gradients_over_gloo_are_off() -> None:
    flags = platform.megatron_flags()
    assert not flags["deallocate_pipeline_outputs"] and not flags["bias_activation_fusion"]
    assert platform.communication_backend() == "gloo" and platform.resolve_dtype("auto") is torch.float32
    assert platform.peak_flops() is None


@on_cpu
def test_gradients_and_weights_of_a_group_of_one_are_not_copied_onto_themselves() -> None:
    with launched(ParallelConfig()) as topology:
        engine = Engine(build_model(load_recipe("smoke", []).model, topology), OptimizerConfig())
        whole = max(buffer.grad_data.numel() for chunk in engine.wrapped for buffer in chunk.buffers)
        ids = torch.randint(512, (2, 17))
        batch = Batch(ids[:, :-1], ids[:, 1:])
        engine.step([batch], LanguageModelLoss(), denominator=32)  # makes the optimizer's state
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
            engine.step([batch], LanguageModelLoss(), denominator=32)
    copies = [of for of in recorded.key_averages(group_by_input_shape=True) if of.key == "aten::copy_"]
    assert copies and not [of for of in copies if of.input_shapes[0] == [whole]]
