"""JSON as it is written: the one place that turns data into it.

JSON has no NaN and no infinity. Python would write them all the same, and other readers refuse them.
"""

from __future__ import annotations

import json
import math
from typing import Any


def json_text(data: Any, *, indent: int | None = None, ensure_ascii: bool = True, sort_keys: bool = False) -> str:
    """Plain data as JSON, without a newline at its end; numbers that are not finite become null."""

    def dump(plain: Any) -> str:
        return json.dumps(plain, indent=indent, ensure_ascii=ensure_ascii, sort_keys=sort_keys, allow_nan=False)

    try:
        return dump(data)  # nearly all data is finite, and is not copied
    except ValueError:
        # Also reached for a value that contains itself or is no JSON at all; the second attempt then raises for good.
        return dump(_finite(data))


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(item) for item in data] if isinstance(data, (list, tuple)) else data
