"""One contender in a process of its own, which tells its peak memory."""

from __future__ import annotations

import json
import sys

import synpro_engine  # noqa: F401 - first: it prepares Megatron's import
from benchmarks.pretrain.case import Case
from benchmarks.pretrain.measure import peak_of
from synpro_engine.dist import ParallelConfig, launched


def main() -> None:
    """Run `python -m benchmarks.pretrain.memory [RECIPE, OVERRIDES, MICRO_BATCHES, NAME]`; prints a JSON object."""
    recipe, overrides, micro_batches, name = json.loads(sys.argv[1])
    with launched(ParallelConfig()) as topology:
        print(json.dumps(peak_of(name, Case(recipe, tuple(overrides), micro_batches), topology)))


if __name__ == "__main__":
    main()
