"""config.json as well-known models have it: read, with the number of parameters that is published."""

import json
from pathlib import Path
from typing import Any

import pytest

from synpro_engine.config import UserError
from synpro_engine.model.config import RopeScaling
from synpro_engine.model.hf_config import read_hf_config

LLAMA3 = {
    "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}  # fmt: skip
COMMON = {
    "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "initializer_range": 0.02,
    "torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0", "use_cache": True,
}  # fmt: skip
QWEN = {"max_window_layers": 24, "rope_theta": 1000000.0, "rms_norm_eps": 1e-06, "use_sliding_window": False}


def shape(family: str, layers: int, width: int, heads: int, kv_heads: int, ffn: int, vocab: int, seq: int) -> Any:
    return {
        "model_type": family, "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "intermediate_size": ffn, "vocab_size": vocab, "max_position_embeddings": seq,
    }  # fmt: skip


PUBLISHED: dict[str, tuple[dict[str, Any], int]] = {
    "Llama-3.2-1B": (
        shape("llama", 16, 2048, 32, 8, 8192, 128256, 131072)
        | {"head_dim": 64, "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
           "rope_scaling": LLAMA3, "rope_theta": 500000.0, "tie_word_embeddings": True},
        1_235_814_400,
    ),
    "Qwen2.5-0.5B": (
        shape("qwen2", 24, 896, 14, 2, 4864, 151936, 32768)
        | QWEN | {"sliding_window": 32768, "tie_word_embeddings": True, "use_mrope": False},
        494_032_768,
    ),
    "DeepSeek-R1-Distill-Qwen-1.5B": (
        shape("qwen2", 28, 1536, 12, 2, 8960, 151936, 131072)
        | QWEN | {"rope_theta": 10000, "sliding_window": 4096, "tie_word_embeddings": False, "use_mrope": False},
        1_777_088_000,
    ),
    "Qwen3-0.6B": (
        shape("qwen3", 28, 1024, 16, 8, 3072, 151936, 40960)
        | QWEN | {"attention_bias": False, "head_dim": 128, "rope_scaling": None, "sliding_window": None,
                  "tie_word_embeddings": True},
        596_049_920,
    ),
    "OLMo-2-0425-1B": (
        shape("olmo2", 16, 2048, 16, 16, 8192, 100352, 4096)
        | {"attention_bias": False, "pad_token_id": 100277, "rms_norm_eps": 1e-06, "rope_scaling": None,
           "rope_theta": 500000, "tie_word_embeddings": False},
        1_484_916_736,
    ),
    "Mistral-7B-Instruct-v0.3": (
        shape("mistral", 32, 4096, 32, 8, 14336, 32768, 32768)
        | {"rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False},
        7_248_023_552,
    ),
    "SmolLM2-135M-Instruct": (
        shape("llama", 30, 576, 9, 3, 1536, 49152, 8192)
        | {"attention_bias": False, "is_llama_config": True, "mlp_bias": False, "pretraining_tp": 1,
           "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
           "tie_word_embeddings": True, "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}},
        134_515_008,
    ),
    "TinyLlama-1.1B": (
        shape("llama", 22, 2048, 32, 4, 5632, 32000, 2048)
        | {"pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": False},
        1_100_048_384,
    ),
}  # fmt: skip


def written(directory: Path, data: dict[str, Any]) -> Path:
    (directory / "config.json").write_text(json.dumps(COMMON | data))
    return directory


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_read_and_has_the_published_number_of_parameters(tmp_path: Path, name: str) -> None:
    data, parameters = PUBLISHED[name]
    config = read_hf_config(written(tmp_path, data))
    assert config.parameter_count() == parameters
    assert config.rope_theta == data.get("rope_theta", 10_000.0) and config.norm_eps == data["rms_norm_eps"]
    assert config.tie_embeddings == data["tie_word_embeddings"]
    stretch = {key: value for key, value in LLAMA3.items() if key != "rope_type"}
    assert config.rope_scaling == (RopeScaling.model_validate(stretch) if data.get("rope_scaling") else None)


def test_a_published_window_is_refused_with_the_length_that_it_allows(tmp_path: Path) -> None:
    data = PUBLISHED["Mistral-7B-Instruct-v0.3"][0] | {"sliding_window": 4096, "vocab_size": 32000}  # v0.1's
    with pytest.raises(UserError, match=r"`sliding_window`: 4096 is shorter .*give a `seq_len` of at most 4096"):
        read_hf_config(written(tmp_path, data))
    assert read_hf_config(tmp_path, seq_len=4096).seq_len == 4096
