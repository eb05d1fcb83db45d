"""Keeps Megatron's synchronous checkpoint save inside this job's own processes.

Megatron hands the results of its writers back through a `multiprocessing.Manager` of its own, made for asynchronous
saves. That manager is a spawned process which imports the user's main module again: seconds at the first save, and a
second run of any script without a `__main__` guard. A synchronous save reads the results in the process that put them
there, so a plain queue does.
"""

from __future__ import annotations

import queue

from megatron.core.dist_checkpointing.strategies import filesystem_async


def save_without_manager() -> None:
    """Make later synchronous saves use a plain queue; safe to call again."""
    if getattr(filesystem_async, "_results_queue", ...) is None:
        filesystem_async._results_queue = queue.Queue()
