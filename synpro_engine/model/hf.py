"""Hugging Face directories in and out: config.json, safetensors, tokenizer files. transformers is not needed.

Knows the two families' file format; refuses settings that the layers here do not compute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError

from synpro_engine.config import UserError, atomic_write_text, check_replaceable, json_text, new_artifact, validate
from synpro_engine.data.tokenizer import PublishedTokenizer
from synpro_engine.dist import Topology, on_main
from synpro_engine.model import layout
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.model import Model
from synpro_engine.model.state import check_shapes, iter_canonical
from synpro_engine.model.tensor_files import SafetensorsFiles, read_json, write_tensors

KIND = "hf_model"
_ARCHITECTURE = {"llama": "LlamaForCausalLM", "olmo2": "Olmo2ForCausalLM"}
_DEFAULT_EPS = {"llama": 1e-6, "olmo2": 1e-5}


class Imported(NamedTuple):
    """A model read from files, and the path that `data.load_tokenizer` takes for its tokenizer."""

    model: Model
    tokenizer: Path


def read_hf_config(directory: Path, seq_len: int | None = None) -> ModelConfig:
    """The model's shape from config.json; `seq_len` replaces `max_position_embeddings`.

    Raises UserError for another family and for settings (biases, scaled rotations, quantisation) that would
    silently give other numbers here.
    """
    path = directory / "config.json"
    data = read_json(path)
    family = data.get("model_type")
    if family not in _ARCHITECTURE:
        raise UserError(f"{path}: `model_type` {family!r} is not one of {', '.join(sorted(_ARCHITECTURE))}")
    rope = data.get("rope_parameters") or {}
    _refuse_unsupported(path, data, rope)
    fields = {
        "layers": "num_hidden_layers",
        "d_model": "hidden_size",
        "heads": "num_attention_heads",
        "ffn": "intermediate_size",
        "vocab_size": "vocab_size",
    }
    for key in fields.values():
        if key not in data:
            raise UserError(f"{path}: key `{key}` is missing")
    found = {field: data[key] for field, key in fields.items()} | {
        "family": family,
        "kv_heads": data.get("num_key_value_heads") or data["num_attention_heads"],
        "head_dim": data.get("head_dim"),
        "seq_len": seq_len or data.get("max_position_embeddings", 2048),
        "rope_theta": float(rope.get("rope_theta") or data.get("rope_theta") or 10_000.0),
        "norm_eps": float(data.get("rms_norm_eps", _DEFAULT_EPS[family])),
        "tie_embeddings": bool(data.get("tie_word_embeddings", False)),
        "init_std": float(data.get("initializer_range", 0.02)),
    }
    return validate(ModelConfig, found, str(path))


def _refuse_unsupported(path: Path, data: Mapping[str, Any], rope: Mapping[str, Any]) -> None:
    if data.get("rope_scaling") or rope.get("rope_type", "default") != "default":
        raise UserError(f"{path}: `rope_scaling` is not supported")
    if float(rope.get("partial_rotary_factor", data.get("partial_rotary_factor", 1.0))) != 1.0:
        raise UserError(f"{path}: `partial_rotary_factor` is not supported")
    for key in ("attention_bias", "mlp_bias", "quantization_config"):
        if data.get(key):
            raise UserError(f"{path}: `{key}` is not supported")
    if data.get("hidden_act", "silu") != "silu":
        raise UserError(f"{path}: `hidden_act` {data['hidden_act']!r} is not supported (only silu)")


def import_hf(
    directory: Path,
    topology: Topology,
    *,
    dtype: torch.dtype = torch.float32,
    seq_len: int | None = None,
    trainable_last_blocks: int | None = None,
) -> Imported:
    """Read a Llama or OLMo-2 model; each rank reads only the tensors that it holds a part of.

    Raises UserError that names the file and the key or tensor at fault.
    """
    config = read_hf_config(directory, seq_len)
    tensors = SafetensorsFiles(directory)
    check_shapes(layout.canonical_shapes(config), tensors.shapes(), str(directory))
    model = build_model(config, topology, dtype=dtype, seed=None, trainable_last_blocks=trainable_last_blocks)
    model.load_canonical(tensors)
    return Imported(model, directory)


def hf_config(config: ModelConfig, dtype: torch.dtype, tokenizer: PublishedTokenizer) -> dict[str, Any]:
    """config.json as transformers 4 and 5 read it."""
    data: dict[str, Any] = {
        "architectures": [_ARCHITECTURE[config.family]],
        "model_type": config.family,
        "num_hidden_layers": config.layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.ffn,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.seq_len,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **tokenizer.model_ids,
    }
    return data | ({"mlp_bias": False} if config.family == "llama" else {})


def export_hf(
    model: Model, directory: Path, tokenizer: PublishedTokenizer, *, parents: Mapping[str, Path] | None = None
) -> None:
    """Write `directory` for transformers: config.json, safetensors in the model's dtype, tokenizer files.

    All ranks call; rank 0 writes, one file's worth of tensors in memory at a time. The directory appears
    whole (with a manifest) or not at all; an earlier export there is replaced. Raises UserError on every rank when
    something else lies at `directory` (it is left alone) and when the files cannot be written.
    """
    on_main(model.topology, lambda: check_replaceable(directory, KIND))
    tensors = iter_canonical(model)
    fault: UserError | OSError | None = None
    if model.topology.is_main:
        try:
            _write_directory(directory, model, tensors, tokenizer, parents or {})
        except (UserError, OSError) as error:
            fault = error
    for _ in tensors:  # each is gathered from all ranks, so all go through them, whether or not rank 0 could write
        pass
    on_main(model.topology, lambda: _raise(fault))


def _write_directory(
    directory: Path,
    model: Model,
    tensors: Iterator[tuple[str, torch.Tensor]],
    tokenizer: PublishedTokenizer,
    parents: Mapping[str, Path],
) -> None:
    settings = hf_config(model.config, model.dtype, tokenizer)
    with new_artifact(directory, KIND, settings, parents) as partial:
        atomic_write_text(partial / "config.json", json_text(settings, indent=2) + "\n")
        tokenizer.save(partial)
        try:
            write_tensors(partial, tensors, layout.canonical_shapes(model.config), model.dtype)
        except SafetensorError as error:  # its writer wraps what the file system says
            raise UserError(f"{directory}: cannot be written ({error})") from error


def _raise(fault: Exception | None) -> None:
    if fault is not None:
        raise fault
