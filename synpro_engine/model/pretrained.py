"""One door to models made elsewhere: an embedded one, a GGUF file or a Hugging Face directory.

The formats are in `hf` and `gguf`.
"""

from __future__ import annotations

from pathlib import Path

import torch

from synpro_engine.config import UserError
from synpro_engine.dist import Topology, on_main
from synpro_engine.model.gguf import embedded_path, import_gguf
from synpro_engine.model.hf import Imported, import_hf

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
    path = on_main(topology, lambda: _gguf_file(source))
    if path is None:
        return import_hf(Path(source), topology, dtype=dtype, seq_len=seq_len)
    return import_gguf(path, topology, tokenizer_dir=tokenizer_dir, dtype=dtype, seq_len=seq_len)


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
