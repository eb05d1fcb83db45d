"""GGUF files as llama.cpp's converter writes them, and as nobody should: each fault is told by its own cause."""

import struct
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from synpro_engine.config import UserError
from synpro_engine.dist import Topology
from synpro_engine.model import canonical
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig, RopeScaling
from synpro_engine.model.gguf_file import GGUFFile
from synpro_engine.model.rotary import inverse_frequencies
from synpro_engine.model.state import canonical_state, check_shapes, load_canonical

SHAPE = ModelConfig(family="llama", layers=2, d_model=32, heads=4, kv_heads=2, ffn=64, vocab_size=64, seq_len=128)
STRETCH = RopeScaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
OLMO2_NAMES = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
TOP = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
       "lm_head.weight": "output.weight"}  # fmt: skip


def gguf_name(name: str, family: str) -> str:
    if name in TOP:
        return TOP[name]
    _, _, block, rest = name.split(".", 3)
    kind, part = rest.rsplit(".", 1)
    return f"blk.{block}.{(NAMES | (OLMO2_NAMES if family == 'olmo2' else {}))[kind]}.{part}"


def permuted(weight: Tensor, heads: int) -> Tensor:
    """llama.cpp's order of a query or key matrix's rows, in its llama architecture only: pairs side by side."""
    return weight.unflatten(0, (heads, 2, -1)).swapaxes(1, 2).flatten(0, 2)


def write(
    path: Path,
    config: ModelConfig,
    state: dict[str, Tensor],
    changed: dict[str, Any],
    kind: torch.dtype = torch.float32,
) -> Path:
    """The file; `changed` are metadata to set (or leave out, by None) and tensors to add."""
    writer = gguf.GGUFWriter(path, config.family)
    metadata = {
        "block_count": config.layers, "embedding_length": config.d_model, "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads, "attention.key_length": config.head_size,
        "attention.value_length": config.head_size, "feed_forward_length": config.ffn,
        "context_length": config.seq_len, "rope.freq_base": config.rope_theta, "vocab_size": config.vocab_size,
        "attention.layer_norm_rms_epsilon": config.norm_eps, "rope.dimension_count": config.head_size,
    }  # fmt: skip
    metadata = {f"{config.family}.{key}": value for key, value in metadata.items()} | {
        key: value for key, value in changed.items() if not isinstance(value, Tensor)
    }
    for key, value in metadata.items():
        if value is None:
            continue
        add = {bool: writer.add_bool, int: writer.add_uint64, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    for name, tensor in state.items():
        if config.family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = permuted(tensor, config.heads if "q_proj" in name else config.kv_heads)
        writer.add_tensor(gguf_name(name, config.family), tensor.to(kind).numpy())
    for name, tensor in changed.items():
        if isinstance(tensor, Tensor):
            writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_state(config: ModelConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = canonical.canonical_shapes(config)
    return {name: torch.randn(shape, generator=generator) + canonical.is_norm(name) for name, shape in shapes.items()}


FAMILIES = {
    "llama": SHAPE,
    "llama 3": SHAPE.model_copy(update={"rope_scaling": STRETCH, "head_dim": 24}),
    "olmo2": SHAPE.model_copy(update={"family": "olmo2"}),
    "qwen2 tied": SHAPE.model_copy(update={"family": "qwen2", "tie_embeddings": True}),
    "qwen3": SHAPE.model_copy(update={"family": "qwen3", "head_dim": 24, "rope_theta": 1e6}),
}


def rope_freqs(config: ModelConfig) -> dict[str, Tensor]:
    """What the converter writes for Llama 3.1's stretch: how many times slower each pair turns."""
    plain = inverse_frequencies(config.model_copy(update={"rope_scaling": None}))
    return {"rope_freqs.weight": plain / inverse_frequencies(config)} if config.rope_scaling else {}


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_converted_model_is_read_back(topology: Topology, tmp_path: Path, name: str, kind: torch.dtype) -> None:
    config = FAMILIES[name]
    state = random_state(config)
    file = GGUFFile(write(tmp_path / "x.gguf", config, state, rope_freqs(config), kind))
    assert file.config() == config
    check_shapes(canonical.canonical_shapes(config), file.shapes, "x.gguf")
    model = build_model(file.config(), topology, seed=None)
    load_canonical(model, file)
    for tensor, value in canonical_state(model).items():
        assert torch.equal(value, state[tensor].to(kind).float()), tensor


LLAMA = "llama."
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"general.architecture": "gemma3"}, "`general.architecture` 'gemma3' is not one of llama, olmo2"),
    "no layers": ({LLAMA + "block_count": None}, "`llama.block_count` is missing"),
    "no context": ({LLAMA + "context_length": None}, "`llama.context_length` is missing"),
    "list": ({LLAMA + "feed_forward_length": [64, 64]}, r"`llama.feed_forward_length`: .*got \[64, 64\]"),
    "text": ({LLAMA + "block_count": "two"}, "`llama.block_count`: .*got 'two'"),
    "bool": ({LLAMA + "block_count": True}, "`llama.block_count`: .*got True"),
    "zero": ({LLAMA + "attention.head_count": 0}, "`llama.attention.head_count`: .*got 0"),
    "many layers": ({LLAMA + "block_count": 10**7}, "`llama.block_count`: .*got 10000000"),
    "nan": ({LLAMA + "rope.freq_base": float("nan")}, "`llama.rope.freq_base`: .*got nan"),
    "eps": ({LLAMA + "attention.layer_norm_rms_epsilon": 0.0}, "`llama.attention.layer_norm_rms_epsilon`: "),
    "scaled": ({LLAMA + "rope.scaling.type": "yarn"}, "`llama.rope.scaling.type` = 'yarn' is not supported"),
    "experts": ({LLAMA + "expert_count": 8}, "`llama.expert_count` = 8 is not supported"),
    "unknown": ({LLAMA + "logit_scale": 0.5}, "`llama.logit_scale` = 0.5 is not supported"),
    "softcap": ({LLAMA + "attn_logit_softcapping": 50.0}, "`llama.attn_logit_softcapping` = 50.0"),
    "partial": ({LLAMA + "rope.dimension_count": 4}, "`llama.rope.dimension_count` = 4 is not supported"),
    "window": ({LLAMA + "attention.sliding_window": 64}, "`llama.attention.sliding_window` = 64 is not supported"),
    "extra": ({"blk.0.attn_sinks.weight": torch.ones(4)}, "tensor `blk.0.attn_sinks.weight` is not part of a model"),
    "bias": ({"blk.0.attn_q.bias": torch.ones(32)}, "tensor `model.layers.0.self_attn.q_proj.bias` is not part"),
    "both": ({"blk.0.post_attention_norm.weight": torch.ones(32)}, "`blk.0.post_attention_norm.weight` is not part"),
    "one of several": ({"split.count": 3, "split.no": 0}, "`split.count`: one of several files; merge them"),
    "stretch": ({"rope_freqs.weight": torch.rand(4) + 1}, "tensor `rope_freqs.weight` is not the stretch of Llama 3.1"),
    "stretch width": ({"rope_freqs.weight": torch.ones(3)}, "tensor `rope_freqs.weight` is not the stretch"),
}  # fmt: skip


def read(path: Path, topology: Topology) -> None:
    file = GGUFFile(path)
    config = file.config()
    check_shapes(canonical.canonical_shapes(config), file.shapes, str(path))
    load_canonical(build_model(config, topology, seed=None), file, str(path))


@pytest.mark.parametrize("case", BAD)
def test_metadata_and_tensors_that_are_not_understood_are_named(topology: Topology, tmp_path: Path, case: str) -> None:
    changed, message = BAD[case]
    path = write(tmp_path / "x.gguf", SHAPE, random_state(SHAPE), changed)
    with pytest.raises(UserError, match=message) as error:
        read(path, topology)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


BAD_WEIGHTS: dict[str, tuple[Any, str]] = {
    "nan": (np.full((32, 32), np.nan, np.float32), "holds NaN or infinity"),
    "inf": (np.full((32, 32), np.inf, np.float16), "holds NaN or infinity"),
    "int8": (np.ones((32, 32), np.int8), "is of type I8, no weight's"),
    "int32": (np.ones((32, 32), np.int32), "is of type I32, no weight's"),
    "shape": (np.ones((32, 16), np.float32), "has shape"),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_a_weight_that_is_none_is_named(topology: Topology, tmp_path: Path, case: str) -> None:
    value, message = BAD_WEIGHTS[case]
    state: Any = random_state(SHAPE)
    state["model.layers.1.self_attn.o_proj.weight"] = _Raw(value)
    with pytest.raises(UserError, match=f"tensor `.*(o_proj|attn_output).*` {message}"):
        read(write(tmp_path / "x.gguf", SHAPE, state, {}), topology)


class _Raw:
    """Stands in for a tensor of a type that must not be converted."""

    def __init__(self, value: np.ndarray) -> None:
        self._value = value

    def to(self, _kind: torch.dtype) -> "_Raw":
        return self

    def numpy(self) -> np.ndarray:
        return self._value


def head(tensors: int, fields: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields)


def field(key: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


ARCHITECTURE = field("general.architecture", 8, struct.pack("<Q", 5) + b"llama")
NESTED = struct.pack("<IQ", 9, 1) * 3000
BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not a readable GGUF file"),
    "no magic": (b"abcdefgh" * 9, "not a readable GGUF file .*magic"),
    "git's pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "only git's pointer"),
    "old": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "not a readable GGUF file .*version"),
    "only a head": (head(0, 0), "`general.architecture` None is not one of"),
    "no tensors": (head(0, 1) + ARCHITECTURE, "tensor `token_embd.weight` is missing"),
    "more fields than bytes": (head(0, 2**60) + ARCHITECTURE, "not a readable GGUF file .*ends before"),
    "more tensors than bytes": (head(2**60, 1) + ARCHITECTURE, "not a readable GGUF file .*ends before"),
    "a long list": (head(0, 1) + field("a", 9, struct.pack("<IQ", 4, 2**50)), "not a readable GGUF file .*ends before"),
    "a long text": (head(0, 1) + field("a", 8, struct.pack("<Q", 2**62)), "not a readable GGUF file .*ends before"),
    "lists in lists": (head(0, 1) + field("a", 9, NESTED), "not a readable GGUF file"),
    "unknown type": (head(0, 1) + field("a", 77, b"\0" * 8), "not a readable GGUF file"),
    "the same twice": (head(0, 2) + ARCHITECTURE * 2, "not a readable GGUF file .*Duplicate"),
    "no text": (
        head(0, 1) + field("general.architecture", 8, struct.pack("<Q", 2) + b"\xff\xfe"),
        "`general.architecture` is no text",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_bytes_that_are_no_model_are_told_by_their_cause_and_at_once(
    topology: Topology, tmp_path: Path, case: str
) -> None:
    content, message = BROKEN[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    start = time.process_time()
    with pytest.raises(UserError, match=message) as error:
        read(path, topology)
    assert time.process_time() - start < 2.0 and "\n" not in str(error.value) and "_tensors" not in str(error.value)


def test_a_file_torn_anywhere_is_told_of(topology: Topology, tmp_path: Path) -> None:
    whole = write(tmp_path / "x.gguf", SHAPE, random_state(SHAPE), {}).read_bytes()
    torn = tmp_path / "torn.gguf"
    for length in range(0, len(whole) - 32, len(whole) // 61):
        torn.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"torn\.gguf: ") as error:
            read(torn, topology)
        assert "\n" not in str(error.value)


def test_a_flipped_byte_is_read_or_told_of_and_never_a_traceback(topology: Topology, tmp_path: Path) -> None:
    whole = bytearray(write(tmp_path / "x.gguf", SHAPE, random_state(SHAPE), {}).read_bytes())
    generator = np.random.default_rng(0)
    path = tmp_path / "flipped.gguf"
    for place in range(4, 1600, 7):  # the head and the metadata
        flipped = bytearray(whole)
        flipped[place] ^= int(generator.integers(1, 256))
        path.write_bytes(flipped)
        try:
            file = GGUFFile(path)
            check_shapes(canonical.canonical_shapes(file.config()), file.shapes, str(path))
        except UserError as error:
            assert "\n" not in str(error)
