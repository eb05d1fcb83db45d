"""Scores of a step that drops: of the gradient that it sums, masks and all, by every way of reading it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.influence import InRun
from synpro_engine.model.dropout import dropouts
from synpro_engine.model.dropout_config import DropoutConfig
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.optimizer_config import OptimizerConfig
from tests.influence.test_in_run import LABELS, ROWS, microbatches
from tests.influence.toy import CONFIGS, direction_of, model_of

ALL = DropoutConfig(embedding=0.3, attention=0.3, residual=0.3, depth=0.5, tokens=0.3, mask_token=5)


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as here:
        yield here


def watched(
    variant: str, topology: Topology, size: int, method: Any, config: DropoutConfig = ALL
) -> tuple[dict[str, float], float]:
    """Each row's score in one step, and the sum that they must make: <gradient of the step, v>."""
    model = model_of(CONFIGS[variant], topology)
    engine, direction = Engine(model, OptimizerConfig(lr=1e-3, clip=0.0)), direction_of(model)
    batches, examples = microbatches(0, size, topology)
    dropped = dropouts(
        config, [size] * len(batches), first_row=0, seed=3, step=0, layers=model.config.layers, device=topology.device
    )
    with InRun(engine, direction, method=method).watch(
        batches, examples, LanguageModelLoss(1e-2), denominator=LABELS
    ) as seen:
        engine.step(batches, seen.loss_fn, denominator=LABELS, dropouts=dropped)
    sums: list[Any] = [
        (p.main_grad.double() * direction.tensors[name].double()).sum()  # pyright: ignore[reportAttributeAccessIssue]
        for name, p in model.named_parameters()
    ]
    scores = {score.key: score.values["influence"] for score in seen.scores}
    tokens = {score.key: score.tokens for score in seen.scores}
    total = sum(scores[key] * tokens[key] for key in scores)
    assert len(scores) == ROWS
    return scores, total / (float(torch.stack(sums).sum()) * LABELS)


@pytest.mark.parametrize("variant", CONFIGS)
@pytest.mark.parametrize(("size", "method"), [(1, "gradient"), (1, "capture"), (4, "capture"), (4, "prefix")])
def test_scores_are_shares_of_the_gradient_that_the_step_sums(
    variant: str, size: int, method: str, topology: Topology
) -> None:
    scores, share = watched(variant, topology, size, method)
    assert share == pytest.approx(1.0, rel=1e-4)
    formed, _ = watched(variant, topology, 1, "gradient")
    assert scores == pytest.approx(formed, rel=1e-4, abs=1e-5)
    without, _ = watched(variant, topology, 1, "gradient", DropoutConfig())
    assert all(abs(scores[key] - without[key]) > 1e-4 for key in scores)
