"""Trainings of one seed of the world, by the engine's own loop: to theta, from theta on, and from the beginning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.world.world import EOS, VOCABULARY, Text, World, corpus
from synpro_engine.data import Batch, TokenLoader, eval_windows
from synpro_engine.dist import Topology
from synpro_engine.influence import (
    Estimator,
    EstimatorConfig,
    ProbeConfig,
    build_estimator,
    next_step_direction,
    run_probe,
)
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.train.checkpoint import load_checkpoint
from synpro_engine.train.config import TrainConfig
from synpro_engine.train.engine import Engine
from synpro_engine.train.metrics import METRICS, read_metrics
from synpro_engine.train.optimizer_config import OptimizerConfig, ScheduleConfig
from synpro_engine.train.trainer import pretrain

SHAPE = ModelConfig(
    family="olmo2", layers=3, d_model=96, heads=4, kv_heads=4, ffn=192, vocab_size=VOCABULARY + 4, seq_len=128
)
MASK = VOCABULARY
"""An id that no word has, which stands for words that are left out."""
TO_THETA, FROM_THETA = 300, 300
"""Steps."""
_ROWS, _RATE = 16, 2e-3
BATCH_TOKENS = _ROWS * SHAPE.seq_len
DIRECTION_BATCHES = 5
"""Read for a direction: one of the reference and four of training."""
ALL_TOKENS = (TO_THETA + FROM_THETA) * BATCH_TOKENS
"""Read by each arm, theta's included, and by each size of the curve."""
_WALK_RATE = 3e-4  # a sixth of training's, as the paper's is of its own
UNTUNED: dict[str, Any] = {"optimizer": {"lr": _RATE, "weight_decay": 0.1}}
TUNED: dict[str, Any] = {
    "optimizer": {"lr": _RATE, "weight_decay": 1.0},
    "dropout": {"embedding": 0.1, "residual": 0.1},
}
"""Best for repetition on a world of another seed, of the grid (`--tune`); theta and all arms train by it."""


class Trainings:
    """All in `place`, on one world, with one order of the organic text. Losses are nats a value, by held-out people."""

    def __init__(self, world: World, place: Path, topology: Topology) -> None:
        self.world, self.place, self.topology = world, place, topology
        asked = {"reference": world.reference, "validation": world.validation}
        self._held_out = {name: self._batches(world.asked(people)) for name, people in asked.items()}
        self.theta = place / "theta"

    def _batches(self, texts: Sequence[Text]) -> list[Batch]:
        found = corpus(texts, values_alone=True)
        return list(eval_windows(found, SHAPE.seq_len, batch_size=_ROWS, separate_documents=True))

    def _loader(self, sources: Mapping[str, Sequence[Text]], share: float) -> TokenLoader:
        weights = {name: share if name == "synthetic" else 1.0 - share for name in sources}
        texts = {name: corpus(texts) for name, texts in sources.items()}
        weights = weights if len(texts) > 1 else dict.fromkeys(texts, 1.0)
        return TokenLoader(texts, weights, SHAPE.seq_len, _ROWS, self.world.seed, separate_documents=True)

    def train(
        self,
        name: str,
        organic: Sequence[Text],
        synthetic: Sequence[Text] = (),
        *,
        share: float = 0.5,
        anew: bool = False,
        settings: Mapping[str, Any] = TUNED,
    ) -> dict[str, float]:
        """Train on from theta, or from the beginning for as many steps in all; the held-out losses at the end.

        share: of the windows that synthetic text gives. settings: of pretraining, beside those that all have.
        """
        sources = {"organic": organic} | ({"synthetic": synthetic} if synthetic else {})
        config = self._config(TO_THETA + FROM_THETA if anew else FROM_THETA, settings)
        return self._run(self.place / name, sources, share, config, start=None if anew else self._last(self.theta))

    def make_theta(self) -> dict[str, float]:
        """Train on the organic text alone to where the arms part."""
        return self._run(self.theta, {"organic": self.world.organic()}, 0.0, self._config(TO_THETA, TUNED), start=None)

    def losses_along(self, name: str, synthetic: Sequence[Text], steps: int, every: int) -> dict[int, dict[str, float]]:
        """Train on from theta with these texts, or with organic ones alone; by steps from theta: held-out losses."""
        sources = {"organic": self.world.organic()} | ({"synthetic": synthetic} if synthetic else {})
        config = self._config(steps, TUNED | {"eval_every": every})
        self._run(self.place / name, sources, 0.5, config, start=self._last(self.theta))
        evaluated = [line for line in read_metrics(self.place / name / METRICS) if line["kind"] == "eval"]
        return {line["step"] - TO_THETA: {text: line[f"{text}_loss"] for text in self._held_out} for line in evaluated}

    def checkpoints(self, name: str, synthetic: Sequence[Text] = (), *, anew: bool = False) -> list[Path]:
        """The checkpoints after each third of a training that is otherwise theta's (`anew`) or an arm's."""
        steps, start = (TO_THETA, None) if anew else (FROM_THETA, self._last(self.theta))
        config = self._config(steps, TUNED | {"checkpoint_every": steps // 3, "keep_checkpoints": 3})
        sources = {"organic": self.world.organic()} | ({"synthetic": synthetic} if synthetic else {})
        self._run(self.place / name, sources, 0.5, config, start=start)
        return sorted((self.place / name / "checkpoints").iterdir())

    def _config(self, steps: int, settings: Mapping[str, Any]) -> TrainConfig:
        usual = {
            "max_steps": steps, "global_batch": _ROWS, "micro_batch": _ROWS,
            "schedule": ScheduleConfig(warmup_steps=20).model_dump(), "eval_every": 0, "checkpoint_every": 0,
            "log_every": 50, "tensorboard": False, "divergence": None, "separate_documents": True,
        }  # fmt: skip
        return TrainConfig.model_validate({**usual, **settings})

    def _run(
        self, into: Path, sources: Mapping[str, Sequence[Text]], share: float, config: TrainConfig, start: Path | None
    ) -> dict[str, float]:
        seed = self.world.seed
        model = build_model(SHAPE, self.topology, dtype=torch.float32, seed=seed)
        ended = pretrain(
            model, config, self._loader(sources, share), into, held_out=self._held_out, start=start, seed=seed,
            label=into.name,
        )  # fmt: skip
        return ended.losses

    @staticmethod
    def _last(directory: Path) -> Path:
        return max((directory / "checkpoints").iterdir())

    def influence(
        self,
        estimator: EstimatorConfig,
        at: Path | None = None,
        others: Mapping[str, Sequence[Text]] | None = None,
    ) -> Estimator:
        """What a text is worth to theta along AdamW's next step for the reference.

        at: another checkpoint than theta's. others: by name, questions that are references of directions beside it.
        """
        model = build_model(SHAPE, self.topology, dtype=torch.float32, seed=self.world.seed)
        engine = Engine(model, OptimizerConfig.model_validate(TUNED["optimizer"]))
        load_checkpoint(self._last(self.theta) if at is None else at, model, engine)
        loader = self._loader({"organic": self.world.organic()}, 0.0)
        upcoming = [[loader.next_batch()] for _ in range(DIRECTION_BATCHES - 1)]
        direction = next_step_direction(engine, self._held_out["reference"], upcoming)
        named = {
            name: next_step_direction(engine, self._batches(texts), upcoming) for name, texts in (others or {}).items()
        }
        return build_estimator(estimator, model, direction, start_id=EOS, others=named)

    def walked(self, steps: int) -> Estimator:
        """The paper's: what so many steps on the reference do to a text's loss."""
        theta, after = (build_model(SHAPE, self.topology, dtype=torch.float32, seed=None) for _ in range(2))
        load_checkpoint(self._last(self.theta), theta)
        questions = corpus(self.world.asked(self.world.reference), values_alone=True)
        loader = TokenLoader(
            {"reference": questions}, {"reference": 1.0}, SHAPE.seq_len, _ROWS, self.world.seed, separate_documents=True
        )
        config = ProbeConfig(kind="walk", steps=steps, lr=_WALK_RATE, global_batch=_ROWS, micro_batch=_ROWS)
        run_probe(self._last(self.theta), after, loader, config)
        return build_estimator(EstimatorConfig(estimator="two_forward"), theta, after, start_id=EOS)
