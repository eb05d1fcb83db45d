"""In-run scores: of the right documents, none lost or twice, and training never notices."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synpro_engine.config import UserError
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.sections import InRunConfig
from synpro_engine.cycle.steps import in_run
from synpro_engine.cycle.steps.in_run import DIRECTION, InRunScores
from synpro_engine.cycle.summaries.influence import agreement_of_halves
from synpro_engine.data import IGNORE, Batch, TokenCorpus, TokenLoader, eval_windows
from synpro_engine.dist import ParallelConfig, Stopped, Topology, launched
from synpro_engine.dist.testing import free_ports, job, run_ranks
from synpro_engine.influence import DocumentScore, mean_gradient, read_scores
from synpro_engine.influence.directions import NoDirectionError
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.train.checkpoint_files import whole_tensors
from synpro_engine.train.config import TrainConfig
from synpro_engine.train.engine import Engine
from synpro_engine.train.metrics import METRICS, read_metrics
from synpro_engine.train.optimizer_config import MuonConfig, OptimizerConfig
from synpro_engine.train.trainer import pretrain

SHAPE = ModelConfig(layers=2, d_model=32, heads=4, kv_heads=2, ffn=48, vocab_size=64, seq_len=16)
TRAIN = TrainConfig(
    max_steps=8, global_batch=4, micro_batch=2, eval_every=0, checkpoint_every=4, tensorboard=False, z_loss=0.0,
    optimizer=OptimizerConfig(lr=1e-2, eps=1e-3),
)  # fmt: skip
MUON = TRAIN.model_copy(update={"optimizer": OptimizerConfig(name="muon", lr=1e-2, eps=1e-3, muon=MuonConfig(lr=0.02))})
WATCH = InRunConfig(every=2, refresh=4, reference_tokens=50)
GRADIENT = WATCH.model_copy(update={"direction": "gradient"})


class Killed(Exception):
    """Stands for the end of the process between two steps."""


def corpus(seed: int, documents: int = 25) -> TokenCorpus:
    """Documents of 3 to 30 tokens, each made of one token of its own and an EOS."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 31, documents)
    tokens = [[*[number + 1] * (length - 1), 0] for number, length in enumerate(lengths)]
    return TokenCorpus(
        tokens=np.concatenate(tokens).astype(np.int32), offsets=np.cumsum([0, *lengths]), eos_id=0, text_bytes=1,
        fingerprint="test", read_ids=lambda: [f"doc-{number + 1}" for number in range(documents)],
    )  # fmt: skip


def loader_of(topology: Topology, text: TokenCorpus) -> TokenLoader:
    where = {"dp_rank": topology.dp.rank, "dp_size": topology.dp.size}
    return TokenLoader({"organic": text}, {"organic": 1.0}, SHAPE.seq_len, TRAIN.global_batch, 5, **where)


def train(
    topology: Topology,
    directory: Path,
    watch: InRunConfig | None,
    *,
    config: TrainConfig = TRAIN,
    die_before: int | None = None,
    changed: Callable[[int, Batch], Batch] = lambda number, batch: batch,
) -> dict[str, torch.Tensor]:
    """Train, watched or not; the weights and moments at the end. changed: what becomes of the batch of each step."""
    loader = loader_of(topology, corpus(1))
    deal, given = loader.next_batch, itertools.count(1)

    def next_batch() -> Batch:
        number = next(given)
        if number - 1 == die_before:
            raise Killed
        return changed(number, deal())

    loader.next_batch = next_batch
    log = directory / "scores.jsonl"
    watcher = None if watch is None else InRunScores(watch, log, {"reference": corpus(2)}, topology)
    result = pretrain(build_model(SHAPE, topology), config, loader, directory, watcher=watcher)
    return whole_tensors(result.checkpoint / "state")


def alike(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return set(ours) == set(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


def losses(directory: Path) -> list[Any]:
    records = read_metrics(directory / METRICS)
    return [(r["step"], r["loss"], r["grad_norm"]) for r in records if r["kind"] == "train"]


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as here:
        yield here


@pytest.fixture(scope="module")
def plain(topology: Topology, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    directory = tmp_path_factory.mktemp("plain")
    return directory, train(topology, directory, None)


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_documents_are_scored_with_as_many_tokens_as_are_read_of_them(
    micro_batch: int, topology: Topology, tmp_path: Path
) -> None:
    watch, config = WATCH.model_copy(update={"every": 1}), TRAIN.model_copy(update={"micro_batch": micro_batch})
    with pytest.raises(Killed):
        train(topology, tmp_path, watch, config=config, die_before=6)
    train(topology, tmp_path, watch, config=config)  # goes on from step 4
    found: dict[tuple[int, str], int] = {}
    for record in read_scores(tmp_path / "scores.jsonl"):
        found[record.step, record.key] = found.get((record.step, record.key), 0) + record.tokens
    loader, expected = loader_of(topology, corpus(1)), dict[tuple[int, str], int]()
    for step in range(1, 9):
        batch = loader.next_batch()
        assert batch.document_BS is not None
        for label, number in zip(batch.labels_BS.flatten().tolist(), batch.document_BS.flatten().tolist(), strict=True):
            assert label in (0, number + 1)
            key = step, f"doc-{number + 1}"
            expected[key] = expected.get(key, 0) + 1
    assert found == expected


@pytest.mark.parametrize("direction", ["next_step", "gradient"])
def test_training_is_the_same_bit_for_bit(
    direction: Any, topology: Topology, plain: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    config = InRunConfig(every=1, refresh=3, reference_tokens=50, direction=direction)
    assert alike(train(topology, tmp_path, config), plain[1])
    assert losses(tmp_path) == losses(plain[0])
    steps = {record.step for record in read_scores(tmp_path / "scores.jsonl")}
    assert steps == set(range(1, 9))


def test_training_by_muon_is_the_same_bit_for_bit_and_scored(topology: Topology, tmp_path: Path) -> None:
    plain = train(topology, tmp_path / "plain", None, config=MUON)
    watch = InRunConfig(every=1, refresh=3, reference_tokens=50)
    assert alike(train(topology, tmp_path / "watched", watch, config=MUON), plain)
    records = list(read_scores(tmp_path / "watched" / "scores.jsonl"))
    assert {record.step for record in records} == set(range(1, 9))
    assert all(record.scores[DIRECTION] is not None for record in records)


def test_a_step_s_scores_sum_to_the_product_of_its_gradient_with_the_reference_s(
    topology: Topology, tmp_path: Path
) -> None:
    train(topology, tmp_path, InRunConfig(every=1, refresh=8, reference_tokens=50, direction="gradient"))
    first = [record for record in read_scores(tmp_path / "scores.jsonl") if record.step == 1]
    batch = loader_of(topology, corpus(1)).next_batch()
    own = {f"doc-{label}" for label in batch.labels_BS.unique().tolist() if label}
    assert own <= {record.key for record in first} and sum(record.tokens for record in first) == 64
    model = build_model(SHAPE, topology)
    reference = list(eval_windows(corpus(2), SHAPE.seq_len, batch_size=2, max_tokens=50))
    g, v = (mean_gradient(model, batches).tensors for batches in ([batch], reference))
    expected = sum(float((g[name].double() * v[name].double()).sum()) for name in g)
    assert sum(record.scores[DIRECTION] * record.tokens for record in first) / 64 == pytest.approx(expected, rel=1e-4)


def test_a_killed_run_has_every_score_once_and_the_same(
    topology: Topology, plain: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    train(topology, tmp_path / "whole", WATCH)
    with pytest.raises(Killed):
        train(topology, tmp_path / "killed", WATCH, die_before=7)
    beyond = [record.step for record in read_scores(tmp_path / "killed" / "scores.jsonl")]
    assert beyond[-1] == 6  # scored after the checkpoint of step 4
    assert alike(train(topology, tmp_path / "killed", WATCH), plain[1])
    ours, theirs = ((tmp_path / name / "scores.jsonl").read_bytes() for name in ("killed", "whole"))
    assert ours == theirs
    watched = [r for r in read_metrics(tmp_path / "killed" / METRICS) if r["kind"] == "in_run"]
    assert [(r["step"], r["scored"]) for r in watched] == [(step, step % 2 == 0) for step in range(1, 9)]
    assert [r["step"] for r in watched if r["direction_seconds"]] == [2, 6]


def test_a_direction_that_was_kept_lasts_to_the_next_checkpoint_and_is_renewed_where_a_kill_cut_it_off(
    topology: Topology, plain: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    def stop(number: int, batch: Batch) -> Batch:
        topology.watch.wish.signal = "SIGTERM" if number == 5 else None
        return batch

    def stopped(directory: Path) -> Path:
        try:
            with pytest.raises(Stopped):
                train(topology, directory, WATCH, changed=stop)
        finally:
            topology.watch.wish.signal = None
        return directory / "in-run-direction-5"

    kept = stopped(tmp_path / "stopped")
    with pytest.raises(Killed):
        train(topology, tmp_path / "stopped", WATCH, die_before=2)
    assert (kept / DIRECTION / "manifest.json").exists()
    assert alike(train(topology, tmp_path / "stopped", WATCH), plain[1])
    assert not kept.exists()
    train(topology, tmp_path / "whole", WATCH)
    ours, theirs = ((tmp_path / name / "scores.jsonl").read_bytes() for name in ("stopped", "whole"))
    assert ours == theirs

    (stopped(tmp_path / "cut") / DIRECTION / "manifest.json").unlink()
    assert alike(train(topology, tmp_path / "cut", WATCH), plain[1])


def test_a_step_that_changes_nothing_is_not_scored(
    topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Engine.step

    def refused_once(self: Engine, *given: Any, **settings: Any) -> Any:
        refused = {"accept": lambda loss, norm: False} if self.step_index == 3 else {}
        return real(self, *given, **settings | refused)

    monkeypatch.setattr(Engine, "step", refused_once)
    train(topology, tmp_path, WATCH)
    assert {record.step for record in read_scores(tmp_path / "scores.jsonl")} == {2, 6, 8}
    watched = [r for r in read_metrics(tmp_path / METRICS) if r["kind"] == "in_run"]
    assert [r["step"] for r in watched if r["scored"]] == [2, 6, 8]


def test_a_step_without_a_label_shows_no_direction_and_ends_no_run(
    topology: Topology, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def masked(number: int, batch: Batch) -> Batch:
        return replace(batch, labels_BS=torch.full_like(batch.labels_BS, IGNORE)) if number == 2 else batch

    train(topology, tmp_path, WATCH, changed=masked)
    assert {record.step for record in read_scores(tmp_path / "scores.jsonl")} == {4, 6, 8}
    said = capsys.readouterr()
    assert "step 2 is not scored: the steps to come have not a single token to predict" in said.out + said.err


def test_a_step_that_shows_no_direction_is_told_of_and_not_scored_and_training_goes_on(
    topology: Topology,
    plain: tuple[Path, dict[str, torch.Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real, calls = in_run.next_step_directions, iter(range(100))

    def first_fails(*arguments: Any, **settings: Any) -> Any:
        if next(calls) == 0:
            raise NoDirectionError("the gradients show no direction")
        return real(*arguments, **settings)

    monkeypatch.setattr(in_run, "next_step_directions", first_fails)
    assert alike(train(topology, tmp_path, InRunConfig(every=2, refresh=4, reference_tokens=50)), plain[1])
    assert {record.step for record in read_scores(tmp_path / "scores.jsonl")} == {4, 6, 8}
    scored = [r["step"] for r in read_metrics(tmp_path / METRICS) if r["kind"] == "in_run" and r["scored"]]
    said = capsys.readouterr()
    assert scored == [4, 6, 8] and "step 2 is not scored: " in said.out + said.err


def test_scoring_begins_when_it_is_told_to(topology: Topology, tmp_path: Path) -> None:
    train(topology, tmp_path, WATCH.model_copy(update={"start": 3}))
    assert {record.step for record in read_scores(tmp_path / "scores.jsonl")} == {4, 6, 8}


LAYOUTS = {"DP2": ParallelConfig(), "PP2": ParallelConfig(pp=2), "CP2": ParallelConfig(cp=2)}


def watched_on_ranks(directory: Path, ports: list[int]) -> list[bool]:
    """Whether a watched run is that of nobody watching: DP2 sends gradients and weights behind its passes."""
    found = []
    for (name, parallel), port in zip(LAYOUTS.items(), ports, strict=True):
        with job(parallel, port) as topology:
            config = TRAIN.model_copy(update=dict.fromkeys(("overlap_gradients", "overlap_weights"), name == "DP2"))
            plain = train(topology, directory / f"{name} plain", None, config=config)
            found.append(alike(train(topology, directory / name, GRADIENT, config=config), plain))
            train(topology, directory / f"{name} by muon", WATCH, config=MUON)
    return found


def test_layouts_score_alike_and_train_as_if_nobody_watched(topology: Topology, tmp_path: Path) -> None:
    assert run_ranks(watched_on_ranks, 2, directory=tmp_path, ports=free_ports(len(LAYOUTS))) == [[True] * 3] * 2
    train(topology, tmp_path / "one", GRADIENT)
    train(topology, tmp_path / "one by muon", WATCH, config=MUON)
    for name, by in itertools.product(LAYOUTS, ("", " by muon")):
        expected = list(read_scores(tmp_path / f"one{by}" / "scores.jsonl"))
        found = list(read_scores(tmp_path / f"{name}{by}" / "scores.jsonl"))
        assert [(r.step, r.key, r.tokens) for r in found] == [(r.step, r.key, r.tokens) for r in expected]
        values = [record.scores[DIRECTION] for record in expected]
        # Orthogonalising multiplies what rounding leaves in small singular values.
        near = 2e-5 if by else 1e-6
        assert [record.scores[DIRECTION] for record in found] == pytest.approx(values, rel=1e-3, abs=near)


def test_a_refresh_between_two_scored_steps_is_refused() -> None:
    with pytest.raises(UserError, match=r"refresh: 7 is not a multiple of every \(5\)"):
        load_recipe("smoke", ["pretrain.in_run.refresh=7"])


def test_halves_of_a_run_agree_where_documents_keep_their_order() -> None:
    late = {f"d{i}": DocumentScore(value=float(i), tokens=10) for i in range(12)}
    same = {key: DocumentScore(value=score.value, tokens=30) for key, score in late.items()}
    turned = {key: DocumentScore(value=-score.value, tokens=30) for key, score in late.items()}
    assert agreement_of_halves(same, late) == (pytest.approx(1.0), 12)
    assert agreement_of_halves(turned, late) == (pytest.approx(-1.0), 12)
    assert agreement_of_halves(late, late) == (None, 0)  # nothing early


def test_a_mixture_is_refused_since_its_sources_may_have_documents_of_one_id(
    topology: Topology, tmp_path: Path
) -> None:
    sources = {"organic": corpus(1), "synthetic": corpus(3)}
    loader = TokenLoader(sources, dict.fromkeys(sources, 1.0), SHAPE.seq_len, TRAIN.global_batch, 5)
    watcher = InRunScores(WATCH, tmp_path / "scores.jsonl", {"reference": corpus(2)}, topology)
    with pytest.raises(ValueError, match="unique within one source only"):
        pretrain(build_model(SHAPE, topology), TRAIN, loader, tmp_path, watcher=watcher)
