"""One contender's rollout in a process of its own, which tells its peak memory."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.common.harness import status_bytes
from benchmarks.rollout.contenders import Shape, load, ours, prompts, rival, theirs
from synpro_engine.data import load_tokenizer
from synpro_engine.dist import ParallelConfig, launched


def main() -> None:
    """Run `python -m benchmarks.rollout.memory NAME EXPORTED SHAPE PROMPT THREADS`; prints a JSON object."""
    name, exported, text, prompt, threads = sys.argv[1:]
    shape = Shape.read(text, int(prompt))
    asked = prompts(shape, load_tokenizer(Path(exported)))
    with tempfile.TemporaryDirectory() as folder, launched(ParallelConfig()) as topology:
        torch.set_num_threads(int(threads))  # after the launch, which has a number of its own
        if name == "synpro":
            rollout, _ = ours(load(topology, Path(folder))[0], asked, shape)
        else:
            rollout = theirs(rival(Path(exported)), asked, shape)
        # From here on: what importing a model took on the way is no part of sampling.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = status_bytes("VmRSS")
        rollout(0)
        print(json.dumps({"peak_bytes": status_bytes("VmHWM"), "bytes_before": before}))


if __name__ == "__main__":
    main()
