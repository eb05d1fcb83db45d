"""The hook through which Megatron-Core is imported: it guards what Megatron imports and, without CUDA, its `torch`.

Its modules get an `import` of their own, which says no to optional packages that cannot work here. Without CUDA they
see a proxy for `torch` as well; process-wide only `Tensor.cuda` and the no-argument `Tensor.type` change then.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib.abc
import importlib.machinery
import logging
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

_PREFIX = "megatron.core"
_FACTORIES = "tensor zeros ones empty full arange empty_like zeros_like ones_like full_like rand randn randint".split()
# Their kernels take CUDA tensors alone.
_GPU_PACKAGES = {"amp_C", "apex", "flash_attn", "flash_attn_3", "fused_weight_gradient_mlp_cuda", "transformer_engine"}
# Fused optimizers and norms, which Megatron would take unasked and untried. torch's AdamW is fused as well, works
# wherever torch does, and keeps one form of state, so that checkpoints go on on any machine.
_NEVER = ("amp_C", "apex.multi_tensor_apply", "apex.optimizers", "transformer_engine.pytorch.optimizers")
# Of these a fault is a fault.
_OURS = {"megatron", "torch"}


class _Nothing:
    """Stands for a CUDA stream or event: every method does nothing; elapsed time is not offered."""

    def __init__(self, *args: object, **kwargs: object) -> None: ...
    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *exc: object) -> bool:
        return False

    def record(self, *args: object) -> None: ...
    def wait(self, *args: object) -> None: ...
    def synchronize(self) -> None: ...
    def wait_stream(self, stream: object) -> None: ...
    def wait_event(self, event: object) -> None: ...
    def record_event(self, event: object = None) -> _Nothing:
        return self

    def query(self) -> bool:
        return True


class _Proxy(types.ModuleType):
    """A module that answers from the names it was given first and from the real module otherwise."""

    def __init__(self, real: types.ModuleType, **replaced: object) -> None:
        super().__init__(real.__name__)
        self.__dict__.update(replaced, _real=real)

    # Asked only for names that the proxy's own dict lacks, so that replaced ones win at no cost.
    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_real"], name)


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(factory)
    def wrapped(*args: Any, device: Any = None, **kwargs: Any) -> Any:
        kwargs.pop("pin_memory", None)  # pinned memory exists only for transfers to a GPU
        # Megatron names devices by number as well, as `torch.cuda.current_device()` gives them.
        if isinstance(device, int) or str(device).startswith("cuda"):
            device = "cpu"
        return factory(*args, device=device, **kwargs)

    return wrapped


def _cpu_cuda() -> _Proxy:
    """`torch.cuda` as Megatron uses it, answered by the CPU."""
    import torch

    def get_rng_state(*_: object, **__: object) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(state: torch.Tensor, *_: object, **__: object) -> None:
        torch.set_rng_state(state)

    def nothing(*_: object, **__: object) -> None:
        return None

    def zero(*_: object, **__: object) -> int:
        return 0

    cuda = _Proxy(
        torch.cuda,
        # A device and no number: Megatron passes it on as one, and a number would mean a GPU.
        current_device=lambda: torch.device("cpu"),
        # The real one raises in a torch without CUDA.
        is_current_stream_capturing=lambda: False,
        current_stream=_Nothing,
        default_stream=_Nothing,
        Stream=_Nothing,
        Event=_Nothing,
        stream=lambda stream: contextlib.nullcontext(),
        get_rng_state=get_rng_state,
        set_rng_state=set_rng_state,
        manual_seed=lambda seed: torch.default_generator.manual_seed(seed),
        nvtx=types.SimpleNamespace(
            range_push=nothing, range_pop=nothing, range=lambda *_, **__: contextlib.nullcontext()
        ),
        **dict.fromkeys(("synchronize", "empty_cache", "reset_peak_memory_stats"), nothing),
        **dict.fromkeys(("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"), zero),
    )
    # Megatron reaches the generator's functions by `torch.cuda.random` too.
    cuda.__dict__["random"] = cuda
    return cuda


@functools.cache
def _proxy_torch() -> _Proxy:
    import torch

    return _Proxy(torch, cuda=_cpu_cuda(), **{name: _on_cpu(getattr(torch, name)) for name in _FACTORIES})


@functools.cache
def _patch_tensor() -> None:
    """Megatron moves batches with `.cuda()` and asserts on the name that `Tensor.type()` gives."""
    import torch

    original = torch.Tensor.type

    def type_(self: torch.Tensor, dtype: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
        if dtype is None:
            # Gradient clipping asserts that a gradient is a `torch.cuda.FloatTensor`, by that name.
            return original(self).replace("torch.", "torch.cuda.", 1)
        return original(self, dtype, non_blocking, **kwargs)

    # The one change that all of the process sees: a method of a C type has no module in which a proxy could stand.
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.Tensor.type = type_


def _patch_module(module: types.ModuleType) -> None:
    import torch

    names = module.__dict__
    # After the module ran, for `import torch` in it binds the name; what it imports inside functions is not reached.
    if names.get("torch") is torch:
        names["torch"] = _proxy_torch()
    if module.__name__ == f"{_PREFIX}.jit":
        # Compiling takes a C++ compiler and minutes; with Megatron 0.16 the import alone takes seconds less.
        names["disable_jit_fuser"]()
    if module.__name__ == f"{_PREFIX}.distributed.param_and_grad_buffer":
        names["_coalescing_manager"] = _unless_alone(names["_coalescing_manager"])
        for name in ("dist_all_gather_func", "dist_reduce_scatter_func"):
            names[name] = _in_place_alone(names[name])
    if module.__name__ == f"{_PREFIX}.tensor_parallel.random":
        # The originals queue a callback that only a CUDA context would ever run.
        cuda = _proxy_torch().cuda
        names["_get_cuda_rng_state"] = cuda.get_rng_state
        names["_set_cuda_rng_state"] = cuda.set_rng_state
        logging.getLogger(module.__name__).addFilter(lambda record: "CPU RNG state changed" not in record.getMessage())


def _unless_alone(coalescing: Callable[..., Any]) -> Callable[..., Any]:
    def manager(group: Any, *args: Any, **kwargs: Any) -> Any:
        # It waits for what it has gathered, and of a group of one that is nothing.
        return _Nothing() if group.size() == 1 else coalescing(group, *args, **kwargs)

    return manager


def _in_place_alone(collective: Callable[..., Any]) -> Callable[..., Any]:
    """gloo copies a group of one's tensor onto itself, several times; NCCL leaves it alone, as this does."""

    def run(output: Any, tensor: Any, *args: Any, group: Any, **kwargs: Any) -> Any:
        if group.size() > 1:
            return collective(output, tensor, *args, group=group, **kwargs)
        if output.data_ptr() != tensor.data_ptr():
            output.copy_(tensor)
        return None

    return run


def guard_imports(module: types.ModuleType, *, gpu: bool) -> None:
    """Give `module`, which is yet to be executed, an `import` that answers ImportError for what is of no use here.

    Megatron asks only whether an optional package imports, and only an ImportError means no to it: a package built for
    another torch, or one that needs the GPU which this machine lacks, would end every model's building.

    gpu: whether packages for GPUs may be imported at all.
    """

    def guarded(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        root = name.partition(".")[0]
        # ModuleNotFoundError with a name, as for a package that is not there: Megatron has a fallback for just that.
        if name in _NEVER or (root in _GPU_PACKAGES and not gpu):
            raise ModuleNotFoundError(f"{name} is not offered to Megatron-Core here", name=name)
        # Relative imports and Megatron's own go through as they are: turned into an ImportError, a bug there would look
        # like an option that is missing.
        if level or root in _OURS:
            return builtins.__import__(name, globals, locals, fromlist, level)
        try:
            if root == "transformer_engine":  # the outer package imports also where what lies within does not
                builtins.__import__("transformer_engine.pytorch")
            return builtins.__import__(name, globals, locals, fromlist)
        except ImportError:
            raise
        except Exception as error:  # third-party modules fail at import with whatever they like
            raise ImportError(f"{name} fails: {type(error).__name__}: {error}", name=name) from error

    # Python takes `__import__` from a module's own builtins, so that other packages'
    # imports of the same names stay free.
    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": guarded}


class _Finder(importlib.abc.MetaPathFinder):
    """Lets Megatron's modules load with a guarded `import`, then gives them the proxy where it is needed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not (fullname == _PREFIX or fullname.startswith(_PREFIX + ".")):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        # Compiled modules (`helpers_cpp`) have no Python names that could be replaced.
        if spec is None or not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            # Before the module runs, since its imports of optional packages stand at its top.
            guard_imports(module, gpu=not _needed())
            execute(module)
            if _needed():
                _patch_module(module)

        spec.loader.exec_module = exec_module
        return spec


@functools.cache
def _needed() -> bool:
    """Decided once, when the first Megatron module is imported (torch is loaded by then anyway)."""
    import torch

    if torch.cuda.is_available():
        return False
    _patch_tensor()
    return True


def install_hook() -> None:
    """Make later imports of `megatron.core` work without CUDA; safe to call again.

    Raises RuntimeError when Megatron was imported before, for its modules would keep the plain `torch`.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    # Such a module has taken the real `torch` by name, and others may have taken things from it: mending
    # it afterwards would miss some.
    if any(name == _PREFIX or name.startswith(_PREFIX + ".") for name in sys.modules):
        raise RuntimeError("import synpro_engine before megatron.core: its modules would miss the CPU shim")
    sys.meta_path.insert(0, _Finder())


def shim_active() -> bool:
    """Whether Megatron runs through the proxy in this process."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path) and _needed()
