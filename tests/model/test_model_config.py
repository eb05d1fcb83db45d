"""Shapes: what is refused, and in whose words."""

import dataclasses

import pytest

from synpro_engine.config import UserError, validate
from synpro_engine.dist import Axis, Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig

SHAPE = {"layers": 4, "d_model": 64, "heads": 4, "kv_heads": 2, "ffn": 96, "vocab_size": 128, "seq_len": 32}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kv_heads": 3}, r"`kv_heads`: must divide heads \(4\), got 3"),
        ({"heads": 6, "kv_heads": 2}, r"`head_dim`: must be given"),
        ({"head_dim": 7}, r"`head_dim`: .* even width"),
        ({"family": "gpt2"}, r"`family`"),
        ({"layers": 0}, r"`layers`"),
        ({"layers": 10**7}, r"`layers`: .*got 10000000"),
        ({"vocab_size": 10**12}, r"`vocab_size`: .*got 1000000000000"),
        ({"rope_scaling": {"factor": 8.0}}, r"key `rope_scaling.low_freq_factor` is missing"),
    ],
)
def test_a_wrong_shape_names_its_key(changed: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(ModelConfig, SHAPE | changed, "recipe.yaml")


def test_an_unknown_key_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown key `layer` \(did you mean `layers`\?\)"):
        validate(ModelConfig, SHAPE | {"layer": 2}, "recipe.yaml")


@pytest.mark.parametrize(
    ("changed", "layout", "message"),
    [
        ({"heads": 3, "kv_heads": 3, "head_dim": 16}, {"tp": 2}, r"`model.heads`: 3 .* `parallel.tp` = 2"),
        ({"kv_heads": 1}, {"tp": 2}, r"`model.kv_heads`: 1 "),
        ({"vocab_size": 127}, {"tp": 2}, r"`model.vocab_size`: 127 "),
        ({"ffn": 97}, {"tp": 2}, r"`model.ffn`: 97 "),
        ({"layers": 3}, {"pp": 2}, r"`model.layers`: 3 cannot be divided by 2"),
        ({"layers": 6}, {"pp": 2, "vpp": 2}, r"`model.layers`: 6 cannot be divided by 4"),
        ({"seq_len": 31}, {"tp": 2, "sequence_parallel": True}, r"`model.seq_len`: 31 "),
    ],
)  # fmt: skip
def test_a_layout_that_does_not_divide_the_model_names_both_keys(
    topology: Topology, changed: dict[str, object], layout: dict[str, int], message: str
) -> None:
    axes = {name: Axis(layout[name], 0, topology.tp.group) for name in ("tp", "pp") if name in layout}
    others = {name: layout[name] for name in ("vpp", "sequence_parallel") if name in layout}
    wide = dataclasses.replace(topology, **axes, **others)
    with pytest.raises(UserError, match=message):
        build_model(validate(ModelConfig, SHAPE | changed, "recipe.yaml"), wide)


@pytest.mark.parametrize("changed", [{"layers": 10_000, "d_model": 2**20}, {"vocab_size": 2**30, "d_model": 2**16}])
def test_a_model_larger_than_the_memory_is_refused_before_anything_is_built(
    topology: Topology, changed: dict[str, object]
) -> None:
    with pytest.raises(UserError, match=r"`model`: its weights need [\d,]+ GiB on each rank"):
        build_model(validate(ModelConfig, SHAPE | changed, "recipe.yaml"), topology)


def test_the_parameter_count_is_that_of_the_built_model(topology: Topology, config: ModelConfig) -> None:
    assert config.parameter_count() == sum(p.numel() for p in build_model(config, topology).parameters())


def test_the_method_s_model_has_the_published_size() -> None:
    size = ModelConfig(
        layers=16, d_model=1024, heads=16, kv_heads=16, ffn=4096, vocab_size=100_352, seq_len=2048
    ).parameter_count()  # fmt: skip
    assert round(size / 1e6, 1) == 474.0
