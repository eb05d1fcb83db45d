"""Trains a toy engine for two steps, from its beginning or from a checkpoint; a process of its own for other versions.

`python go_on.py begin DIRECTORY` saves after two steps and prints the losses of the two steps after;
`python go_on.py go-on DIRECTORY` loads that checkpoint and prints the losses of the same two steps.
"""

import json
import sys
from pathlib import Path

import torch

from synpro_engine.data import Batch
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.train.checkpoint import load_checkpoint, save_checkpoint
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.optimizer_config import OptimizerConfig, ScheduleConfig

SHAPE = ModelConfig(family="llama", layers=2, d_model=32, heads=4, kv_heads=2, ffn=48, vocab_size=64, seq_len=16)


def steps(engine: Engine, seeds: range) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step."""
    found = []
    for seed in seeds:
        ids = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(seed))
        result = engine.step([Batch(ids[:, :-1], ids[:, 1:])], LanguageModelLoss(1e-4), denominator=64.0)
        found.append((result.loss, result.grad_norm))
    return found


def main(what: str, directory: Path) -> None:
    with launched(ParallelConfig()) as topology:
        model = build_model(SHAPE, topology, dtype=torch.bfloat16, seed=0 if what == "begin" else 1)
        engine = Engine(model, OptimizerConfig(lr=1e-2), schedule=ScheduleConfig(warmup_steps=3))
        if what == "begin":
            steps(engine, range(2))
            save_checkpoint(directory, engine)
        else:
            load_checkpoint(directory, model, engine)
        print(json.dumps(steps(engine, range(2, 4))))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
