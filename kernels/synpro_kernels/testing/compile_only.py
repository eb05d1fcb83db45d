"""Machine code of Triton kernels for NVIDIA GPUs that are not there, and what it takes of the hardware.

`with compile_for(90): compile_kernel(kernel, x, w, ..., BLOCK_M=128).resources` compiles for sm_90 on the path of a
launch (the same specialisation by dtype, alignment and divisibility by 16) and reads the machine code back with the
tools of the Triton wheel, beside a real driver as well. Nothing is launched, so no time is measured.

Arguments may be tensors of device "meta", which have a shape, a dtype and an aligned address but no memory, and host
TensorDescriptors of them: a [131072, 4096] weight costs nothing. Kernels must be decorated without TRITON_INTERPRET.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.autotuner import Autotuner, Heuristics
from triton.runtime.jit import JITFunction

from synpro_kernels.common.launch import Call

# Bytes of shared memory that one block may have, by compute capability (CUDA C++ Programming Guide, "Technical
# Specifications per Compute Capability"). Compiling does not check it: a launch fails.
SHARED_LIMIT = {
    80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024,
}  # fmt: skip
# Columns of tensor memory that one block of sm_100 may have; not checked by compiling either.
TENSOR_MEMORY_LIMIT = 512

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9_]*)", re.MULTILINE)
_USAGE = re.compile(r"\bREG:(\d+)\s+STACK:(\d+)")


class _CompileOnlyDriver:
    """What Triton asks a driver on the way to machine code. Anything asked later (to load, to launch) is an error."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # kernels are cached by device: one that no machine has, and another for each capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"within compile_for kernels are compiled and nothing is launched (no {name!r})")


@contextmanager
def compile_for(capability: int) -> Iterator[None]:
    """Within it, Triton compiles for this compute capability (80, 90, 100, ...); afterwards its driver is as before.

    The driver belongs to the process: other threads see it too.
    """
    before = dict(vars(driver))
    driver.set_active(_CompileOnlyDriver(capability))  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        vars(driver).clear()
        vars(driver).update(before)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a compiled kernel takes: registers and stack per thread, shared and tensor memory per block, code."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    tensor_memory_columns: int  # 0 below sm_100
    opcodes: Counter[str]  # of the listing, counted once however often they run: {"HGMMA": 16, "LDGSTS": 8, ...}

    @property
    def instructions(self) -> int:
        """All but the no-ops that pad the code."""
        return self.opcodes.total() - self.opcodes["NOP"]

    @property
    def matrix_instructions(self) -> Counter[str]:
        """Tensor-core instructions: HMMA up to sm_89, HGMMA on sm_90, UTCHMMA (tcgen05) on sm_100, ..."""
        return Counter({name: count for name, count in self.opcodes.items() if name.endswith("MMA")})

    @property
    def spill_loads(self) -> int:
        """Loads from the thread's local memory, which Triton kernels have only where registers ran out."""
        return self.opcodes["LDL"]

    @property
    def spill_stores(self) -> int:
        """Stores to the thread's local memory; see `spill_loads`."""
        return self.opcodes["STL"]


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A kernel as machine code. `asm` has every stage by name: ttir, ttgir, llir, ptx as text, cubin as bytes."""

    name: str
    capability: int
    asm: dict[str, Any]
    shared_bytes: int
    tensor_memory_columns: int

    @cached_property
    def resources(self) -> Resources:
        """Read from the machine code by cuobjdump (about 0.1 s, once)."""
        usage = [(int(reg), int(stack)) for reg, stack in _USAGE.findall(self._dump("--dump-resource-usage"))]
        registers, stacks = zip(*usage, strict=True)
        return Resources(
            registers=max(registers),
            stack_bytes=max(stacks),
            shared_bytes=self.shared_bytes,
            tensor_memory_columns=self.tensor_memory_columns,
            opcodes=Counter(_INSTRUCTION.findall(self.sass)),
        )

    @cached_property
    def sass(self) -> str:
        """The listing of the machine code."""
        return self._dump("--dump-sass")

    def _dump(self, what: str) -> str:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.asm["cubin"])
            file.flush()
            command = [knobs.nvidia.cuobjdump.path, what, file.name]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def compile_kernel(
    kernel: Any, *args: Any, grid: tuple[int, ...] = (1,), num_warps: int = 4, num_stages: int = 3, **constexprs: Any
) -> Compiled:
    """Compile a @triton.jit function as launching it with these arguments would, for the target of `compile_for`.

    args and constexprs: the kernel's own, as in a launch; constexprs may name launch options (maxnreg, num_ctas) too.
    grid: given to Triton for form's sake, the code does not depend on it.
    @triton.heuristics are computed; of @triton.autotune nothing is tried, so the configuration is given as constexprs.
    Raises ValueError for a kernel that was decorated under TRITON_INTERPRET=1, and what Triton raises if it refuses.
    """
    options = {**constexprs, "num_warps": num_warps, "num_stages": num_stages}
    function = _undecorated(kernel, args, options)
    compiled: Any = function.warmup(*args, grid=grid, **options)
    metadata = compiled.metadata
    return Compiled(
        name=metadata.name,
        capability=metadata.target.arch,
        asm=compiled.asm,
        shared_bytes=metadata.shared,
        tensor_memory_columns=getattr(metadata, "tmem_size", None) or 0,
    )


def compile_call(call: Call) -> Compiled:
    """Compile what `call` would launch, for the target of `compile_for`."""
    return compile_kernel(call.kernel, *call.arguments, grid=call.grid, **call.options)


def _undecorated(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> JITFunction[Any]:
    """The function under @triton.autotune and @triton.heuristics; what heuristics choose is added to `options`."""
    while not isinstance(kernel, JITFunction):
        if not isinstance(kernel, Autotuner | Heuristics):
            raise ValueError(f"kernel: expected a @triton.jit function to compile, got {type(kernel).__name__}")
        if isinstance(kernel, Heuristics):
            for name, choose in kernel.values.items():
                options[name] = choose({**dict(zip(kernel.arg_names, args, strict=False)), **options})
        kernel = kernel.fn
    return kernel
