"""Whether Triton kernels can be used. Imports Triton on the first question, not before: it takes a second."""

import functools
import importlib


@functools.cache
def triton_status() -> tuple[bool, str]:
    """Return (whether there is what the kernels are written with, one line with its version or the reason)."""
    try:
        import triton
    except Exception as error:  # one for another torch or Python raises what it likes
        return False, f"Triton is not importable ({_first_line(error)})"
    version = getattr(triton, "__version__", "of no version")
    try:
        # torch 2.6 brings a Triton without them; the kernels' modules import them at their top, pointers or not.
        importlib.import_module("triton.tools.tensor_descriptor")
    except Exception as error:
        return False, f"Triton {version} lacks tensor descriptors, which 3.4 and newer have ({_first_line(error)})"
    return True, f"Triton {version}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
