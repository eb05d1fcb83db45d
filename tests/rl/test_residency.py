"""Models that wait on the host between the phases that read them: the same bits, an error for who asks too early."""

import functools
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from synpro_engine.config import load_config
from synpro_engine.dist import Topology
from synpro_engine.influence import Direction, Estimator, EstimatorConfig, build_estimator
from synpro_engine.influence.directions import weights_of
from synpro_engine.influence.first_order.plain_decoder import plain_logits
from synpro_engine.model.model import Model
from synpro_engine.model.parked import ParkedError
from synpro_engine.reward import Candidate
from synpro_engine.rl.config import TuneConfig
from synpro_engine.rl.policy import prepare_policy
from synpro_engine.sampler.tree import TreeReader, prompt_tree
from synpro_engine.train.metrics import read_metrics
from synpro_engine.train.parking import Parking, Reading


@functools.cache
def toy() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).with_name("toy.py")))


def frozen(topology: Topology) -> Model:
    model = toy()["build"](topology)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def estimator_of(topology: Topology, kind: str) -> Estimator:
    theta = frozen(topology)
    generator = torch.Generator().manual_seed(2)
    tensors = {name: 0.01 * torch.randn(p.shape, generator=generator) for name, p in theta.named_parameters()}
    probe: Model | Direction = Direction(tensors)
    if kind == "two_forward":
        probe = frozen(topology)
        for name, parameter in probe.named_parameters():
            parameter.sub_(tensors[name])
    return build_estimator(load_config(EstimatorConfig, {"estimator": kind}), theta, probe, start_id=30)


class Asked:
    """In the place of the toy's first reward: influence of the text, and what a judge's reader says of it."""

    name, range = "share_a", (-100.0, 100.0)

    def __init__(self, topology: Topology, kind: str) -> None:
        self._estimator, judge = estimator_of(topology, kind), frozen(topology)
        self._reader = TreeReader(judge)
        self.reads = self._estimator.reads() + Reading((judge,))

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        ids = [toy()["Letters"]().encode(candidate.parsed.text) for candidate in candidates]
        values = [score.value for score in self._estimator.score(ids)]
        judged = self._reader.hidden(prompt_tree(ids)).sum(-1).tolist()
        return [10 * value + 0.01 * one for value, one in zip(values, judged, strict=True)]


def numbers(directory: Path) -> list[dict[str, Any]]:
    clocks = ("time", "kind", "moved_bytes", "moved_seconds")
    records = read_metrics(directory / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k not in clocks and not k.startswith("seconds")} for r in records]


WAYS: list[Any] = [
    pytest.param({"train_last_blocks": None, "held_out": {"every": 2, "slices": 2}}, marks=pytest.mark.slow),
    {"train_last_blocks": 2, "refills": 2},
    pytest.param({"train_last_blocks": None, "lora": {"rank": 2}, "importance": {}}, marks=pytest.mark.slow),
    {"train_last_blocks": 2, "algorithm": "ppo", "kl_beta": 0.01},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_tuning_with_parked_models_has_the_same_bits_and_goes_on_after_a_kill(
    topology: Topology, tmp_path: Path, way: dict[str, Any]
) -> None:
    kind = "dot" if way["train_last_blocks"] is None else "two_forward" if "refills" in way else "finite_difference"
    plain = toy()["CONFIG"].model_dump(exclude_unset=True) | {"steps": 4, "checkpoint_every": 2, **way}
    ends = dict[str, Model]()

    def run(name: str, residency: str, kill_after: int | None = None) -> Asked:
        asked, config = Asked(topology, kind), load_config(TuneConfig, {**plain, "residency": residency})
        held_out = toy()["SLICES"][:2] if config.held_out.every else None
        given = {"instead": asked, "reads": asked.reads, "held_out": held_out, "kill_after": kill_after}
        ends[name] = toy()["run"](topology, tmp_path / name, config, **given)[1]
        return asked

    run("resident", "resident")
    asked = run("parked", "parked")
    with pytest.raises(KeyboardInterrupt):
        run("killed", "parked", kill_after=5 if "held_out" in way else 3)
    run("killed", "parked")
    assert numbers(tmp_path / "parked") == numbers(tmp_path / "resident") == numbers(tmp_path / "killed")
    for (name, a), b, c in zip(
        ends["resident"].named_parameters(), ends["parked"].parameters(), ends["killed"].parameters(), strict=True
    ):
        assert torch.equal(a, b) and torch.equal(a, c), name
    moved = [r["moved_bytes"] for r in read_metrics(tmp_path / "parked" / "metrics.jsonl") if r["kind"] == "tune"]
    assert len(moved) == 4 and all(moved)
    judge = sum(parameter.nbytes for parameter in asked.reads.models[-1].parameters())
    # Theta and its direction or probe, or theta and a judge, are brought once a step at least.
    assert min(moved[1:]) >= 3 * judge
    assert all(tensor.numel() for tensor in asked.reads.all_tensors), "all is back at the end"


@pytest.fixture
def models(topology: Topology) -> dict[str, Model]:
    return {"score": frozen(topology), "reference": frozen(topology)}


TOKENS = torch.arange(20).view(2, 10)


def test_a_parked_model_refuses_to_run_and_comes_back_to_the_bit(models: dict[str, Model]) -> None:
    expected, names = models["score"].hidden(TOKENS), list(models["score"].parameters())
    before = weights_of(models["score"])
    parking = Parking({phase: Reading((model,)) for phase, model in models.items()}, [])
    theta = models["score"]
    reader = TreeReader(theta)
    each = sum(parameter.nbytes for parameter in names)
    assert parking.nbytes == 2 * each
    for phase in ("rollout", "reference"):
        parking.needs(phase)
        for ask in (
            lambda: theta.hidden(TOKENS),
            lambda: reader.hidden(prompt_tree([[1, 2]])),
            lambda: plain_logits(theta, TOKENS, torch.Tensor.detach),
            lambda: theta.logprobs_from_hidden(expected, TOKENS),
        ):
            with pytest.raises((ParkedError, ValueError)):
                ask()
        assert not any(weight.untyped_storage().nbytes() for weight in names)
    models["reference"].hidden(TOKENS)
    assert parking.take_counts().bytes == 2 * each + each
    parking.needs("score")
    assert torch.equal(theta.hidden(TOKENS), expected)
    assert all(a is b for a, b in zip(names, theta.parameters(), strict=True))
    assert all(torch.equal(before[name], parameter) for name, parameter in theta.named_parameters())
    with pytest.raises(ParkedError):
        models["reference"].hidden(TOKENS)
    parking.needs("score")
    assert parking.take_counts().bytes == each, "brought once, and what was parked before is not copied again"
    parking.end()
    assert torch.equal(models["reference"].hidden(TOKENS), expected)


def test_what_is_written_while_a_model_is_here_is_parked_too(models: dict[str, Model]) -> None:
    parking, theta = Parking({"score": Reading((models["score"],))}, []), models["score"]
    for _ in range(3):
        parking.needs("rollout")
        parking.needs("score")
        theta.output_weight().mul_(1.5)
        expected = weights_of(theta)
        parking.needs("rollout")
        parking.needs("score")
        assert all(torch.equal(expected[name], parameter) for name, parameter in theta.named_parameters())


@pytest.mark.parametrize("way", [{"train_last_blocks": 1}, {"lora": {"rank": 2}, "train_last_blocks": None}], ids=str)
def test_what_a_reference_shares_with_the_policy_stays(topology: Topology, way: dict[str, Any]) -> None:
    config = load_config(TuneConfig, toy()["CONFIG"].model_dump(exclude_unset=True) | way)
    policy = toy()["build"](topology)
    reference = prepare_policy(policy, config)
    assert reference is not None
    shared = {parameter.data_ptr() for parameter in policy.parameters()}
    own = [parameter for parameter in reference.parameters() if parameter.data_ptr() not in shared]
    parking = Parking({"reference": Reading((reference,))}, policy.parameters())
    assert parking.nbytes == sum(parameter.nbytes for parameter in own)
    parking.needs("rollout")
    policy.hidden(TOKENS)
    parking.needs("reference")
    assert torch.equal(reference.hidden(TOKENS), policy.hidden(TOKENS))


def test_tensors_that_share_memory_share_it_when_they_are_back() -> None:
    whole = torch.arange(12.0)
    row, column, other = whole.view(3, 4)[1], whole.view(3, 4)[:, 2], torch.ones(5)
    parking = Parking({"score": Reading((), (row, column, other)), "reference": Reading((), (other,))}, [])
    assert parking.nbytes == (12 + 5) * 4
    parking.needs("rollout")
    assert not row.numel() and not column.numel() and not other.numel()
    parking.needs("reference")
    assert other.tolist() == [1.0] * 5 and not row.numel()
    parking.needs("score")
    assert row.tolist() == [4.0, 5.0, 6.0, 7.0] and column.tolist() == [2.0, 6.0, 10.0] and other.tolist() == [1.0] * 5
    row[2] = -1.0
    assert column.tolist() == [2.0, -1.0, 10.0]
