"""Small models that judge, with tokenizers of published families."""

import runpy
from pathlib import Path
from typing import Any

from synpro_engine.data import load_tokenizer, train_sentencepiece
from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.hf import export_hf

PUBLISHED: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[2] / "synth" / "published.py"))
SOURCE = "The mill burned down in 1871, and the town had no other employer. Its workers left for the coast that winter."


def write_model(directory: Path, family: str, topology: Topology) -> Path:
    """A random model, whose answers hang on the texts, with a family's tokenizer; `plain` has no chats, and one of
    single characters, so that `yes` and `no` are several tokens."""
    if family == "plain":
        tokenizer = train_sentencepiece([SOURCE, "ABCDEFG 0123456789 <>/_:()"], 310, directory / "tokenizer.model")
    else:
        tokenizer = load_tokenizer(PUBLISHED["write"](directory / "tokenizer", family))
    shape = ModelConfig(
        family="llama", layers=2, d_model=32, heads=4, kv_heads=2, ffn=48, seq_len=4096,
        vocab_size=-(-tokenizer.vocab_size // 2) * 2, init_std=0.2, rope_theta=1e4,
    )  # fmt: skip
    export_hf(build_model(shape, topology, seed=3), directory / "model", tokenizer)
    return directory / "model"
