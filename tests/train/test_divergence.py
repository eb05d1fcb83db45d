"""Training that goes wrong ends as a fault that says where; a single bad step is skipped, counted and written down."""

import json
import math
import os
import runpy
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from synpro_engine.config import UserError, json_text
from synpro_engine.data import Batch
from synpro_engine.dist import Stopped, Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.model import Model
from synpro_engine.train.checkpoint import checkpoint_extra
from synpro_engine.train.config import DivergenceConfig, PlateauConfig, SkipConfig, TrainConfig
from synpro_engine.train.divergence import DivergedError, LossGuard, PretrainGuard
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LanguageModelLoss, LossTerms
from synpro_engine.train.metrics import METRICS, read_metrics
from synpro_engine.train.optimizer_config import OptimizerConfig
from synpro_engine.train.run_checkpoints import RunCheckpoints
from synpro_engine.train.run_state import PretrainResult
from synpro_engine.train.trainer import pretrain
from synpro_engine.train.watcher import Watching
from tests.train.louder import Louder

TOY = runpy.run_path(str(Path(__file__).with_name("test_trainer.py")))
CONFIG: TrainConfig = TOY["CONFIG"].model_copy(update={"max_steps": 12, "eval_every": 4, "plateau": None})


def train(
    topology: Topology, directory: Path, *bad: int, loader: Any = None, watcher: Any = None, **settings: Any
) -> PretrainResult:
    config = CONFIG.model_copy(update=settings)
    return pretrain(
        build_model(TOY["SHAPE"], topology), config, loader or TOY["loader_of"](topology), directory,
        held_out=TOY["held_out"](topology), watcher=watcher or Louder(math.nan, *bad),
    )  # fmt: skip


def loader_that_ends(topology: Topology, steps: int) -> Any:
    """One with which a run is killed after so many steps."""
    loader, left = TOY["loader_of"](topology), iter(range(steps))
    deal = loader.next_batch

    def next_batch() -> Batch:
        if next(left, None) is None:
            raise TOY["Killed"]
        return deal()

    loader.next_batch = next_batch
    return loader


def saved(directory: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (directory / "checkpoints").iterdir())


def kinds(directory: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_metrics(directory / METRICS) if record["kind"] == kind]


def test_single_bad_steps_are_skipped_counted_and_named_by_their_documents(topology: Topology, tmp_path: Path) -> None:
    result = train(topology, tmp_path, 3, 7)
    assert result.step == 12 and result.skipped == 2
    skipped = kinds(tmp_path, "skipped")
    assert [record["step"] for record in skipped] == [3, 7] and skipped[0]["loss"] is None
    loader = TOY["loader_of"](topology)
    for step in range(1, 8):
        position = loader.state_dict()
        tokens = torch.cat([(batch := loader.next_batch()).tokens_BS, batch.labels_BS[:, -1:]], dim=1)
        if step in (3, 7):
            record = next(record for record in skipped if record["step"] == step)
            assert record["documents"] == loader.documents_at(position)
            text = TOY["corpus"](1)
            named = [text.document_tokens(int(name)).tolist() for name in record["documents"]["organic"]]
            assert set(tokens.flatten().tolist()) <= {token for document in named for token in document}


def test_too_many_bad_steps_in_a_row_end_the_run_before_a_checkpoint_of_them(
    topology: Topology, tmp_path: Path
) -> None:
    with pytest.raises(DivergedError) as caught:
        train(topology, tmp_path, 4, 5, 6, skip=SkipConfig(max_in_row=2), checkpoint_every=1)
    message = str(caught.value)
    assert message.startswith(
        "training diverged at step 6: 3 steps in a row were skipped (`max_in_row` is 2), loss nan"
    )
    assert "last made: step 3" in message and "lower `pretrain.optimizer.lr` (0.01 here)" in message
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir())[-1] == "step-00000003"


def test_bad_steps_are_counted_over_a_resumption(topology: Topology, tmp_path: Path) -> None:
    limits = {"skip": SkipConfig(max_in_all=2), "checkpoint_every": 2}
    with pytest.raises(TOY["Killed"]):
        train(topology, tmp_path, 1, 3, 9, loader=loader_that_ends(topology, 4), **limits)
    with pytest.raises(DivergedError, match=r"at step 9: 3 steps in all were skipped \(`max_in_all` is 2\)"):
        train(topology, tmp_path, 1, 3, 9, **limits)
    assert [record["step"] for record in kinds(tmp_path, "skipped")] == [1, 3, 9]


class Asked(Louder):
    """The job is asked to stop in the last of the chosen steps."""

    @contextmanager
    def watching(self, microbatches: Any, loss_fn: Any, denominator: int) -> Iterator[Any]:
        if self._engine.step_index + 1 == max(self._steps):
            os.kill(os.getpid(), signal.SIGTERM)
        with super().watching(microbatches, loss_fn, denominator) as louder:
            yield louder


def stopped(topology: Topology, directory: Path, watcher: Louder, **settings: Any) -> str:
    """What is said of a run that is asked to stop."""
    try:
        with pytest.raises(Stopped) as caught:
            train(topology, directory, watcher=watcher, **settings)
    finally:
        topology.watch.wish.signal = None
    return str(caught.value)


def test_a_stop_at_a_skipped_step_loses_nothing(topology: Topology, tmp_path: Path) -> None:
    settings = {"max_steps": 6, "eval_every": 2, "checkpoint_every": 2, "keep_checkpoints": 1}
    whole = train(topology, tmp_path / "whole", 3, 4, **settings)
    told = stopped(topology, tmp_path / "run", Asked(math.nan, 3, 4), **settings)
    # Nobody knows yet whether the skipped steps are the beginning of the end, so what is from before stays.
    assert "stopped after step 4, which is saved" in told and saved(tmp_path / "run") == [2, 4]
    assert TOY["same"](whole, train(topology, tmp_path / "run", 3, 4, **settings))
    assert saved(tmp_path / "run") == [6] and TOY["records"](tmp_path / "run") == TOY["records"](tmp_path / "whole")


def test_the_checkpoint_of_a_stop_is_a_last_one_where_one_was_due_too(
    topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lasts, save = list[bool](), RunCheckpoints.save

    def noted(self: RunCheckpoints, *args: Any, last: bool = False, **more: Any) -> None:
        lasts.append(last)
        save(self, *args, last=last, **more)

    monkeypatch.setattr(RunCheckpoints, "save", noted)
    stopped(topology, tmp_path, Asked(1.0, 4), max_steps=6, checkpoint_every=2)
    assert lasts == [False, True]


def test_a_stop_out_of_bounds_saves_nothing(topology: Topology, tmp_path: Path) -> None:
    settings = {"optimizer": OptimizerConfig(lr=30.0), "eval_every": 1, "divergence": DivergenceConfig(evaluations=9)}
    told = stopped(topology, tmp_path, Asked(1.0, 5), **settings)
    assert "stopped after step 5; it goes on from the checkpoint before" in told
    assert not (tmp_path / "checkpoints").exists()


def test_a_checkpoint_that_is_due_at_a_skipped_step_is_written_at_the_next_one_that_is_made(
    topology: Topology, tmp_path: Path
) -> None:
    with pytest.raises(TOY["Killed"]):
        train(topology, tmp_path, 4, 5, loader=loader_that_ends(topology, 7), checkpoint_every=4)
    assert saved(tmp_path) == [6]


@pytest.mark.parametrize("rule", ["slope", "windows"])
@pytest.mark.parametrize("lr", [30.0, 1e30])
def test_a_learning_rate_far_too_high_is_never_a_plateau(
    topology: Topology, tmp_path: Path, lr: float, rule: Any
) -> None:
    strict = PlateauConfig(rule=rule, window=1, min_improvement=0.5)
    optimizer = OptimizerConfig(lr=lr)
    with pytest.raises(DivergedError, match=r"^training diverged at step \d+: .*lower `pretrain\.optimizer\.lr`"):
        train(topology, tmp_path, optimizer=optimizer, plateau=strict, max_steps=100, eval_every=2, z_loss=0.0)
    assert not any(record["ended_by"] for record in kinds(tmp_path, "plateau"))


def test_a_run_that_ends_out_of_bounds_is_a_fault_however_few_its_evaluations(
    topology: Topology, tmp_path: Path
) -> None:
    with pytest.raises(DivergedError, match=r"at step 6: .*the last evaluation is out of bounds"):
        train(topology, tmp_path, optimizer=OptimizerConfig(lr=30.0), max_steps=6, eval_every=0)


def test_a_loss_that_overflows_skips_its_step_though_the_gradient_is_finite(topology: Topology) -> None:
    def overflowing(model: Model, hidden_BSH: torch.Tensor, batch: Batch) -> LossTerms:
        terms = LanguageModelLoss()(model, hidden_BSH, batch)
        return replace(terms, loss=terms.loss * math.inf)

    model = build_model(TOY["SHAPE"], topology)
    engine, before = Engine(model, OptimizerConfig(lr=0.1)), [p.detach().clone() for p in model.parameters()]
    result = engine.step([TOY["loader_of"](topology).next_batch()], overflowing, denominator=64.0)
    assert result.skipped and math.isinf(result.loss) and math.isfinite(result.grad_norm)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


UNIFORM = math.log(512)


def fault(*evaluations: tuple[float, float], last: bool = False) -> int | None:
    """Index of the evaluation (training loss, reference loss) that ends a run."""
    guard = LossGuard(config=DivergenceConfig(), uniform=UNIFORM)
    guard.see("training", evaluations[0][0])
    for index, (training, reference) in enumerate(evaluations):
        losses = {"training": training, "reference": reference}
        guard.add(losses)
        if guard.fault(index, losses, last=last and index == len(evaluations) - 1):
            return index
    return None


def test_only_losses_that_leave_all_bounds_are_divergence() -> None:
    good = [(3.0, 3.0), (2.5, 2.7)]
    assert fault(*good, (4.0, 4.0), (4.0, 4.1), (4.2, 4.2)) == 4, "a nat above the best"
    assert fault(*good, (4.0, 4.0), (2.5, 2.7), (4.2, 4.2), (4.3, 4.2)) is None, "not in a row"
    assert fault(*good, *[(math.nan, math.nan)] * 3) == 4
    assert fault(*[(6.2, 6.2)], *[(6.5, 7.0)] * 3) == 3, "above guessing"
    slow = [(UNIFORM + 0.02 + 0.003 * (-1) ** n, UNIFORM + 0.02 - 0.001 * n) for n in range(10)]
    assert fault(*slow) is None, "a slow start about ln V"
    overfit = [(3.0 * 0.7**n, 3.0 + 0.3 * n) for n in range(12)]
    assert fault(*overfit) is None, "the held-out loss alone"
    assert fault(*good, *[(math.nan, 2.6)] * 5) is None, "a last step that was skipped"
    assert fault(*good, *[(2.4, math.nan)] * 5) == 4, "a held-out loss that is none"
    assert fault(*good, (2.4, math.nan)) is None and fault(*good, (2.4, math.nan), last=True) == 2
    assert fault(*good, (4.0, 4.0)) is None and fault(*good, (4.0, 4.0), last=True) == 2


def settled(*evaluations: tuple[float, float]) -> str | None:
    """What a plateau behind these evaluations (mean training loss, reference loss) is told to be, if not one."""
    guard = PretrainGuard(CONFIG, vocab_size=512)
    for training, reference in evaluations:
        for noise in (-0.1, 0.1):
            guard.add_step(1, training + noise, 1.0, 0.01, skipped=False)
        guard.add_evaluation({"reference": reference, "validation": reference})
        state = json.loads(json_text(guard.state_dict()))
        guard = PretrainGuard(CONFIG, vocab_size=512)  # a resumed run goes on judging the same
        guard.load_state_dict(state)
    guard.add_step(1, evaluations[-1][0], 1.0, 0.01, skipped=False)
    guard.add_evaluation(dict.fromkeys(("reference", "validation"), evaluations[-1][1]))
    return guard.worse(9)


def guarded(*steps: float | None, evaluated: float = 3.0, guard: PretrainGuard | None = None) -> PretrainGuard:
    """A guard that has seen steps of these losses (None: one without labels) and then an evaluation."""
    guard = guard or PretrainGuard(CONFIG, vocab_size=512)
    for loss in steps:
        guard.add_step(1, loss or 0.0, 1.0, 0.01, skipped=False, labelled=loss is not None)
    guard.add_evaluation({"reference": evaluated})
    return guard


@pytest.mark.parametrize("odd", [None, 0.5], ids=["without labels", "an easy batch"])
def test_one_odd_step_does_not_make_overfitting_divergence(odd: float | None) -> None:
    guard = guarded(3.2, 3.2)
    guarded(*[3.0] * 9, odd, *[3.0] * 9, evaluated=2.9, guard=guard)
    for _ in range(3):
        guarded(*[2.9] * 9, evaluated=4.2, guard=guard)
    assert guard.fault(60, last=True) is None


def test_training_that_goes_wrong_late_in_a_long_interval_is_divergence() -> None:
    guard = guarded(*[3.0] * 50, *[5.0] * 8, evaluated=6.0, guard=guarded(3.2, 3.2))
    assert "training loss 5, reference loss 6; the last evaluation is out of bounds" in str(guard.fault(60, last=True))


def test_a_bound_of_an_older_version_is_that_of_means() -> None:
    state = guarded(*[3.0] * 9, guard=guarded(3.2)).state_dict()
    old = json.loads(json_text({name: value for name, value in state.items() if name != "recent"}))
    # A lowest mean of 0 is of an interval without labels: then nothing is known, as at the beginning.
    for lowest, bound in ((3.0, 4.0), (0.0, 4.5)):
        old["bounds"]["best"]["training"], old["lowest"]["training"] = 0.0, lowest
        for loss, out in ((bound - 0.05, None), (bound + 0.05, "out of bounds")):
            guard = PretrainGuard(CONFIG, vocab_size=512)
            guard.load_state_dict(old)
            guarded(3.5, *[loss] * 8, evaluated=4.2, guard=guard)
            found = guard.fault(60, last=True)
            assert found is None if out is None else out in str(found), (lowest, loss)


def test_a_batch_without_labels_leaves_no_trace_in_what_losses_are_held_to(topology: Topology, tmp_path: Path) -> None:
    loader = TOY["loader_of"](topology)
    deal, number = loader.next_batch, iter(range(1, 9))

    def next_batch() -> Batch:
        batch = deal()
        return replace(batch, labels_BS=torch.full_like(batch.labels_BS, -100)) if next(number) == 3 else batch

    loader.next_batch = next_batch
    result = train(topology, tmp_path, loader=loader, max_steps=4, eval_every=0)
    extra = checkpoint_extra(result.checkpoint)
    assert min(extra["guard"]["recent"]) > 1 and len(extra["guard"]["recent"]) == 3
    assert extra["guard"]["bounds"]["best"]["training"] > 1 and min(extra["spikes"]["losses"]) > 1


def test_a_plateau_above_the_losses_that_there_were_is_divergence() -> None:
    fallen = [(6.0, 6.0), (3.0, 3.2), (2.8, 3.0)]
    told = settled(*fallen, (3.2, 3.4), (3.2, 3.4))
    assert told is not None and told.startswith("training diverged at step 9: ")
    assert "reference loss 3.4 (lowest 3), " in told and "training loss 3.2 (lowest 2.8); lower" in told
    assert settled(*fallen, *[(2.8 + 0.05 * n, 3.0 + 0.05 * n) for n in range(8)]), "a slow rise of both"
    assert settled(*fallen, (2.8, 3.01), (2.81, 3.0)) is None, "flat"
    assert settled(*fallen, (2.5, 3.3), (2.0, 3.6)) is None, "overfitting"
    assert settled(*fallen, (3.5, 3.0)) is None, "a hard batch"


def test_a_fall_back_to_a_higher_loss_ends_as_a_fault_and_no_plateau(topology: Topology, tmp_path: Path) -> None:
    class FallBack(Louder):
        """From step 60 on the weights are those of step 20 again."""

        @contextmanager
        def watching(self, microbatches: Any, loss_fn: Any, denominator: int) -> Iterator[Any]:
            yield Watching(loss_fn)
            weights, step = list(self._engine.model.parameters()), self._engine.step_index
            if step == 20:
                self._kept = [weight.detach().clone() for weight in weights]
            if step >= 60:
                with torch.no_grad():
                    for weight, kept in zip(weights, self._kept, strict=True):
                        weight.copy_(kept)

    changes = {"max_steps": 300, "eval_every": 4, "plateau": PlateauConfig(min_improvement=0.001)}
    changes |= {"optimizer": OptimizerConfig(lr=1e-2), "divergence": DivergenceConfig(rise=5.0)}
    with pytest.raises(DivergedError, match="it no longer improves"):
        pretrain(
            build_model(TOY["SHAPE"], topology), CONFIG.model_copy(update=changes), TOY["loader_of"](topology),
            tmp_path, held_out=TOY["held_out"](topology), watcher=FallBack(1.0),
        )  # fmt: skip
    assert not any(record["ended_by"] for record in kinds(tmp_path, "plateau"))


def test_checkpoints_without_the_counts_are_refused_by_a_line(topology: Topology, tmp_path: Path) -> None:
    from synpro_engine.train import run

    result = train(topology, tmp_path, max_steps=2)
    whole = run.load_checkpoint
    try:
        run.load_checkpoint = lambda *a, **k: {x: y for x, y in whole(*a, **k).items() if x != "guard"}
        with pytest.raises(UserError, match="older version"):
            train(topology, tmp_path, max_steps=4)
    finally:
        run.load_checkpoint = whole
    assert result.skipped == 0
