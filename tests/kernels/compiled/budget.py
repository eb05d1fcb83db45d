"""How many registers a kernel may take under the Triton that compiles it here."""

import triton

ALL = 255
"""What a thread can have at most; beyond it a compiler spills."""


def registers(budget: int) -> int:
    """The budget under Triton 3.6, whose figures they are: other releases allocate a little differently."""
    return budget if triton.__version__.startswith("3.6.") else ALL
