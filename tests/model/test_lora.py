"""Low-rank adapters: they begin as nothing, learn what the weights would, and end in the weights."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from synpro_engine.config import UserError
from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model, freeze_but_last
from synpro_engine.model.lora import Adapter, adapters_of, add_adapters, merge_adapters
from synpro_engine.model.model import Model
from synpro_engine.model.peft import export_adapters
from synpro_engine.model.state import canonical_state, load_canonical
from synpro_engine.sampler import Sampler, SamplingConfig
from synpro_engine.train.checkpoint import load_checkpoint, save_checkpoint

CONFIGS: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("shapes.py")))["CONFIGS"]
RANK, ALPHA = 5, 10.0
TOKENS = torch.arange(2 * 17).view(2, 17) % 90


def adapted(topology: Topology, shape: str, *, trained: bool = True, blocks: int | None = None) -> Model:
    """A model with adapters; trained ones are far from zero."""
    model = build_model(CONFIGS[shape], topology, seed=3)
    if blocks is not None:
        freeze_but_last(model, blocks)
    add_adapters(model, rank=RANK, alpha=ALPHA, seed=4)
    generator = torch.Generator().manual_seed(6)
    for _, _, adapter in adapters_of(model):
        if trained:
            adapter.lora_b.data.copy_(0.1 * torch.randn(adapter.lora_b.shape, generator=generator))
    return model


def weight_of(model: Model, layer: int, name: str) -> Any:
    return getattr(model.blocks()[layer], name)


@pytest.mark.parametrize("shape", CONFIGS)
def test_fresh_adapters_change_no_bit_and_are_all_that_trains(topology: Topology, shape: str) -> None:
    plain, model = build_model(CONFIGS[shape], topology, seed=3), adapted(topology, shape, trained=False)
    assert torch.equal(model.hidden(TOKENS), plain.hidden(TOKENS))
    assert all((".adapters." in name) == p.requires_grad for name, p in model.named_parameters())
    assert len(list(adapters_of(model))) == 4 * model.config.layers


@pytest.mark.parametrize("shape", CONFIGS)
def test_their_gradients_are_those_of_the_weights_that_they_stand_for(topology: Topology, shape: str) -> None:
    """W' = W + s B A, so that dB = s dW' A^T and dA = s B^T dW'."""
    model, merged = adapted(topology, shape), adapted(topology, shape)
    factors: list[tuple[int, str, Adapter]] = list(adapters_of(model))
    merge_adapters(merged)
    for parameter in merged.parameters():
        parameter.requires_grad_(True)

    def loss(of: Model) -> Tensor:
        return of.logprobs_from_hidden(of.hidden(TOKENS), TOKENS.roll(-1, 1)).logprob.sum()

    weights = [weight_of(merged, layer, name) for layer, name, _ in factors]
    theirs = torch.autograd.grad(loss(merged), weights)
    ours = torch.autograd.grad(loss(model), [p for _, _, a in factors for p in (a.lora_a, a.lora_b)])
    for at, ((_, _, adapter), weight) in enumerate(zip(factors, theirs, strict=True)):
        a, b = adapter.lora_a.detach(), adapter.lora_b.detach().flatten(0, 1)
        torch.testing.assert_close(ours[2 * at], adapter.scale * b.T @ weight, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(ours[2 * at + 1].flatten(0, 1), adapter.scale * weight @ a.T, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("shape", CONFIGS)
def test_merged_or_beside_the_weights_they_draw_the_same_tokens(topology: Topology, shape: str) -> None:
    model = adapted(topology, shape)
    before, beside = model.hidden(TOKENS), _drawn(Sampler(model))
    stale = Sampler(model)
    merge_adapters(model)
    assert not list(adapters_of(model))
    torch.testing.assert_close(model.hidden(TOKENS), before, rtol=1e-4, atol=1e-4)
    assert not torch.equal(before, build_model(CONFIGS[shape], topology, seed=3).hidden(TOKENS))
    # A sampler of before knows of the adapters, and must not add them a second time.
    for sampler in (Sampler(model), stale):
        for (ids, logprobs), (ids_beside, logprobs_beside) in zip(_drawn(sampler), beside, strict=True):
            assert ids == ids_beside
            torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(logprobs_beside), rtol=1e-4, atol=1e-4)


def _drawn(sampler: Sampler) -> list[tuple[Any, Any]]:
    groups = sampler.generate(
        [[1, 2, 3, 4, 5], [7, 8]], group_size=2, sampling=SamplingConfig(temperature=1.0, top_p=1.0, max_new_tokens=9),
        stop_ids=frozenset(), seeds=[1, 2],
    )  # fmt: skip
    return [(completion.token_ids, completion.logprobs) for group in groups for completion in group]


@pytest.mark.parametrize("shape", CONFIGS)
def test_a_reader_of_the_written_adapters_gets_the_merged_weights(
    topology: Topology, tmp_path: Path, shape: str
) -> None:
    """By the format's own definition: each named matrix becomes W + lora_alpha / r * B A."""
    model = adapted(topology, shape, blocks=2)
    export_adapters(model, tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    plain = build_model(CONFIGS[shape], topology, seed=3)
    state = canonical_state(plain)
    for name in [name for name in tensors if "lora_A" in name]:
        target = name.removeprefix("base_model.model.").replace("lora_A.", "")
        _, _, layer, _, projection, _ = target.split(".")
        assert int(layer) in settings["layers_to_transform"] and projection in settings["target_modules"]
        update = tensors[name.replace("lora_A", "lora_B")] @ tensors[name]
        state[target] += settings["lora_alpha"] / settings["r"] * update
    load_canonical(plain, state)
    merge_adapters(model)
    assert len(tensors) == 2 * 7 * 2
    for name, tensor in canonical_state(model).items():
        torch.testing.assert_close(tensor, state[name], msg=name)


def test_weights_are_not_taken_out_from_under_their_adapters(topology: Topology, tmp_path: Path) -> None:
    """Written, read back or exported alone they would be those of before training."""
    model = adapted(topology, "olmo2")
    with pytest.raises(RuntimeError, match="merge them first"):
        canonical_state(model)
    save_checkpoint(tmp_path / "adapted", model)
    plain = build_model(CONFIGS["olmo2"], topology, seed=3)
    with pytest.raises(UserError, match="adapted: holds adapters, and the model has none"):
        load_checkpoint(tmp_path / "adapted", plain)
    save_checkpoint(tmp_path / "plain", plain)
    with pytest.raises(UserError, match="plain: holds no adapters, and the model has some"):
        load_checkpoint(tmp_path / "plain", model)
    fresh = adapted(topology, "olmo2", trained=False)
    load_checkpoint(tmp_path / "adapted", fresh)
    assert torch.equal(fresh.hidden(TOKENS), model.hidden(TOKENS))


def test_adapters_stand_on_blocks_that_would_train_and_on_no_other(topology: Topology) -> None:
    model = adapted(topology, "olmo2", blocks=1)
    assert {layer for layer, _, _ in adapters_of(model)} == {model.config.layers - 1}


def test_a_rank_as_wide_as_the_model_is_refused_by_its_key(topology: Topology) -> None:
    model = build_model(CONFIGS["olmo2"], topology, seed=3)
    with pytest.raises(UserError, match=r"`lora\.rank`: 48 is not below the model's width 48"):
        add_adapters(model, rank=48, alpha=1.0, seed=0)
