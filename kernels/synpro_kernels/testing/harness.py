"""What tests put around a call of an op: one backend, new memory that is NaN, and a measure of what the call takes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from synpro_kernels.common.dispatch import BackendName, Backends


@contextmanager
def using(name: BackendName) -> Iterator[None]:
    """Within it every op takes this backend where it has it for the tensors' dtypes, else PyTorch.

    The choice is one method (`common.dispatch`), which is replaced. Whether the backend can run is not asked: Triton
    takes CPU tensors too, which its interpreter reads.
    """

    def choose(backends: Backends[object], *tensors: Tensor) -> BackendName:
        return name if backends.takes(name, *tensors) else "torch"

    with mock.patch.object(Backends, "choose", choose):
        yield


@contextmanager
def nan_filled_empty() -> Iterator[None]:
    """Within it, torch.empty, empty_like, new_empty and resize_ give NaN (integers: the largest value), on any device.

    So an element that a kernel forgot to write shows. torch does so itself in deterministic mode, unless
    `fill_uninitialized_memory` was turned off. Operators without a deterministic form warn there and still run.
    """
    mode = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)


def peak_growth(run: Callable[[], object], device: str) -> int | None:
    """Bytes by which `run` raised the peak of this process ("cpu") or of the current GPU ("cuda").

    By the counters of Linux and of CUDA; None where the kernel does not let the process's peak be reset.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    except OSError:
        return None
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])
