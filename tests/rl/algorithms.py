"""The toy's tuning by each published method, for tests that run it in processes of their own."""

import runpy
from pathlib import Path
from typing import Any

from synpro_engine.rl.config import PRESETS, TuneConfig

# Where a preset would do nothing, or nothing in a dozen steps, with completions of ten letters.
_FOR_THE_TOY: dict[str, dict[str, Any]] = {
    "gspo": {"clip_low": 0.02, "clip_high": 0.03, "updates_per_rollout": 2},
    "dapo": {"overlong": {"buffer": 0.5, "penalty": 0.1}, "refills": 2},
    "cispo": {"updates_per_rollout": 2},
    "reinforce_pp": {"kl_beta": 0.01},
    "rloo": {"kl_beta": 0.01},
    "ppo": {
        "kl_beta": 0.01,
        "critic": {"optimizer": {"lr": 3e-3, "weight_decay": 0.0}, "warmup_steps": 1},
        "minibatches": 2,
    },
}
# Ways that no preset takes.
OTHERS: dict[str, dict[str, Any]] = {
    "minibatches": {"minibatches": 3, "updates_per_rollout": 2, "dual_clip": 2.0, "kl": "k2"},
    "all else": {
        "scale": "batch", "std_divisor": "n-1", "mask_truncated": True, "entropy_bonus": 0.01,
        "importance": {"level": "sequence", "beyond": "reject"},
        "sampling": {"max_new_tokens": 10, "top_k": 20, "min_p": 0.01},
    },
    "whole vocabulary": {
        "surrogate": "gspo", "clip_low": 0.02, "clip_high": 0.03, "aggregation": "sequence", "updates_per_rollout": 2,
        "entropy_bonus": 0.01, "importance": {}, "sampling": {"max_new_tokens": 10},
    },
    "adapters": {"lora": {"rank": 4, "alpha": 8.0}, "updates_per_rollout": 2},
}  # fmt: skip
WAYS = [*PRESETS, *OTHERS]


def toy() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).with_name("toy.py")))


def config_of(way: str, **changed: Any) -> TuneConfig:
    """The toy's settings by one of `WAYS`."""
    given = toy()["CONFIG"].model_dump(exclude_unset=True)
    if way in PRESETS:
        given = {k: v for k, v in given.items() if k != "kl_beta"} | {"algorithm": way} | _FOR_THE_TOY.get(way, {})
    return TuneConfig.model_validate(given | OTHERS.get(way, {}) | changed)
