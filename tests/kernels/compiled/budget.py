"""What a kernel may take: registers under the Triton that compiles it here, and shared memory where it is to run."""

import triton

from synpro_kernels.testing.compile_only import SHARED_LIMIT, Resources

ALL = 255
"""What a thread can have at most; beyond it a compiler spills."""


def registers(budget: int) -> int:
    """The budget under Triton 3.6, whose figures they are: other releases allocate a little differently."""
    return budget if triton.__version__.startswith("3.6.") else ALL


def spills_nothing(found: Resources, elsewhere: int = 0) -> bool:
    """Whether all stays in registers. elsewhere: bytes that other releases than Triton 3.6 may put away."""
    bound = 0 if triton.__version__.startswith("3.6.") else elsewhere
    return max(found.stack_bytes, found.spill_loads, found.spill_stores) <= bound


def shared_bytes(capability: int) -> int:
    """What a block may have; of sm_80 what the families have that are given its tiles (sm_86, sm_89 and sm_120)."""
    families = (80, 86, 89, 120) if capability == 80 else (capability,)
    return min(SHARED_LIMIT[family] for family in families)
