"""A Hugging Face config.json as a model's shape: what the layers here compute is read, all else refused by its key.

The keys are those of `ModelConfig`'s families, in the spellings of transformers 4 and 5. Keys that change nothing
are let pass; values are taken as they are, never guessed or converted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from synpro_engine.config import UserError, brief, validate
from synpro_engine.model.config import Family, ModelConfig, RopeScaling
from synpro_engine.model.tensor_files import read_json

_NAMES = {
    "layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn": "intermediate_size",
    "vocab_size": "vocab_size",
    "seq_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "init_std": "initializer_range",
}
# What a missing key means to transformers.
_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
}
_FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {"max_position_embeddings": 131_072},
    "olmo2": {"rms_norm_eps": 1e-5},
    "qwen2": {"max_position_embeddings": 32_768},
    "qwen3": {"max_position_embeddings": 32_768, "head_dim": 128},
}
_DEFAULT_THETA = 10_000.0
_DEFAULT_WINDOW = {"mistral": 4096}

# Settings that change the arithmetic, with the values (beside null) under which they change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "hidden_act": ("silu", "swish"),
    "hidden_activation": ("silu", "swish"),
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
    "no_rope_layers": ([],),
    "no_rope_layer_interval": (0,),
    "qk_layernorm": (False,),
    "use_qk_norm": (False,),
    "query_pre_attn_scalar": (),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "attn_temperature_tuning": (False,),
    "attention_chunk_size": (),
    "attention_multiplier": (),
    "clip_qkv": (),
    "embedding_multiplier": (1.0,),
    "residual_multiplier": (1.0,),
    "logits_scaling": (1.0,),
    "logit_scale": (1.0,),
    "is_causal": (True,),
    "use_bidirectional_attention": (False,),
    "add_cross_attention": (False,),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "pruned_heads": ({},),
    "quantization_config": (),
}
_ORIGINAL = "original_max_position_embeddings"
_ROPE_KEYS = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


def read_hf_config(directory: Path, seq_len: int | None = None) -> ModelConfig:
    """The model's shape from config.json; `seq_len` replaces `max_position_embeddings`, which is kept beside it.

    Raises UserError, one line with the file and the key, for another family, malformed values, and settings (biases,
    other stretches of positions, windows, quantisation) that would silently give other numbers here.
    """
    path = directory / "config.json"
    data = read_json(path)
    family = data.get("model_type")
    if not isinstance(family, str) or family not in get_args(Family):
        raise UserError(f"{path}: `model_type` {brief(family)} is not one of {', '.join(sorted(get_args(Family)))}")
    for key, neutral in _NEUTRAL.items():
        # null is what transformers writes for "not used", in every one of these keys.
        if data.get(key) is not None and data[key] not in neutral:
            raise UserError(f"{path}: `{key}` = {brief(data[key])} is not supported")
    _check_architecture(path, data, family)
    # Only the model's: code for a tokenizer or a config is never run here either, and changes no arithmetic.
    if isinstance(data.get("auto_map"), dict) and "AutoModelForCausalLM" in data["auto_map"]:
        raise UserError(f"{path}: `auto_map` wants code of its own for this model, which is not run")
    defaults = _DEFAULTS | _FAMILY_DEFAULTS.get(family, {})
    missing = next((key for key in _NAMES.values() if key not in data and key not in defaults), None)
    if missing is not None:
        raise UserError(f"{path}: key `{missing}` is missing")
    # A key that is there and null is kept as null: transformers means something else by it than by a missing one.
    settings = {field: data.get(key, defaults.get(key)) for field, key in _NAMES.items()}
    rope = _rope(path, data)
    settings |= {"family": family, "rope_theta": rope.theta, "rope_scaling": rope.scaling}
    settings["kv_heads"] = settings["heads"] if settings["kv_heads"] is None else settings["kv_heads"]
    published = settings["seq_len"]
    settings["seq_len"] = published if seq_len is None else seq_len
    config = validate(ModelConfig, settings, str(path), names=_NAMES | {"rope_scaling": rope.key})
    # After the shape, for what a window means depends on the length that the user may have shortened.
    window = _window(path, data, config)
    # Within the window alone: an export has none, and would read on beyond it with other numbers.
    return config.published_as(published, window)


class _Rope(NamedTuple):
    theta: Any
    scaling: dict[str, Any] | None
    key: str


def _rope(path: Path, data: Mapping[str, Any]) -> _Rope:
    """Base and stretch of the rotation, as yet unchecked values. transformers 4 writes `rope_scaling` beside
    `rope_theta`, transformers 5 both into `rope_parameters`; what stands in two places must agree."""
    sections = list(_rope_sections(path, data))
    # Compared and not ordered by rank: which place wins differs between transformers' versions.
    thetas = [base for base in (data.get("rope_theta"), *(theta for theta, _, _ in sections)) if base is not None]
    if any(theta != thetas[0] for theta in thetas):
        raise UserError(f"{path}: `rope_theta` is {' and '.join(brief(theta) for theta in thetas)} in two places")
    if any(scaling != sections[0].scaling for _, scaling, _ in sections):
        raise UserError(f"{path}: `rope_scaling` and `rope_parameters` disagree")
    scaling, key = sections[0][1:] if sections else (None, "rope_scaling")
    beside = data.get(_ORIGINAL)  # counts first in transformers, and only where there is a stretch
    if scaling is not None and beside is not None and scaling.setdefault(_ORIGINAL, beside) != beside:
        told = f"{brief(beside)} and {brief(scaling[_ORIGINAL])}"
        raise UserError(f"{path}: `{_ORIGINAL}` is {told} in two places")
    return _Rope(thetas[0] if thetas else _DEFAULT_THETA, scaling, key)


def _rope_sections(path: Path, data: Mapping[str, Any]) -> Iterator[_Rope]:
    for key in ("rope_scaling", "rope_parameters"):
        section = data.get(key)
        if section is None:
            continue
        if not isinstance(section, dict):
            raise UserError(f"{path}: `{key}`: expected a mapping, got {brief(section)}")
        # Both keys were in use, and files that were edited by hand have both.
        kinds = [section[name] for name in ("rope_type", "type") if section.get(name) is not None] or ["default"]
        if any(kind not in ("default", "llama3") or kind != kinds[0] for kind in kinds):
            told = " and ".join(brief(kind) for kind in kinds)
            raise UserError(f"{path}: `{key}`: rope type {told} is not supported (only 'default' and 'llama3')")
        if section.get("partial_rotary_factor", 1.0) != 1.0:
            raise UserError(f"{path}: `{key}.partial_rotary_factor` is not supported")
        scaling = {name: value for name, value in section.items() if name not in _ROPE_KEYS}
        unknown = next((name for name in scaling if name not in RopeScaling.model_fields), None)
        if unknown is not None or (scaling and kinds[0] == "default"):
            raise UserError(f"{path}: `{key}.{unknown or next(iter(scaling))}` is not supported")
        yield _Rope(section.get("rope_theta"), scaling if kinds[0] == "llama3" else None, key)


def architecture(family: str) -> str:
    """transformers' class of a family's models."""
    return f"{family.capitalize()}ForCausalLM"


def _check_architecture(path: Path, data: Mapping[str, Any], family: str) -> None:
    """Encoders are made of decoders' weights and settings, and tell so by their class's name alone."""
    named = data.get("architectures") or []
    wanted = architecture(family)
    names = named if isinstance(named, list) else [named]
    if not names or wanted.lower() in (str(name).lower() for name in names):
        return
    raise UserError(f"{path}: `architectures` {brief(named)} has no {wanted}, which is all that is known of {family}")


def _window(path: Path, data: Mapping[str, Any], config: ModelConfig) -> int | None:
    """The positions that attention is bounded to, None where it is not; here it sees all before its own.

    A window that no sequence outgrows is the same; UserError for a shorter one.
    """
    family = config.family
    window = data.get("sliding_window", _DEFAULT_WINDOW.get(family))
    # Qwen's configs carry a window that a flag of its own switches off, which is the published state of most.
    if family.startswith("qwen"):
        used = data.get("use_sliding_window", False)
        if not isinstance(used, bool):
            raise UserError(f"{path}: `use_sliding_window`: expected true or false, got {brief(used)}")
        window = window if used else None
    layers = data.get("layer_types")
    for kind in layers if isinstance(layers, list) else [layers]:
        if kind not in (None, "full_attention", "sliding_attention"):
            raise UserError(f"{path}: `layer_types`: {brief(kind)} is not supported")
    if window is None:
        return None
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise UserError(f"{path}: `sliding_window`: expected a number of positions, got {brief(window)}")
    if window < config.seq_len:
        raise UserError(
            f"{path}: `sliding_window`: {window} is shorter than sequences of {config.seq_len} tokens, and attention"
            f" here has no window; give a `seq_len` of at most {window}"
        )
    return window
