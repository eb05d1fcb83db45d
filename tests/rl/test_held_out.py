"""The reward on slices that never train: training is as without it, and kills and layouts change nothing."""

import functools
import runpy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from synpro_engine.config import UserError
from synpro_engine.cycle import load_recipe
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.dist.testing import run_ranks
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.reward import Candidate, Composer
from synpro_engine.reward.facts import KINDS, plant_facts
from synpro_engine.rl.config import HeldOutConfig, TuneConfig
from synpro_engine.rl.held_out import differences, paired_difference
from synpro_engine.rl.policy import prepare_policy
from synpro_engine.rl.trainer import tune
from synpro_engine.synth import Parsed, Prompter, Reject, Slice
from synpro_engine.train.metrics import read_metrics

TEXTS = ("five", "six", "seven", "eight", "nine")
SLICES = [Slice(doc_id=f"held{i}", start=0, end=len(t), text=t) for i, t in enumerate(TEXTS)]


@functools.cache
def toy() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).with_name("toy.py")))


def config(steps: int = 5, held_out: dict[str, int] | None = None, **settings: Any) -> TuneConfig:
    # Without facts, which are longer than the toy's window.
    measured = {"facts": 0} | ({"every": 2, "slices": 5, "members": 3} if held_out is None else held_out)
    given = {"steps": steps, "checkpoint_every": 2, "held_out": measured, **settings}
    return TuneConfig.model_validate(toy()["CONFIG"].model_dump() | given)


def records(directory: Path, kind: str) -> list[dict[str, Any]]:
    """Without their clocks."""
    return [
        {name: value for name, value in record.items() if name != "time" and not name.startswith("seconds")}
        for record in read_metrics(directory / "metrics.jsonl")
        if record["kind"] == kind
    ]


WAYS = {
    "plain": {},
    "all that counts": {"refills": 2, "sampler": {"speculate": 3}, "judge_canary": {"every": 2, "texts": 4}},
    "adapters": {"lora": {"rank": 4}},
    "critic": {"algorithm": "ppo", "baseline": "critic", "scale": "batch", "critic": {}, "minibatches": 4},
}


@pytest.mark.parametrize("way", WAYS)
def test_training_is_to_the_last_bit_what_it_is_without(topology: Topology, tmp_path: Path, way: str) -> None:
    _, measured = toy()["run"](topology, tmp_path / "measured", config(**WAYS[way]), held_out=SLICES)
    _, alone = toy()["run"](topology, tmp_path / "alone", config(held_out={}, **WAYS[way]))
    for kind in ("tune", "canary"):
        assert records(tmp_path / "measured", kind) == records(tmp_path / "alone", kind)
    for (name, a), (_, b) in zip(measured.named_parameters(), alone.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    found = records(tmp_path / "measured", "held_out")
    assert [record["step"] for record in found] == [0, 2, 4, 5] and records(tmp_path / "alone", "held_out") == []
    assert all((record["slices"], record["completions"]) == (5, 15) for record in found)


def test_a_measurement_is_of_the_weights_and_says_how_the_reward_changed_by_slice(
    topology: Topology, tmp_path: Path
) -> None:
    toy()["run"](topology, tmp_path, config(12), held_out=SLICES)
    first, *others = records(tmp_path, "held_out")
    assert "difference" not in first
    for record in others:
        assert record["reward"] == pytest.approx(record["reward/share_a"] + 0.25 * record["reward/share_e"])
        for part in ("", "/share_a", "/share_e"):
            change = record[f"reward{part}"] - first[f"reward{part}"]
            assert record[f"difference{part}"] == pytest.approx(change)
            assert record[f"low{part}"] <= record[f"difference{part}"] <= record[f"high{part}"]
        assert record["length"] > 0.0 and 0.0 <= record["finished"] <= 1.0
    assert others[-1]["low"] > 0.0, "tuning raises the reward of slices that it never saw"


def test_a_policy_that_learns_nothing_is_measured_alike_each_time(topology: Topology, tmp_path: Path) -> None:
    still = toy()["CONFIG"].optimizer.model_copy(update={"lr": 1e-30})
    toy()["run"](topology, tmp_path, config(optimizer=still.model_dump()), held_out=SLICES)
    found = records(tmp_path, "held_out")
    assert len({(record["reward"], record["length"]) for record in found}) == 1
    assert all(record["difference"] == record["low"] == record["high"] == 0.0 for record in found[1:])


@pytest.mark.parametrize("calls", [1, 2, 4, 6, 8])
def test_a_killed_run_measures_what_it_would_have_and_keeps_the_first(
    topology: Topology, tmp_path: Path, calls: int
) -> None:
    """calls: scores before the kill; the first is the measurement before training."""
    toy()["run"](topology, tmp_path / "whole", config(7), held_out=SLICES)
    with pytest.raises(KeyboardInterrupt):
        toy()["run"](topology, tmp_path / "killed", config(7), held_out=SLICES, kill_after=calls)
    toy()["run"](topology, tmp_path / "killed", config(7), held_out=SLICES)
    for kind in ("held_out", "tune"):
        assert records(tmp_path / "killed", kind) == records(tmp_path / "whole", kind)
    assert [record["step"] for record in records(tmp_path / "whole", "held_out")] == [0, 2, 4, 6, 7]


def test_what_was_not_measured_before_training_is_never_taken_for_it(
    topology: Topology, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        toy()["run"](topology, tmp_path, config(6, held_out={}), kill_after=3)
    toy()["run"](topology, tmp_path, config(6), held_out=SLICES)
    found = records(tmp_path, "held_out")
    assert [record["step"] for record in found] == [4, 6] and not any("difference" in record for record in found)
    assert "`tune.toy.held_out`: was not measured before training" in capsys.readouterr().err


@pytest.mark.parametrize("between", [{}, {"every": 2, "slices": 2, "members": 3}], ids=["off", "other slices"])
def test_differences_are_to_the_same_slices_also_after_others_or_none_in_between(
    topology: Topology, tmp_path: Path, capsys: pytest.CaptureFixture[str], between: dict[str, int]
) -> None:
    toy()["run"](topology, tmp_path / "whole", config(8), held_out=SLICES)
    for measured, kill_after in ((None, 4), (between, 3)):
        with pytest.raises(KeyboardInterrupt):
            toy()["run"](
                topology, tmp_path / "changed", config(8, held_out=measured), held_out=SLICES, kill_after=kill_after
            )
    told = capsys.readouterr().err
    assert ("`tune.toy.held_out`: other slices were measured before training" in told) == bool(between)
    toy()["run"](topology, tmp_path / "changed", config(8), held_out=SLICES)
    whole, changed = (records(tmp_path / name, "held_out") for name in ("whole", "changed"))
    assert changed[-1] == whole[-1] and changed[-1]["difference"] is not None
    others = [record for record in changed if record["slices"] != len(SLICES)]
    assert bool(others) == bool(between) and not any("difference" in record for record in others)
    assert "was not measured" not in capsys.readouterr().err


def _measured(directory: Path, tp: int) -> None:
    helpers = runpy.run_path(str(Path(__file__).with_name("toy.py")))
    settings = {"steps": 2, "held_out": {"every": 1, "slices": 3, "members": 3, "facts": 0}}
    held_out = [Slice(doc_id=t, start=0, end=len(t), text=t) for t in TEXTS[:3]]
    with launched(ParallelConfig(tp=tp)) as topology:
        chosen = TuneConfig.model_validate(helpers["CONFIG"].model_dump() | settings)
        helpers["run"](topology, directory, chosen, held_out=held_out)


@pytest.mark.parametrize(
    ("tp", "ranks"), [(1, 2), pytest.param(2, 2, marks=pytest.mark.slow), pytest.param(1, 4, marks=pytest.mark.slow)]
)
def test_ranks_share_the_slices_and_find_what_one_process_finds(tmp_path: Path, tp: int, ranks: int) -> None:
    """Three slices: an odd number over two ranks, and none for one of four."""
    run_ranks(_measured, 1, directory=tmp_path / "alone", tp=1)
    run_ranks(_measured, ranks, directory=tmp_path / "ranks", tp=tp)
    together, alone = (records(tmp_path / name, "held_out") for name in ("ranks", "alone"))
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.pop("kind") == theirs.pop("kind")
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
        assert (ours["slices"], ours["completions"]) == (3, 9)


def test_fewer_slices_than_wanted_are_told_and_none_is_refused_by_its_key(
    topology: Topology, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"every": 2, "slices": 9, "members": 1}
    toy()["run"](topology, tmp_path / "few", config(2, more), held_out=SLICES)
    told = [line for line in capsys.readouterr().err.splitlines() if "held_out" in line]
    assert told == ["`tune.toy.held_out.slices`: there are 5 that fit, in place of 9"]
    assert records(tmp_path / "few", "held_out")[0]["slices"] == 5
    long = [Slice(doc_id="long", start=0, end=90, text="e" * 90)]
    for nothing in ([], long):
        with pytest.raises(UserError, match=rf"`tune.toy.held_out`: none of {len(nothing)} slices"):
            toy()["run"](topology, tmp_path / "none", config(2), held_out=nothing)


TOLD = [plant_facts(piece.text, piece.key) for piece in SLICES]


def _telling(raw: str, *, min_chars: int, finished: bool) -> Parsed:
    """Of whatever was written: the first slice with its facts; a third of the answers is refused."""
    assert TOLD[0] is not None
    ok = sum(map(ord, raw)) % 3 > 0
    return Parsed(ok=ok, text=TOLD[0].text if ok else "", reason=None if ok else Reject.EMPTY)


def _with_facts(directory: Path, telling: bool, ranks: int = 1) -> None:
    helpers = runpy.run_path(str(Path(__file__).with_name("toy.py")))
    measured = {"every": 2, "slices": 5, "members": 3, "facts": 3}
    chosen = TuneConfig.model_validate(helpers["CONFIG"].model_dump() | {"steps": 3, "held_out": measured})
    operation = replace(helpers["OPERATION"], parser=_telling) if telling else helpers["OPERATION"]
    with launched(ParallelConfig()) as topology:
        shape = ModelConfig(
            family="llama", layers=3, d_model=32, heads=4, kv_heads=2, ffn=48, vocab_size=36, seq_len=160
        )
        policy = build_model(shape, topology, seed=5)
        helpers["run"](topology, directory, chosen, policy=policy, operation=operation, held_out=SLICES)


def test_facts_that_completions_keep_are_counted_over_those_of_the_right_form(tmp_path: Path) -> None:
    run_ranks(_with_facts, 1, directory=tmp_path / "alone", telling=True)
    found = records(tmp_path / "alone", "held_out")
    assert [record["step"] for record in found] == [0, 2, 3]
    for record in found:
        # All tell the facts of the first of three slices: those of others they lack, but for a name that two have.
        assert 0 < record["facts_texts"] < 9 and 0.0 < record["facts/number"] == record["facts/date"] < 1.0
        assert record["facts"] == pytest.approx(sum(record[f"facts/{kind}"] for kind in KINDS) / 3)
    run_ranks(_with_facts, 2, directory=tmp_path / "ranks", telling=True)
    assert [r["facts"] for r in records(tmp_path / "ranks", "held_out")] == pytest.approx([r["facts"] for r in found])
    run_ranks(_with_facts, 1, directory=tmp_path / "noise", telling=False)
    assert all(record["facts"] == 0.0 for record in records(tmp_path / "noise", "held_out"))


class Sometimes:
    """A judge without an answer about some sources."""

    name, range = "judge", (0.0, 1.0)

    def __init__(self, *silent: str) -> None:
        self._silent = silent

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        return [float("nan") if c.source in self._silent else 0.5 for c in candidates]


@pytest.mark.parametrize(("silent", "left"), [(TEXTS[:2], 3), (TEXTS, 0)])
def test_slices_without_a_reward_are_left_out_as_groups_are(
    topology: Topology, tmp_path: Path, silent: tuple[str, ...], left: int
) -> None:
    chosen, policy = config(2, bad_reward="drop_group"), toy()["build"](topology)
    arguments = {
        "policy": policy, "reference_policy": prepare_policy(policy, chosen), "slices": toy()["SLICES"],
        "prompter": Prompter(toy()["OPERATION"], toy()["Letters"](), toy()["PROMPT"]), "held_out": SLICES,
        "scorer": Composer([Sometimes(*silent)], {"toy": {"judge": 1.0}}), "reward_weights": {"judge": 1.0},
        "directory": tmp_path, "seed": 1,
    }  # fmt: skip
    tune(chosen, **arguments)
    first, last = records(tmp_path, "held_out")
    assert first["slices"] == last["slices"] == left
    assert 0.0 < last["reward"] <= 0.5 if left else last["reward"] is None
    assert ("difference" in last) == (left > 0)


def test_intervals_are_those_of_student() -> None:
    # Student's own (1908): additional hours of sleep of ten patients. 2.262 is the quantile of 9 degrees of freedom.
    hours = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    mean, low, high = paired_difference(hours)
    assert mean == pytest.approx(1.58) and (low, high) == pytest.approx((0.7001, 2.4599), abs=2e-3)
    for count, quantile in ((3, 4.303), (4, 3.182), (8, 2.365), (30, 2.045)):
        values = [float(n % 2) for n in range(count)]
        mean, low, high = paired_difference(values)
        spread = torch.tensor(values).std().item() / count**0.5
        assert (high - mean) / spread == pytest.approx(quantile, rel=1e-2 if count == 3 else 2e-3)
    assert str(paired_difference([1.0])) == "Paired(difference=1.0, low=nan, high=nan)"


def test_only_slices_that_both_measurements_have_are_compared() -> None:
    before = {"a": {"reward": 1.0, "length": 4.0}, "b": {"reward": 2.0, "length": 4.0}}
    now = {"b": {"reward": 5.0, "length": 9.0}, "c": {"reward": 0.0, "length": 1.0}}
    assert differences(now, before)["difference"] == 3.0
    assert differences({"c": now["c"]}, before) == {}


def test_measurements_are_before_on_the_way_and_after_and_undo_no_stage() -> None:
    assert HeldOutConfig(every=4).due(10) == [0, 4, 8, 10] and HeldOutConfig(every=4).due(8) == [0, 4, 8]
    assert HeldOutConfig().due(8) == [] and HeldOutConfig(every=9).due(2) == [0, 2]
    recipe = load_recipe("smoke", ["tune.rephrase.held_out={every: 3, slices: 5, members: 1, facts: 2}"])
    other = load_recipe("smoke", ["tune.rephrase.held_out.every=0"])
    assert recipe.tune["rephrase"].recorded() == other.tune["rephrase"].recorded()
