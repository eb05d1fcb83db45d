"""One GGUF file: its metadata as a model's shape, its tensors by canonical name, dequantised.

llama.cpp orders the rotary pairs of its llama architecture, and only of that one, in another way than Hugging Face;
this is undone. Bytes, keys and tensors that are not understood are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synpro_engine.config import UserError, brief, validate
from synpro_engine.model import canonical
from synpro_engine.model.config import ModelConfig, RopeScaling
from synpro_engine.model.rotary import inverse_frequencies
from synpro_engine.model.tensor_files import refuse_pointer

_TOP = {
    "token_embd.weight": canonical.EMBEDDING,
    "output_norm.weight": canonical.FINAL_NORM,
    "output.weight": canonical.HEAD,
}
_BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_ARCHITECTURES = ("llama", "olmo2", "qwen2", "qwen3")
_KEYS = {
    "layers": "block_count",
    "d_model": "embedding_length",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "ffn": "feed_forward_length",
    "seq_len": "context_length",
    "rope_theta": "rope.freq_base",
    "norm_eps": "attention.layer_norm_rms_epsilon",
}
# Keys of an architecture that are no shape, with the values under which they change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "rope.scaling.type": ("none",),
    "rope.scaling.original_context_length": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
}
# The slowdown of each rotary pair: Llama 3.1's stretch, whose other numbers the format leaves out.
_ROPE_FREQS = "rope_freqs.weight"
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


class GGUFFile(Mapping[str, Tensor]):
    """A GGUF file's metadata, and its tensors by canonical name, fp32, dequantised when asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader = _open(path)
        self.architecture = self.find("general.architecture")
        if self.architecture not in _ARCHITECTURES:
            raise UserError(
                f"{path}: `general.architecture` {brief(self.architecture)} is not one of {', '.join(_ARCHITECTURES)}"
            )
        # A first part reads like a whole file with tensors missing, and the message would be about a tensor.
        if self.find("split.count", 1) not in (0, 1):
            raise UserError(f"{path}: `split.count`: one of several files; merge them first (`gguf-split --merge`)")
        entries = {tensor.name: tensor for tensor in self._reader.tensors}
        self._rope_freqs = entries.pop(_ROPE_FREQS, None)
        self._entries: dict[str, Any] = {}
        for name, entry in entries.items():
            match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
            canonical_name = _TOP.get(name)
            if match and match[2] in _BLOCK:
                canonical_name = f"model.layers.{match[1]}.{_BLOCK[match[2]]}.{match[3]}"
            # Two names lead to one tensor (`ffn_norm`, `post_attention_norm`), so a mixture of families shows here.
            if canonical_name is None or canonical_name in self._entries:
                raise UserError(f"{path}: tensor `{name}` is not part of a model of a known family")
            self._entries[canonical_name] = entry
        # GGUF writes the innermost dimension first.
        self.shapes = {name: tuple(int(n) for n in reversed(t.shape)) for name, t in self._entries.items()}

    def find(self, key: str, default: Any = None) -> Any:
        """A metadata value, or `default`."""
        field = self._reader.fields.get(key)
        try:
            return default if field is None else field.contents()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: `{key}` is no text ({error})") from None

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._dequantised(self._entries[name]).reshape(self.shapes[name])
        # By the file's own counts, for it is the file's rows that are reordered, before any shape is made from it.
        if self.architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            kind = "head_count" if "q_proj" in name else "head_count_kv"
            tensor = unpermute(
                tensor, int(self.find(f"llama.attention.{kind}", self.find("llama.attention.head_count")))
            )
        return tensor

    def _dequantised(self, entry: Any) -> Tensor:
        import gguf

        try:
            # A copy: unquantised tensors come as read-only views of the mapped file.
            return torch.tensor(gguf.dequantize(entry.data, entry.tensor_type))
        except NotImplementedError:
            raise UserError(
                f"{self.path}: tensor `{entry.name}` is of type {entry.tensor_type.name}, no weight's"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def config(self, seq_len: int | None = None) -> ModelConfig:
        """The model's shape; `seq_len` replaces the file's context length. UserError names the key at fault."""
        prefix = f"{self.architecture}."
        names = {field: prefix + key for field, key in _KEYS.items()}
        if canonical.EMBEDDING not in self or len(self.shapes[canonical.EMBEDDING]) != 2:
            raise UserError(f"{self.path}: tensor `token_embd.weight` is missing, or no matrix")
        settings = {field: self.find(key) for field, key in names.items()}
        settings = {field: value for field, value in settings.items() if value is not None}
        for field in ("rope_theta", "norm_eps"):
            # GGUF stores float32: 1e-05 comes as 9.999999747e-06, and shapes would differ from
            # those of the same model elsewhere.
            if isinstance(settings.get(field), float):
                settings[field] = _shortest(settings[field])
        settings |= {
            "family": self.architecture,
            "kv_heads": settings.get("kv_heads", settings.get("heads")),
            # llama.cpp's own value where the key is missing.
            "rope_theta": settings.get("rope_theta", 10_000.0),
            # From the tensor, since the key is often missing and padding rows are part of the embedding.
            "vocab_size": self.shapes[canonical.EMBEDDING][0],
            "tie_embeddings": canonical.HEAD not in self,
        }
        published = settings.get("seq_len")
        settings |= {} if seq_len is None else {"seq_len": seq_len}
        for field in ("layers", "d_model", "heads", "ffn", "seq_len", "norm_eps"):
            if field not in settings:
                raise UserError(f"{self.path}: `{names[field]}` is missing")
        config = validate(ModelConfig, settings, str(self.path), names=names)
        # Last, for what is neutral depends on the shape: a rotation over part of a head is
        # named by a number, not by a flag.
        self._refuse_unsupported(prefix, set(names.values()), config)
        window = self.find(prefix + "attention.sliding_window") or None
        return config.model_copy(update={"rope_scaling": self._rope_scaling(config)}).published_as(published, window)

    def _refuse_unsupported(self, prefix: str, known: set[str], config: ModelConfig) -> None:
        """Every key of the architecture is known, says what the shape says, or is refused."""
        neutral = _NEUTRAL | {
            "attention.value_length": (config.head_size,),
            "rope.dimension_count": (config.head_size,),
            "vocab_size": (config.vocab_size,),
        }
        for key in self._reader.fields:
            value, name = self.find(key), key.removeprefix(prefix)
            # A window that no sequence outgrows is full attention; 0 says that there is none.
            if name == "attention.sliding_window" and isinstance(value, int) and not 0 < value < config.seq_len:
                continue
            if key.startswith(prefix) and key not in known and value not in neutral.get(name, ()):
                raise UserError(f"{self.path}: `{key}` = {brief(value)} is not supported")

    def _rope_scaling(self, config: ModelConfig) -> RopeScaling | None:
        """What `rope_freqs.weight` holds, where that is what Llama 3.1's numbers give with some factor."""
        if self._rope_freqs is None:
            return None
        slower = self._dequantised(self._rope_freqs)
        plain = inverse_frequencies(config)
        # The longest waves are slowed by all of the factor, so the largest entry is the factor itself.
        factor = float(slower.max()) if slower.shape == plain.shape and bool(slower.isfinite().all()) else 0.0
        if factor >= 1.0:
            scaling = validate(RopeScaling, {"factor": _shortest(factor)} | _LLAMA3, str(self.path))
            stretched = inverse_frequencies(config.model_copy(update={"rope_scaling": scaling}))
            if torch.allclose(plain / stretched, slower, rtol=1e-5):
                return scaling
        raise UserError(f"{self.path}: tensor `{_ROPE_FREQS}` is not the stretch of Llama 3.1")


def _open(path: Path) -> Any:
    """gguf's reader, which raises whatever the bytes lead it to: all of that means that they are no such file."""
    import gguf

    class Reader(gguf.GGUFReader):
        """Reads past the end are errors: the library gives less than was asked for, and counts on.

        They are plain arrays: views of a memory map take several times as long to make, and a vocabulary is half a
        million of them.
        """

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            # In Python's integers: a count from a damaged file overflows numpy's, and a small wrong sum would pass.
            offset, count = int(offset), int(count)
            kind = np.dtype(dtype).newbyteorder(self.byte_order if override_order is None else override_order)
            end = offset + count * kind.itemsize
            if end > len(self.data):
                raise ValueError(f"it ends before byte {end}")
            return np.frombuffer(self.data, kind, count, offset)

    try:
        return Reader(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:
        refuse_pointer(path)
        raise UserError(
            f"{path}: not a readable GGUF file ({' '.join(str(error).split()) or type(error).__name__})"
        ) from error


def _shortest(value: float) -> float:
    """The number that was meant by a float32 field: 1e-05, not 9.999999747e-06."""
    return float(f"{value:.7g}")


def unpermute(weight: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's order of a query or key matrix's rows: pairs side by side -> halves (rotate_half).

    weight [heads hn, H] -> the same shape; within a head, row 2i + j goes to j hn/2 + i.
    """
    rows, width = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, width).swapaxes(1, 2).reshape(rows, width)
