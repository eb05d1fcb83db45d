"""The stage `tokenize` on a corpus, in this process or as a program of its own that tells its peak memory."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common.harness import status_bytes
from synpro_engine.cycle.sections import CorpusConfig, TokenizerConfig
from synpro_engine.cycle.settings import TokenizeSettings
from synpro_engine.cycle.steps.corpus import build_corpus
from synpro_engine.cycle.steps.stream import Bar, no_bar


def tokenize(source: Path, tokenizer: Path, into: Path, threads: int) -> dict[str, float]:
    """Make the stage anew, with its defaults but for the tokenizer; seconds of what it shows a bar for, by name."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(total: int, name: str) -> Iterator[Bar]:
        begun = time.perf_counter()
        with no_bar(total, name) as bar:
            yield bar
        seconds[name] = time.perf_counter() - begun

    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    config = TokenizerConfig(path=str(tokenizer), threads=threads)
    corpus = CorpusConfig(source=str(source))
    build_corpus(into, TokenizeSettings(corpus=corpus, tokenizer=config, vocab_size=49_152, seed=0), bar=timed)
    return seconds


def main() -> None:
    """Run `python -m benchmarks.tokenizing.stage SOURCE TOKENIZER INTO THREADS`; prints a JSON object."""
    source, tokenizer, into, threads = sys.argv[1:]
    begun, before = time.perf_counter(), status_bytes("VmRSS")
    tokenize(Path(source), Path(tokenizer), Path(into), int(threads))
    figures = {"peak_bytes": status_bytes("VmHWM"), "bytes_before": before, "seconds": time.perf_counter() - begun}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
