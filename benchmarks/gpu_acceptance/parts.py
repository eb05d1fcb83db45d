"""The parts of the acceptance: most telling first, and last what might hang."""

from __future__ import annotations

import importlib.util
import shutil

from benchmarks.gpu_acceptance import lines, programs
from benchmarks.gpu_acceptance.part import Part

PARTS = {
    "kernels": Part(programs=programs.kernels, lines=lines.kernels),
    "races": Part(programs=programs.races, lines=lines.races),
    "tests": Part(
        programs=programs.tests,
        lines=lines.tests,
        missing=lambda: None if importlib.util.find_spec("pytest") else "no pytest",
    ),
    "sanitizer": Part(
        programs=programs.sanitizer,
        lines=lines.sanitizer,
        missing=lambda: None if shutil.which("compute-sanitizer") else "no compute-sanitizer on PATH",
    ),
    "linear_logprob": Part(programs=programs.linear_logprob, lines=lines.linear_logprob),
    "pretrain": Part(programs=programs.pretrain, lines=lines.pretrain),
    "decode": Part(programs=programs.decode, lines=lines.decode),
    "grpo": Part(programs=programs.grpo, lines=lines.grpo),
    "copies": Part(programs=programs.copies, lines=lines.copies),
    "layouts": Part(programs=programs.layouts, lines=lines.layouts),
    "influence": Part(programs=programs.influence, lines=lines.influence),
    "smoke": Part(programs=programs.smoke, lines=lines.smoke),
    "checkpoint": Part(programs=programs.checkpoint, lines=lines.checkpoint),
    "persistent": Part(programs=programs.persistent, lines=lines.persistent, seconds=120.0),
}
