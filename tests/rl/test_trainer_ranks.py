"""GRPO over several ranks: the same tuning as in one process, and on from a kill in another layout."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from synpro_engine.config import UserError
from synpro_engine.dist import Layout, ParallelConfig, launched
from synpro_engine.dist.testing import run_ranks
from synpro_engine.model.state import canonical_state
from synpro_engine.rl.config import TuneConfig
from synpro_engine.train.divergence import DivergedError
from synpro_engine.train.metrics import read_metrics

WAYS = runpy.run_path(str(Path(__file__).with_name("algorithms.py")))["WAYS"]


def numbers(directory: Path) -> list[dict[str, Any]]:
    """The records of a run without its clocks."""
    records = read_metrics(directory / "metrics.jsonl")
    left_out = ("time", "kind")
    return [
        # null: a policy's numbers while its critic warms up
        {k: v for k, v in r.items() if k not in left_out and not k.startswith("seconds/") and v is not None}
        for r in records
    ]


def _tune(directory: Path, parallel: ParallelConfig) -> dict[str, Any]:
    """Three steps with everything on that looks across ranks: batch-wide scaling, two updates, ragged batches."""
    toy = runpy.run_path(str(Path(__file__).with_name("toy.py")))
    settings = {"steps": 3, "normalisation": "per_reward", "updates_per_rollout": 2, "micro_batch": 5}
    config = TuneConfig.model_validate(toy["CONFIG"].model_dump() | settings)
    with launched(parallel) as topology:
        _, policy = toy["run"](topology, directory, config)
        weights = {name: tensor.tolist() for name, tensor in canonical_state(policy).items()}
        odd = config.model_copy(update={"prompts_per_step": 3})
        refusal = ""
        if topology.dp.size > 1:
            with pytest.raises(UserError) as fault:
                toy["run"](topology, directory / "odd", odd)
            refusal = str(fault.value)
    return {"weights": weights, "refusal": refusal}


def test_two_data_parallel_ranks_tune_as_one_process_does(tmp_path: Path) -> None:
    alone = _tune(tmp_path / "alone", ParallelConfig())
    both = run_ranks(_tune, 2, directory=tmp_path / "both", parallel=ParallelConfig())
    for ours, theirs in zip(numbers(tmp_path / "both"), numbers(tmp_path / "alone"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    for rank in both:
        assert rank["refusal"].startswith("`tune.toy.prompts_per_step`: 3 cannot be divided by 2")
        for name, value in alone["weights"].items():
            torch.testing.assert_close(torch.tensor(rank["weights"][name]), torch.tensor(value), rtol=1e-3, atol=1e-4)


def _tune_by(directory: Path, ways: list[str], tp: int = 1, *, sequence_parallel: bool = False) -> None:
    """Two steps by each way."""
    helpers = runpy.run_path(str(Path(__file__).with_name("algorithms.py")))
    with launched(ParallelConfig(tp=tp, sequence_parallel=sequence_parallel)) as topology:
        for way in ways:
            helpers["toy"]()["run"](topology, directory / way, helpers["config_of"](way, steps=2))


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("alone")
    _tune_by(directory, WAYS)
    return directory


@pytest.mark.parametrize(
    ("tp", "ranks"),
    [pytest.param(1, 2, marks=pytest.mark.slow), (2, 2), pytest.param(2, 4, marks=pytest.mark.slow)],
    ids=["dp2", "tp2", "tp2dp2"],
)
def test_every_method_tunes_in_a_layout_as_in_one_process(
    one_process: Path, tmp_path: Path, tp: int, ranks: int
) -> None:
    run_ranks(_tune_by, ranks, directory=tmp_path, ways=WAYS, tp=tp)
    for way in WAYS:
        alone, together = numbers(one_process / way), numbers(tmp_path / way)
        for ours, theirs in zip(together, alone, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5), way


def test_adapters_of_ranks_that_split_sequences_end_as_those_of_one_process(one_process: Path, tmp_path: Path) -> None:
    run_ranks(_tune_by, 2, directory=tmp_path, ways=["adapters"], tp=2, sequence_parallel=True)
    alone, together = (
        load_file(directory / "adapters" / "adapter" / "adapter_model.safetensors")
        for directory in (one_process, tmp_path)
    )
    assert alone.keys() == together.keys() and all(tensor.any() for tensor in alone.values())
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def _tune_in_vain(directory: Path) -> None:
    """One step that is skipped, in which groups of all ranks are replaced by those of other slices."""
    helpers = runpy.run_path(str(Path(__file__).with_name("algorithms.py")))
    short = {"sampling": {"max_new_tokens": 2, "top_p": 1.0}, "group_size": 3, "refills": 1}
    with launched(ParallelConfig()) as topology, pytest.raises(DivergedError):
        helpers["toy"]()["run"](topology, directory, helpers["config_of"]("grpo", steps=1, kl_beta=1e300, **short))


def test_a_skipped_step_names_the_slices_that_it_read_on_every_rank(tmp_path: Path) -> None:
    _tune_in_vain(tmp_path / "alone")
    run_ranks(_tune_in_vain, 2, directory=tmp_path / "both")
    alone, both = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("alone", "both"))
    assert alone[0]["refilled_groups"] == both[0]["refilled_groups"] > 0
    assert [record["documents"] for record in both if record["kind"] == "skipped"] == [alone[1]["documents"]]


def _tune_on(directory: Path, *, killed: bool) -> None:
    """Three steps; on two ranks the first by data parallelism, and what is left after a kill by tensor parallelism."""
    toy = runpy.run_path(str(Path(__file__).with_name("toy.py")))
    config = TuneConfig.model_validate(toy["CONFIG"].model_dump() | {"steps": 3, "checkpoint_every": 1})
    with launched(ParallelConfig()) as place:
        if killed:
            with pytest.raises(KeyboardInterrupt):
                toy["run"](place, directory, config, kill_after=1)
            place = place.divided(Layout.of(ParallelConfig(tp=2), place.world_size))
        toy["run"](place, directory, config)


def test_tuning_that_was_killed_goes_on_in_another_layout(tmp_path: Path) -> None:
    _tune_on(tmp_path / "alone", killed=False)
    run_ranks(_tune_on, 2, directory=tmp_path / "both", killed=True)
    expected = numbers(tmp_path / "alone")
    assert [record["step"] for record in expected] == [1, 2, 3]
    for ours, theirs in zip(numbers(tmp_path / "both"), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
