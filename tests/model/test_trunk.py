"""Blocks that do not train are run once: what stands on them is what the whole model computes, to the last bit."""

from typing import Any

import pytest
import torch
from torch import Tensor

from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model, freeze_but_last
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.model import Model
from synpro_engine.model.shared_rows import SharedRows
from synpro_engine.model.trunk import frozen_blocks, keeping_trunk, shares_blocks
from synpro_engine.rl.policy import make_reference_policy

SHAPE: Any = {"layers": 4, "d_model": 32, "heads": 4, "kv_heads": 2, "ffn": 48, "vocab_size": 36, "seq_len": 32}
TOKENS = torch.randint(36, (3, 11), generator=torch.Generator().manual_seed(1))
# A beginning of 4 tokens and two continuations, of 4 and of 3.
SHARED = SharedRows(
    position_BS=torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6]).expand(3, -1),
    part_BS=torch.tensor([0] * 4 + [1] * 4 + [2] * 3).expand(3, -1), longest=8,
)  # fmt: skip


def model_of(topology: Topology, trained: int, **changes: Any) -> Model:
    model = build_model(ModelConfig(**{"family": "llama", **SHAPE, **changes}), topology, seed=2)
    freeze_but_last(model, trained)
    return model


def hidden_and_gradients(model: Model, *given: Any) -> list[Tensor]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    hidden = model.hidden(TOKENS, *given)
    return [hidden.detach(), *torch.autograd.grad(hidden.square().sum(), trained)]


@pytest.mark.parametrize("rows", [None, SHARED], ids=["plain rows", "shared rows"])
@pytest.mark.parametrize("changes", [{}, {"family": "olmo2"}, {"tie_embeddings": True}], ids=str)
def test_above_a_kept_trunk_values_and_gradients_are_those_of_the_whole_model(
    topology: Topology, changes: dict[str, Any], rows: SharedRows | None
) -> None:
    model, read = model_of(topology, 1, **changes), list[int]()
    chunk: Any = model.chunks[0]
    for number, layer in enumerate(chunk.decoder.layers):
        layer.register_forward_hook(lambda *_, number=number: read.append(number))
    with torch.no_grad(), keeping_trunk(chunk, frozen_blocks(chunk)) as kept:
        model.hidden(TOKENS, rows)
    (trunk,) = kept
    assert trunk.blocks == 3 and read == [0, 1, 2, 3]
    whole, above = hidden_and_gradients(model, rows), hidden_and_gradients(model, rows, trunk)
    assert all(map(torch.equal, whole, above)) and len(whole) > 5
    assert read[4:] == [0, 1, 2, 3, 3] and len(chunk.decoder.layers) == 4
    with keeping_trunk(chunk, 0) as none:
        hidden_and_gradients(model, rows)
    assert none == []


def test_blocks_are_counted_as_frozen_only_from_the_first_on_and_with_the_embedding(topology: Topology) -> None:
    assert frozen_blocks(model_of(topology, 1).chunks[0]) == 3
    assert frozen_blocks(model_of(topology, 4).chunks[0]) == 0
    model = model_of(topology, 2)
    chunk: Any = model.chunks[0]
    for parameter in chunk.decoder.layers[1].parameters():
        parameter.requires_grad_(True)
    assert frozen_blocks(chunk) == 1
    chunk.embedding.word_embeddings.weight.requires_grad_(True)
    assert frozen_blocks(chunk) == 0


def test_models_share_blocks_only_where_these_lie_in_the_same_memory(topology: Topology) -> None:
    policy = model_of(topology, 1)
    reference, other = make_reference_policy(policy), model_of(topology, 1)
    chunk, alike, apart = policy.chunks[0], reference.chunks[0], other.chunks[0]
    assert shares_blocks(chunk, alike, 3) and not shares_blocks(chunk, alike, 4), "the last block is a copy"
    assert not shares_blocks(chunk, apart, 3), "equal numbers may part"


def test_a_stage_of_a_pipeline_takes_no_trunk(topology: Topology) -> None:
    model = model_of(topology, 1)
    chunk: Any = model.chunks[0]
    with torch.no_grad(), keeping_trunk(chunk, 2) as kept:
        model.hidden(TOKENS)
    chunk.post_process = False
    with pytest.raises(RuntimeError, match="one stage of a pipeline"):
        model.hidden(TOKENS, None, kept[0])


def test_an_error_above_a_trunk_leaves_the_model_whole(topology: Topology) -> None:
    model = model_of(topology, 1)
    chunk: Any = model.chunks[0]
    with torch.no_grad(), keeping_trunk(chunk, 2) as kept:
        model.hidden(TOKENS)

    def fail(*_: Any) -> None:
        raise RuntimeError("a layer's fault")

    hook = chunk.decoder.layers[3].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a layer's fault"):
        model.hidden(TOKENS, None, kept[0])
    hook.remove()
    assert len(chunk.decoder.layers) == 4 and chunk.decoder.num_layers_per_pipeline_rank == 4
