"""Hugging Face directories in and out: config.json, safetensors, tokenizer files. transformers is not needed.

Every tensor of a file is used, or proven to carry nothing (a tied head, a rotary table). config.json is read in
`hf_config`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from synpro_engine.config import UserError, atomic_write_text, json_text
from synpro_engine.data.tokenizer import PublishedTokenizer
from synpro_engine.dist import Topology, on_main, say, shared_artifact
from synpro_engine.model import canonical
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.hf_config import architecture, read_hf_config
from synpro_engine.model.model import Model
from synpro_engine.model.rotary import inverse_frequencies
from synpro_engine.model.state import check_shapes, iter_canonical, load_canonical
from synpro_engine.model.tensor_files import SafetensorsFiles, write_tensors

KIND = "hf_model"
# What a family's config.json says beside the common keys, so that its defaults are not taken.
_EXTRA: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": False, "mlp_bias": False},
    "mistral": {"sliding_window": None},
    "olmo2": {"attention_bias": False},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"attention_bias": False, "use_sliding_window": False},
}
_ROTARY = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


class Imported(NamedTuple):
    """A model read from files, and the path that `data.load_tokenizer` takes for its tokenizer."""

    model: Model
    tokenizer: Path


def import_hf(
    directory: Path,
    topology: Topology,
    *,
    dtype: torch.dtype = torch.float32,
    seq_len: int | None = None,
) -> Imported:
    """Read a model of a known family; each rank reads only the tensors that it holds a part of.

    Every tensor of the files is used or proven to carry nothing. A head that is said to be the embedding, and is not,
    is taken as a head of its own, and the user is told. Raises UserError that names the file and the key or tensor at
    fault.
    """

    def shape() -> tuple[ModelConfig, bool]:
        published = read_hf_config(directory, seq_len)
        stored = _as_stored(directory, published, SafetensorsFiles(directory))
        return stored, stored != published

    # One reader: ranks that saw different files would build different models, and meet in collectives of other shapes.
    config, untied = on_main(topology, shape)
    if untied:
        say(topology, f"{directory}: `tie_word_embeddings` is true, but lm_head.weight is not the embedding: untied")
    model = build_model(config, topology, dtype=dtype, seed=None)
    load_canonical(model, SafetensorsFiles(directory), str(directory))
    return Imported(model, directory)


def stored_shape(directory: Path, seq_len: int | None = None) -> ModelConfig:
    """The shape that `import_hf` would build, from config.json and the files' headers; UserError likewise."""
    return _as_stored(directory, read_hf_config(directory, seq_len), SafetensorsFiles(directory))


def _as_stored(directory: Path, config: ModelConfig, tensors: SafetensorsFiles) -> ModelConfig:
    """The shape that the files hold: `config`, untied where there is a head of its own. UserError where none fits."""
    shapes = tensors.shapes()
    tied_head = config.tie_embeddings and {canonical.HEAD, canonical.EMBEDDING} <= set(shapes)
    # A file may say that the head is tied and hold another one; believing the config would give other logits.
    if tied_head and not tensors.equal(canonical.HEAD, canonical.EMBEDDING):
        config, tied_head = config.model_copy(update={"tie_embeddings": False}), False
    redundant = {name for name in shapes if _ROTARY.fullmatch(name)} | ({canonical.HEAD} if tied_head else set())
    needed = {name: shape for name, shape in shapes.items() if name not in redundant}
    check_shapes(canonical.canonical_shapes(config), needed, str(directory))
    for name in redundant - {canonical.HEAD}:
        # A stored rotary table carries nothing where it is what the config gives, up to its own rounding.
        stored, expected = tensors[name], inverse_frequencies(config)
        # A table may be stored in half precision; 1e-6 forgives the power function of another library.
        tolerance = max(2 * torch.finfo(stored.dtype).eps, 1e-6)
        if stored.shape != expected.shape or not torch.allclose(stored.float(), expected, rtol=tolerance, atol=1e-7):
            raise UserError(f"{directory}: tensor `{name}` is not what `rope_theta` and `rope_scaling` give")
    return config


def hf_config(config: ModelConfig, dtype: torch.dtype, tokenizer: PublishedTokenizer) -> dict[str, Any]:
    """config.json as transformers 4 and 5 read it."""
    family = config.family
    # transformers 5 refuses such a shape of Llama alone; Mistral's without a window is the same arithmetic.
    if family == "llama" and config.d_model % config.heads:
        family = "mistral"
    data: dict[str, Any] = {
        "architectures": [architecture(family)],
        "model_type": family,
        "num_hidden_layers": config.layers,
        "hidden_size": config.d_model,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.ffn,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": max(config.seq_len, config.published_seq_len or 0),
        # In both spellings: transformers 4 reads this key, transformers 5 the mapping below, each ignoring the other.
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta} | _rope_type(config),
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
        "hidden_act": "silu",
        "torch_dtype": str(dtype).removeprefix("torch."),
        **tokenizer.model_ids,
    }
    if config.rope_scaling is not None:
        data["rope_scaling"] = _rope_type(config)  # where transformers 4 looks for it
    # Last, so that a family's word counts: left out, transformers gives Mistral a window of 4096.
    return data | _EXTRA[family]


def _rope_type(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    return {"rope_type": "default"} if scaling is None else {"rope_type": "llama3"} | scaling.model_dump()


def export_hf(
    model: Model, directory: Path, tokenizer: PublishedTokenizer, *, parents: Mapping[str, Path] | None = None
) -> None:
    """Write `directory` for transformers: config.json, safetensors in the model's dtype, tokenizer files.

    All ranks call; rank 0 writes, one file's worth of tensors in memory at a time. The directory appears
    whole (with a manifest) or not at all; an earlier export there is replaced. Raises UserError on every rank when
    something else lies at `directory` (it is left alone) and when the files cannot be written, Stopped when the job is
    asked to stop.
    """
    settings, topology = hf_config(model.config, model.dtype, tokenizer), model.topology
    if tokenizer.unlike_transformers is not None:
        told = f"transformers will read text otherwise than tokenizer.model does ({tokenizer.unlike_transformers})"
        say(topology, f"{directory}: {told}; encode with the sentencepiece library")

    def write_the_rest(folder: Path) -> None:
        atomic_write_text(folder / "config.json", json_text(settings, indent=2) + "\n")
        tokenizer.save(folder)

    with shared_artifact(topology, directory, KIND, settings, parents) as folder:
        on_main(topology, lambda: write_the_rest(folder))
        shapes = canonical.canonical_shapes(model.config)
        # A generator: one slot is gathered over tensor-parallel ranks at a time, never the model.
        write_tensors(folder, iter_canonical(model), shapes, model.dtype, topology, stoppable=True)
