"""Whether Triton kernels can be used. Imports Triton on the first question, not before: it takes a second."""

import functools


@functools.cache
def triton_status() -> tuple[bool, str]:
    """Return (importable, one line with its version or the reason)."""
    try:
        import triton
    except ImportError as error:
        return False, f"Triton is not importable ({error})"
    return True, f"Triton {triton.__version__}"
