"""A corpus of 1 GB is tokenised, capped and looked through for overlap in less memory than it would take to hold it."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from synpro_engine.data import Document, read_documents, write_documents

_GIGABYTE = 10**9
_ROOM_MB = 320  # beside what is imported: threads' batches, the tables of keys, the n-grams looked for

_JOB = """
import json, resource, sys
from pathlib import Path
from synpro_engine.cycle.sections import CorpusConfig, TokenizerConfig
from synpro_engine.cycle.settings import TokenizeSettings
from synpro_engine.cycle.steps.corpus import build_corpus

folder, room = Path(sys.argv[1]), int(sys.argv[2])
held = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) << 10
resource.setrlimit(resource.RLIMIT_DATA, (held + room, held + room))
corpus = CorpusConfig(source=str(folder / "in"), piece_chars=3000, max_train_tokens=60_000_000)
tokenizer = TokenizerConfig(path=str(folder / "tokenizer.json"), threads=2)
(folder / "out").mkdir()
build_corpus(folder / "out", TokenizeSettings(corpus=corpus, tokenizer=tokenizer, vocab_size=60_000, seed=0))
"""


def _documents(number: int, count: int) -> Iterator[Document]:
    """Documents of some 10 kB that no two of are equal."""
    rng = random.Random(number)
    text = "\n\n".join(document.text for document in read_documents("embedded:sotu") if document.text.isascii())
    for at in range(count):
        start = rng.randrange(len(text) - 10_000)
        yield Document(f"{number}/{at}", f"{number} {at} {text[start : start + 10_000]}")


@pytest.mark.slow
def test_a_gigabyte_is_tokenised_in_bounded_memory(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(4):
        write_documents(tmp_path / "in" / f"{number}.jsonl.zst", _documents(number, _GIGABYTE // 40_000))
    words = dict.fromkeys(word for document in _documents(0, 300) for word in document.text.split())
    vocabulary = {word: id for id, word in enumerate(["<unk>", "<|endoftext|>", *list(words)[:50_000]])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    command = [sys.executable, "-c", _JOB, str(tmp_path), str(_ROOM_MB << 20)]
    # One arena: each further one of the C library reserves 64 MB, however little is held in it.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    account = json.loads((tmp_path / "out" / "corpus.json").read_text())
    assert sum(account["documents"].values()) == 4 * (_GIGABYTE // 40_000)
    assert account["overlap"]["validation"]["ngrams"] > 10**6
    stats = json.loads((tmp_path / "out" / "shards" / "train" / "stats.json").read_text())
    assert 59_900_000 < stats["tokens"] <= 60_000_000
