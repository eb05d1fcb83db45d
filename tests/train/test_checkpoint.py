"""Checkpoints: whole or not at all, bitwise, safe to read, and refused where they do not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from synpro_engine.config import UserError, write_manifest
from synpro_engine.data import Batch
from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model, freeze_but_last
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.model import Model
from synpro_engine.train import checkpoint
from synpro_engine.train.checkpoint import checkpoint_model_config, load_checkpoint, save_checkpoint
from synpro_engine.train.checkpoint_directory import newest_checkpoint, prune_checkpoints, step_path
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.optimizer_config import OptimizerConfig, ScheduleConfig

OPTIMIZER = OptimizerConfig(lr=1e-2)
MUON = OPTIMIZER.model_copy(update={"name": "muon"})


def steps(engine: Engine, first: int, last: int) -> list[object]:
    found = []
    for seed in range(first, last):
        ids = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(seed))
        found.append(engine.step([Batch(ids[:, :-1], ids[:, 1:])], LanguageModelLoss(1e-4), denominator=64.0))
    return found


def state_of(engine: Engine) -> list[Tensor]:
    moments = engine.optimizer.chained_optimizers[0].optimizer.state.values()
    return [*engine.model.parameters(), *(tensor for state in moments for tensor in state.values())]


def same_bits(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trainable", [None, 1])
@pytest.mark.parametrize("optimizer", [OPTIMIZER, MUON], ids=["adamw", "muon"])
def test_a_loaded_engine_goes_on_bit_for_bit(
    topology: Topology,
    shape: ModelConfig,
    tmp_path: Path,
    dtype: torch.dtype,
    trainable: int | None,
    optimizer: OptimizerConfig,
) -> None:
    schedule = ScheduleConfig(warmup_steps=5)
    model, other = (build_model(shape, topology, dtype=dtype, seed=seed) for seed in (0, 9))
    if trainable is not None:
        freeze_but_last(model, trainable)
        freeze_but_last(other, trainable)
    first = Engine(model, optimizer, schedule=schedule)
    steps(first, 0, 2)
    save_checkpoint(tmp_path / "c", first, {"note": [1, "two"]})
    whole = steps(first, 2, 4)
    second = Engine(other, optimizer, schedule=schedule)
    assert load_checkpoint(tmp_path / "c", other, second) == {"note": [1, "two"]}
    assert steps(second, 2, 4) == whole
    assert same_bits(state_of(first), state_of(second))


def test_each_parameter_counts_its_own_steps_after_loading(
    topology: Topology, shape: ModelConfig, tmp_path: Path
) -> None:
    """Megatron gives all of them one tensor, which each then advances: the bias correction would run away."""
    engine = Engine(build_model(shape, topology), OPTIMIZER)
    steps(engine, 0, 2)
    save_checkpoint(tmp_path / "c", engine)
    load_checkpoint(tmp_path / "c", engine.model, engine)
    counts = [state["step"] for state in engine.optimizer.chained_optimizers[0].optimizer.state.values()]
    assert len({count.data_ptr() for count in counts}) == len(counts) > 1
    assert {count.item() for count in counts} == {2.0}


def test_an_engine_that_has_not_stepped_can_be_saved(topology: Topology, shape: ModelConfig, tmp_path: Path) -> None:
    first = Engine(build_model(shape, topology), OPTIMIZER)
    save_checkpoint(tmp_path / "c", first)
    second = Engine(build_model(shape, topology, seed=3), OPTIMIZER)
    load_checkpoint(tmp_path / "c", second.model, second)
    assert steps(first, 0, 2) == steps(second, 0, 2)


def test_weights_alone_can_be_taken_from_an_engine(topology: Topology, shape: ModelConfig, tmp_path: Path) -> None:
    engine = Engine(build_model(shape, topology), OPTIMIZER)
    steps(engine, 0, 2)
    save_checkpoint(tmp_path / "c", engine)
    plain = build_model(shape, topology, seed=None)
    load_checkpoint(tmp_path / "c", plain)
    assert same_bits(list(plain.parameters()), list(engine.model.parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_its_state_the_optimizer_starts_afresh_from_the_loaded_weights(
    topology: Topology, shape: ModelConfig, tmp_path: Path, dtype: torch.dtype
) -> None:
    trained = Engine(build_model(shape, topology, dtype=dtype), OPTIMIZER)
    steps(trained, 0, 2)
    save_checkpoint(tmp_path / "c", trained)
    before = build_model(shape, topology, dtype=dtype, seed=None)
    load_checkpoint(tmp_path / "c", before)
    loaded_first = Engine(before, OPTIMIZER)
    model = build_model(shape, topology, dtype=dtype, seed=4)
    built_first = Engine(model, OPTIMIZER)
    load_checkpoint(tmp_path / "c", model, built_first, optimizer_state=False)
    assert built_first.step_index == 0
    assert steps(loaded_first, 2, 4) == steps(built_first, 2, 4)


def test_this_runs_settings_win_over_those_of_the_run_that_saved(
    topology: Topology, shape: ModelConfig, tmp_path: Path
) -> None:
    saved = Engine(build_model(shape, topology), OPTIMIZER)
    steps(saved, 0, 1)
    save_checkpoint(tmp_path / "c", saved)
    wanted = OptimizerConfig(lr=5e-3, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.3)
    engine = Engine(build_model(shape, topology), wanted)
    load_checkpoint(tmp_path / "c", engine.model, engine)
    assert steps(engine, 1, 2)[0].lr == 5e-3  # pyright: ignore[reportAttributeAccessIssue]
    for group in engine.optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (5e-3, (0.8, 0.9), 1e-6)
        assert group["weight_decay"] == 0.3 * group["wd_mult"]


@pytest.mark.parametrize(("saved", "wanted"), [(OPTIMIZER, MUON), (MUON, OPTIMIZER)], ids=["adamw", "muon"])
def test_another_optimizer_s_state_is_refused_by_name_and_its_weights_are_not(
    topology: Topology, shape: ModelConfig, tmp_path: Path, saved: OptimizerConfig, wanted: OptimizerConfig
) -> None:
    trained = Engine(build_model(shape, topology), saved)
    steps(trained, 0, 1)
    save_checkpoint(tmp_path / "c", trained)
    model = build_model(shape, topology, seed=5)
    engine = Engine(model, wanted)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(UserError, match=f"holds the state of {saved.name}, but `optimizer.name` is {wanted.name}"):
        load_checkpoint(tmp_path / "c", model, engine)
    assert same_bits(before, list(model.parameters()))
    load_checkpoint(tmp_path / "c", model, engine, optimizer_state=False)
    assert same_bits(list(model.parameters()), list(trained.model.parameters()))


def test_a_checkpoint_of_before_there_were_two_optimizers_is_adamw_s(
    topology: Topology, shape: ModelConfig, tmp_path: Path
) -> None:
    engine = Engine(build_model(shape, topology), OPTIMIZER)
    steps(engine, 0, 1)
    save_checkpoint(tmp_path / "c", engine)
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    description = manifest["config"] | {"optimizer": True}
    (tmp_path / "c" / "manifest.json").unlink()
    write_manifest(tmp_path / "c", "checkpoint", description, {}, None)
    load_checkpoint(tmp_path / "c", engine.model, engine)
    with pytest.raises(UserError, match="holds the state of adamw"):
        load_checkpoint(tmp_path / "c", engine.model, Engine(engine.model, MUON))


def test_a_checkpoint_of_another_shape_names_both(topology: Topology, shape: ModelConfig, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", build_model(shape, topology))
    assert checkpoint_model_config(tmp_path / "c") == shape
    other = build_model(shape.model_copy(update={"layers": 3, "ffn": 64}), topology)
    with pytest.raises(UserError, match="another model: `layers` is 2 there, 3 here"):
        load_checkpoint(tmp_path / "c", other)
    longer = build_model(shape.model_copy(update={"seq_len": 32}), topology)
    load_checkpoint(tmp_path / "c", longer)  # no tensor depends on it


def test_what_is_missing_is_told(topology: Topology, shape: ModelConfig, tmp_path: Path) -> None:
    model = build_model(shape, topology)
    with pytest.raises(UserError, match="nowhere: not a finished artifact"):
        load_checkpoint(tmp_path / "nowhere", model)
    save_checkpoint(tmp_path / "c", model)
    with pytest.raises(UserError, match="no optimizer state"):
        load_checkpoint(tmp_path / "c", model, Engine(model, OPTIMIZER))
    (tmp_path / "corpus").mkdir()
    write_manifest(tmp_path / "corpus", "corpus", {}, {}, None)
    with pytest.raises(UserError, match="is a corpus, not a checkpoint"):
        load_checkpoint(tmp_path / "corpus", model)


def test_a_checkpoint_in_another_format_is_refused_by_one_line(
    topology: Topology, shape: ModelConfig, tmp_path: Path
) -> None:
    model = build_model(shape, topology)
    save_checkpoint(tmp_path / "c", model)
    (tmp_path / "c" / "manifest.json").unlink()
    write_manifest(tmp_path / "c", checkpoint.KIND, {"model": shape.model_dump(mode="json")}, {}, None)
    with pytest.raises(UserError, match="of another version of the engine"):
        load_checkpoint(tmp_path / "c", model)


def test_equal_states_have_equal_files(topology: Topology, shape: ModelConfig, tmp_path: Path) -> None:
    engine = Engine(build_model(shape, topology), OPTIMIZER)
    for name in "ab":
        save_checkpoint(tmp_path / name, engine)
    one, two = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in "ab")
    assert one["content_hash"] == two["content_hash"] and one["files"] == two["files"]


def test_optimizer_state_of_other_parameters_is_refused(topology: Topology, shape: ModelConfig, tmp_path: Path) -> None:
    few = build_model(shape, topology)
    freeze_but_last(few, 1)
    save_checkpoint(tmp_path / "c", Engine(few, OPTIMIZER))
    all_of_them = Engine(build_model(shape, topology), OPTIMIZER)
    with pytest.raises(UserError, match="does not fit"):
        load_checkpoint(tmp_path / "c", all_of_them.model, all_of_them)


@pytest.mark.parametrize("name", ["state/.metadata", "extra.json", "state/__0_0.distcp"])
def test_a_damaged_file_is_noticed_before_anything_is_loaded(
    topology: Topology, shape: ModelConfig, tmp_path: Path, name: str
) -> None:
    model = build_model(shape, topology)
    save_checkpoint(tmp_path / "c", model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    data = bytearray((tmp_path / "c" / name).read_bytes())
    data[len(data) // 2] ^= 0x55
    (tmp_path / "c" / name).write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(tmp_path / "c", model)
    assert same_bits(before, list(model.parameters()))


def test_an_interrupted_save_leaves_the_old_checkpoint(
    topology: Topology, shape: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = build_model(shape, topology, seed=1), build_model(shape, topology, seed=2)
    save_checkpoint(tmp_path / "c", first, {"by": 1})

    def full_disk(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_artifact_manifest", full_disk)
    with pytest.raises(UserError, match=r"cannot be written .*No space left"):
        save_checkpoint(tmp_path / "c", second, {"by": 2})
    monkeypatch.undo()
    model: Model = build_model(shape, topology, seed=None)
    assert load_checkpoint(tmp_path / "c", model) == {"by": 1}
    assert same_bits(list(model.parameters()), list(first.parameters()))
    save_checkpoint(tmp_path / "c", second, {"by": 2})
    assert load_checkpoint(tmp_path / "c", model) == {"by": 2}


def test_a_place_that_cannot_be_written_is_a_user_error(topology: Topology, shape: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "c", build_model(shape, topology))


def test_the_newest_complete_checkpoints_are_kept(topology: Topology, shape: ModelConfig, tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none", topology) is None
    model = build_model(shape, topology)
    for step in (5, 10, 200):
        save_checkpoint(step_path(tmp_path, step), model, {"step": step})
    (tmp_path / "step-00000300.partial" / "state").mkdir(parents=True)  # killed while saving
    (tmp_path / "step-00000400" / "state").mkdir(parents=True)  # the rest of a copy or removal
    (tmp_path / "step-00000003.removing" / "state").mkdir(parents=True)  # killed while removing
    assert newest_checkpoint(tmp_path, topology) == step_path(tmp_path, 200)
    prune_checkpoints(tmp_path, 2, topology)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000010", "step-00000200", "step-00000400",
    ]  # fmt: skip


def test_a_kill_while_checkpoints_are_removed_does_not_block_the_run(
    topology: Topology, shape: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(shape, topology)
    for step in (1, 2):
        save_checkpoint(step_path(tmp_path, step), model)

    def killed(directory: Path) -> None:
        (directory / "extra.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        prune_checkpoints(tmp_path, 1, topology)
    monkeypatch.undo()
    assert not step_path(tmp_path, 1).exists()
    newest = newest_checkpoint(tmp_path, topology)
    assert newest is not None and load_checkpoint(newest, model) == {}
    prune_checkpoints(tmp_path, 1, topology)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_a_user_s_directory_is_not_replaced_by_a_checkpoint(
    topology: Topology, shape: ModelConfig, tmp_path: Path
) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not replaced"):
        save_checkpoint(tmp_path / "c", build_model(shape, topology))
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["c", "c/thesis.tex"]


def test_the_manifest_says_what_is_inside(topology: Topology, shape: ModelConfig, tmp_path: Path) -> None:
    engine = Engine(build_model(shape, topology), OPTIMIZER)
    save_checkpoint(tmp_path / "a", engine, seed=5)
    save_checkpoint(tmp_path / "b", engine.model, parents={"start": tmp_path / "a"})
    one, two = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in "ab")
    assert one["kind"] == "checkpoint" and one["seed"] == 5
    assert one["config"]["optimizer"] and not two["config"]["optimizer"]
    assert two["parents"] == {"start": one["content_hash"]}
