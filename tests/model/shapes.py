"""A tiny shape of every kind of block, and the transformers model of a shape."""

from typing import Any

import torch

from synpro_engine.model.config import ModelConfig, RopeScaling

SHAPE: dict[str, Any] = {
    "layers": 3, "d_model": 48, "heads": 6, "kv_heads": 2, "ffn": 80, "vocab_size": 96, "seq_len": 64,
    "rope_theta": 1e4, "init_std": 0.1,
}  # fmt: skip
# Waves of 6 to 7,000 positions: some stay, some are in between, some are stretched, all within 64 positions.
STRETCH = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
CONFIGS = {
    "olmo2": ModelConfig(family="olmo2", **SHAPE),
    "llama tied": ModelConfig(family="llama", tie_embeddings=True, **SHAPE),
    "llama 3": ModelConfig(family="llama", rope_scaling=STRETCH, **SHAPE | {"heads": 4, "kv_heads": 1, "head_dim": 24}),
    "mistral": ModelConfig(family="mistral", **SHAPE | {"heads": 5, "kv_heads": 5, "head_dim": 8}),
    "qwen2 tied": ModelConfig(family="qwen2", tie_embeddings=True, **SHAPE),
    "qwen3": ModelConfig(family="qwen3", **SHAPE | {"heads": 10, "kv_heads": 2, "head_dim": 24}),
}


def transformers_model(config: ModelConfig) -> Any:
    """A transformers model of this shape; norms away from one and biases from zero so that each of them matters."""
    import transformers

    name = {"llama": "Llama", "mistral": "Mistral", "olmo2": "Olmo2", "qwen2": "Qwen2", "qwen3": "Qwen3"}[config.family]
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        rope = {"rope_type": "llama3"} | config.rope_scaling.model_dump()
    torch.manual_seed(5)
    settings = getattr(transformers, f"{name}Config")(
        hidden_size=config.d_model, intermediate_size=config.ffn, num_hidden_layers=config.layers,
        num_attention_heads=config.heads, num_key_value_heads=config.kv_heads, vocab_size=config.vocab_size,
        rope_parameters=rope | {"rope_theta": config.rope_theta}, rms_norm_eps=1e-5, initializer_range=0.2,
        tie_word_embeddings=config.tie_embeddings, max_position_embeddings=config.seq_len,
        pad_token_id=None, bos_token_id=None, eos_token_id=None,
        **({"head_dim": config.head_size} if config.head_dim or config.family == "qwen3" else {}),
        **({"sliding_window": None} if config.family == "mistral" else {}),
    )  # fmt: skip
    model = getattr(transformers, f"{name}ForCausalLM")(settings).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            if key.endswith(".bias"):
                parameter.uniform_(-1.0, 1.0)
    return model
