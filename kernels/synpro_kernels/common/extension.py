"""Finds and loads the compiled CPU ops of csrc.

Nothing is loaded at import: the first call of `csrc_loaded` looks for this Python's `_C.*.so` in the package (an
editable install and a wheel both put it there). A missing file is normal, since every op has a PyTorch path.
"""

import functools
import os
import sysconfig
from pathlib import Path

import torch

from synpro_kernels.common.sources import sources_digest

_SWITCH = "SYNPRO_CSRC"
_OPS = (
    "merge_logits_", "differentiate_logits_", "grad_dot_tokens", "grad_dot_prefix", "formed_dot", "skinny_linear",
    "draw_tokens", "decode_attention", "rms_norm", "swiglu",
    "rms_norm_backward", "swiglu_backward", "rotary", "store_heads",
    "distill_norms_", "distill_mix_", "distill_differentiate_", "sources",
)  # fmt: skip
_CSRC = Path(__file__).parents[3] / "csrc"
"""Their sources, in a checkout; a package that was installed from a wheel has none beside it."""


@functools.cache
def csrc_status() -> tuple[bool, str]:
    """Return (loaded, one line that says what was loaded or why nothing was)."""
    if os.environ.get(_SWITCH) == "0":
        return False, f"switched off by {_SWITCH}=0"
    # Environments of several Pythons may share this checkout: each has built a file with its own tag.
    file = Path(__file__).parents[1] / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not file.exists():
        return False, "not built (no C++ compiler when installed, or SYNPRO_BUILD_CSRC=0)"
    # load_library runs the file's static initialisers, which register the ops; there is no Python module to import.
    try:
        torch.ops.load_library(file)
    except OSError as error:
        return False, f"{file.name} cannot be loaded: {str(error).splitlines()[0]} (built for another torch?)"
    # A file of older sources loads without a word; an op that it lacks would fail in the midst of a step, and one that
    # means something else by its arguments would not even fail.
    missing = [name for name in _OPS if not hasattr(torch.ops.synpro_csrc, name)]
    if missing or (_CSRC.is_dir() and torch.ops.synpro_csrc.sources() != sources_digest(_CSRC)):
        told = f" (no {missing[0]})" if missing else ""
        return False, f"{file.name} was built from other sources{told}: run `make setup`"
    return True, f"loaded {file.name}"


def csrc_loaded() -> bool:
    """Whether `torch.ops.synpro_csrc` can be called in this process."""
    return csrc_status()[0]
