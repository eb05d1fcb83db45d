"""Influence by two forwards: exact masking, one computation per sequence, and what the probe does."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from synpro_engine.config import UserError
from synpro_engine.data import TokenCorpus, TokenLoader
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.dist.testing import run_ranks
from synpro_engine.influence import ProbeConfig, TextInfluence, TwoForwardInfluence, run_probe
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.model import Model
from synpro_engine.train.checkpoint import load_checkpoint, save_checkpoint
from synpro_engine.train.config import TrainConfig
from synpro_engine.train.optimizer_config import OptimizerConfig
from synpro_engine.train.trainer import pretrain

CONFIG = ModelConfig(family="olmo2", layers=2, d_model=32, heads=4, kv_heads=2, ffn=64, vocab_size=64, seq_len=16)
PROBE = ProbeConfig(steps=3, lr=3e-3, global_batch=4, micro_batch=2)
START = 0


def _sequences(seed: int, count: int) -> list[list[int]]:
    """Arithmetic walks over the vocabulary, of 1 to 40 tokens: there is something to learn in them."""
    rng = np.random.default_rng(seed)
    walks = [(rng.integers(63) + np.arange(rng.integers(1, 41)) * (seed % 3 + 1)) % 63 + 1 for _ in range(count)]
    return [walk.tolist() for walk in walks]


def _loader(seed: int, topology: Topology) -> TokenLoader:
    texts = [[*walk, START] for walk in _sequences(seed, 40)]
    corpus = TokenCorpus(
        tokens=np.concatenate(texts).astype(np.int32),
        offsets=np.cumsum([0, *map(len, texts)]),
        eos_id=START,
        text_bytes=1,
        fingerprint="walks",
        read_ids=lambda: [str(i) for i in range(40)],
    )
    dp = topology.dp
    return TokenLoader({"text": corpus}, {"text": 1.0}, CONFIG.seq_len, 4, seed, dp_rank=dp.rank, dp_size=dp.size)


def _pretrained(topology: Topology, directory: Path) -> Path:
    settings = OptimizerConfig(lr=1e-2)
    config = TrainConfig(
        max_steps=6, global_batch=4, micro_batch=2, optimizer=settings, eval_every=0, tensorboard=False
    )
    return pretrain(build_model(CONFIG, topology, seed=3), config, _loader(1, topology), directory).checkpoint


def _pair(theta: Path, topology: Topology, config: ProbeConfig = PROBE) -> tuple[Model, Model]:
    before, after = build_model(CONFIG, topology, seed=None), build_model(CONFIG, topology, seed=None)
    load_checkpoint(theta, before)
    run_probe(theta, after, _loader(2, topology), config)
    return before, after


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as here:
        yield here


@pytest.fixture(scope="module")
def theta(topology: Topology, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _pretrained(topology, tmp_path_factory.mktemp("theta"))


@pytest.fixture(scope="module")
def pair(topology: Topology, theta: Path) -> tuple[Model, Model]:
    return _pair(theta, topology)


def _loss(model: Model, ids: list[int]) -> float:
    """Mean cross-entropy of one sequence, from plain logits in float64, window by window."""
    inputs, total = [START, *ids[:-1]], 0.0
    for at in range(0, len(ids), CONFIG.seq_len):
        window, targets = torch.tensor([inputs[at : at + 16]]), torch.tensor(ids[at : at + 16])
        with torch.no_grad():
            logits = model.hidden(window)[0].double() @ model.output_weight().double().T
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    return total / len(ids)


def test_a_score_is_the_difference_of_mean_cross_entropies(pair: tuple[Model, Model]) -> None:
    sequences = _sequences(5, 6)
    for ids, score in zip(sequences, TwoForwardInfluence(*pair, start_id=START).score(sequences), strict=True):
        assert score.tokens == len(ids)
        assert score.loss == pytest.approx(_loss(pair[0], ids), rel=1e-6)
        assert score.value == pytest.approx(score.loss - _loss(pair[1], ids), abs=1e-6)
        assert sum(score.shares) == pytest.approx(score.value, abs=1e-9)


def test_scores_do_not_depend_on_batch_mates_order_or_padding(pair: tuple[Model, Model]) -> None:
    sequences = _sequences(6, 9)
    alone = [TwoForwardInfluence(*pair, start_id=START).score([ids])[0] for ids in sequences]
    together = TwoForwardInfluence(*pair, start_id=START, micro_batch=9).score(sequences)
    backwards = TwoForwardInfluence(*pair, start_id=START, micro_batch=4).score(sequences[::-1])[::-1]
    for one, *others in zip(alone, together, backwards, strict=True):
        for other in others:
            assert other.value == pytest.approx(one.value, abs=1e-6)
            assert other.shares == pytest.approx(one.shares, abs=1e-6)


def test_what_the_probe_learnt_has_positive_influence(pair: tuple[Model, Model]) -> None:
    influence = TwoForwardInfluence(*pair, start_id=START)
    reference = np.mean([score.value for score in influence.score(_sequences(2, 20))])
    elsewhere = np.mean([score.value for score in influence.score(_sequences(1, 20))])
    assert reference > 0 and reference > elsewhere


def test_each_distinct_sequence_goes_through_the_models_once(pair: tuple[Model, Model]) -> None:
    influence = TwoForwardInfluence(*pair, start_id=START)
    a, b = _sequences(7, 2)
    first = influence.score([a, b, a, []])
    assert influence.forwards == 3 and first[0] == first[2] and first[3].value == 0.0
    assert influence.score([b]) == [first[1]] and influence.forwards == 3


def test_changed_weights_make_cached_scores_an_error(topology: Topology, theta: Path) -> None:
    before, after = _pair(theta, topology)
    influence = TwoForwardInfluence(before, after, start_id=START)
    influence.score(_sequences(8, 1))
    run_probe(theta, after, _loader(2, topology), PROBE.model_copy(update={"steps": 1}))
    with pytest.raises(RuntimeError, match="stale"):
        influence.score(_sequences(8, 1))


def test_momentum_kept_or_not_gives_another_displacement(topology: Topology, theta: Path) -> None:
    kept, fresh = (
        _pair(theta, topology, PROBE.model_copy(update={"keep_momentum": keep}))[1] for keep in (True, False)
    )
    assert any(not torch.equal(a, b) for a, b in zip(kept.parameters(), fresh.parameters(), strict=True))


def test_momentum_cannot_be_kept_from_weights_alone(topology: Topology, theta: Path, tmp_path: Path) -> None:
    model = build_model(CONFIG, topology, seed=3)
    save_checkpoint(tmp_path / "bare", model)
    with pytest.raises(UserError, match="no optimizer state"):
        run_probe(tmp_path / "bare", build_model(CONFIG, topology, seed=None), _loader(2, topology), PROBE)


def _scores_in(parallel: ParallelConfig, theta: Path, probe: Path) -> tuple[list[float], list[float]]:
    """Scores from the stored probe, and from a probe made in this layout."""
    with launched(parallel) as topology:
        before, after = _pair(theta, topology)
        stored = build_model(CONFIG, topology, seed=None)
        load_checkpoint(probe, stored)
        pairs = ((before, stored), (before, after))
        scores = [TwoForwardInfluence(*pair, start_id=START).score(_sequences(9, 5)) for pair in pairs]
        return [score.value for score in scores[0]], [score.value for score in scores[1]]


@pytest.mark.parametrize(
    "parallel", [ParallelConfig(tp=2), ParallelConfig(pp=2), ParallelConfig()], ids=["TP2", "PP2", "DP2"]
)
def test_layouts_give_the_scores_of_one_process(
    parallel: ParallelConfig, pair: tuple[Model, Model], theta: Path, tmp_path: Path
) -> None:
    expected = [score.value for score in TwoForwardInfluence(*pair, start_id=START).score(_sequences(9, 5))]
    save_checkpoint(tmp_path / "probe", pair[1])
    for stored, walked in run_ranks(_scores_in, 2, parallel=parallel, theta=theta, probe=tmp_path / "probe"):
        assert stored == pytest.approx(expected, abs=1e-6)
        # AdamW divides by the root of tiny second moments, which magnifies the layouts' rounding a little.
        assert walked == pytest.approx(expected, abs=1e-4)


def test_ids_pass_as_they_are_only_between_equal_tokenizers(pair: tuple[Model, Model]) -> None:
    spelt, other = _sequences(11, 2)

    def encode(text: str) -> list[int]:
        return other if text == "spelt" else spelt

    influence = TwoForwardInfluence(*pair, start_id=START)
    by_ids, by_text = (score.value for score in influence.score([spelt, other]))
    assert by_ids != by_text
    same, different = (TextInfluence(influence, encode, same_tokenizer=flag) for flag in (True, False))
    assert same(["spelt", "cut"], [spelt, None]) == [by_ids, by_ids]
    assert different(["spelt", "cut"], [spelt, None]) == [by_text, by_ids]
