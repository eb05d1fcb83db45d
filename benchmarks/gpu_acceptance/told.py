"""How the programs of the parts say what came out, so that the last error of a log names it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.common.records import write_lines


def tell(record: Mapping[str, Any], output: Path | None, *naming: str) -> None:
    """Print a record, and what is wrong with it behind the fields that name it; write it where that is asked for."""
    print({key: value for key, value in record.items() if key != "environment"}, flush=True)
    if record["wrong"]:
        names = ", ".join(str(record[field]) for field in naming)
        print(f"error: {names}{': ' if names else ''}{record['wrong']}", file=sys.stderr)
    if output:
        write_lines(output, [record])
