"""What Megatron's `parallel_state` remembers of a layout, taken out as a value and put back.

It has room for one layout at a time, and no way to another one but to make every group anew.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_GLOBAL = re.compile(r"_[A-Z_]+")


def taken_globals() -> dict[str, Any]:
    """Groups, ranks, sizes and buffers as they stand now, by the names of their globals."""
    from megatron.core import parallel_state

    return {name: value for name, value in vars(parallel_state).items() if _GLOBAL.fullmatch(name)}


def put_globals(values: Mapping[str, Any]) -> None:
    """Put back what `taken_globals` gave."""
    from megatron.core import parallel_state

    for name, value in values.items():
        setattr(parallel_state, name, value)
