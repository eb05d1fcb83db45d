"""Tokenising that is broken off anywhere, however often, ends with the bytes of a run that never was."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from synpro_engine.cycle.sections import CorpusConfig, TokenizerConfig
from synpro_engine.cycle.settings import TokenizeSettings
from synpro_engine.cycle.steps import stream
from synpro_engine.cycle.steps.corpus import build_corpus
from synpro_engine.data import Document, SplitConfig, train_sentencepiece, write_documents

SHARES = SplitConfig(train=0.6, reference=0.2, validation=0.2)


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def _texts(count: int) -> list[str]:
    rng = random.Random(1)
    word = lambda: f"{rng.choice('bcdfgl')}{rng.choice('aeiou')}{rng.randrange(50)}"  # noqa: E731
    return [" ".join(word() for _ in range(rng.randrange(40, 90))) for _ in range(count)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of several kinds, with bad records and texts that come again; a tokenizer; and shards."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "in" / "sub").mkdir(parents=True)
    texts = _texts(300)
    write_documents(folder / "in" / "a.jsonl.zst", (Document(f"a{n}", text) for n, text in enumerate(texts[:100])))
    lines = [json.dumps({"id": f"b{n}", "text": text}) for n, text in enumerate([*texts[100:200], *texts[:20]])]
    (folder / "in" / "b.jsonl").write_text("\n".join([*lines[:50], "{", '{"id": "a3", "text": "x"}', *lines[50:]]))
    table = pyarrow.table({"id": [f"c{n}" for n in range(100)], "text": texts[200:]})
    pyarrow.parquet.write_table(table, folder / "in" / "sub" / "c.parquet", row_group_size=30)
    train_sentencepiece(texts[:40], 320, folder / "t.model")
    build_corpus(_fresh(folder / "made"), _settings(folder, "given"))
    return folder


def _fresh(path: Path) -> Path:
    path.mkdir()
    return path


def _settings(folder: Path, kind: str) -> TokenizeSettings:
    given = TokenizerConfig(path=str(folder / "t.model"), threads=2)
    plain: dict[str, Any] = {"source": str(folder / "in"), "split": SHARES, "piece_chars": 150, "on_bad": "skip"}
    corpora = {
        "given": plain,
        "capped": {**plain, "max_train_tokens": 9000},
        "trained": {**plain, "max_train_tokens": 9000, "max_held_out_tokens": 5000},
        "shards": {"shards": str(folder / "made" / "shards"), "split": SHARES, "max_held_out_tokens": 5000},
    }
    tokenizer = TokenizerConfig(vocab_size=320, threads=2) if kind == "trained" else given
    return TokenizeSettings(corpus=CorpusConfig(**corpora[kind]), tokenizer=tokenizer, vocab_size=320, seed=0)


def _made(into: Path) -> dict[str, bytes]:
    # What was verified is remembered by times, which are never the same.
    files = (path for path in sorted(into.rglob("*")) if path.is_file() and path.name != ".verified.json")
    return {str(path.relative_to(into)): path.read_bytes() for path in files}


@pytest.mark.parametrize("kind", ["given", "capped", "trained", "shards"])
def test_a_build_that_is_broken_off_again_and_again_ends_with_the_same_bytes(
    corpus: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("_MARK_CHARS", 9000), ("BATCH_CHARS", 700)):
        monkeypatch.setattr(stream, name, size)
    settings = _settings(corpus, kind)
    build_corpus(_fresh(tmp_path / "whole"), settings)
    marks = 0

    def broken(commit: Any, *arguments: Any) -> None:
        """Before the ledger's line, behind it, or never: each commit once, so that every start comes a step further."""
        nonlocal marks
        marks += 1
        if marks % 3 == 0:
            raise Killed
        commit(*arguments)
        if marks % 3 == 1:
            raise Killed

    commit = stream.Journal.commit
    monkeypatch.setattr(stream.Journal, "commit", lambda *arguments: broken(commit, *arguments))
    starts = 0
    (tmp_path / "broken").mkdir()
    while True:
        starts += 1
        with contextlib.suppress(Killed):
            build_corpus(tmp_path / "broken", settings)
            break
    assert starts > (4 if kind == "shards" else 8)
    assert _made(tmp_path / "broken") == _made(tmp_path / "whole")
    assert not any("work" in name for name in _made(tmp_path / "whole"))


def test_records_before_the_last_mark_are_not_dealt_with_again(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_MARK_CHARS", 20_000)
    total = sum(path.stat().st_size for path in (corpus / "in").rglob("*.*"))
    bars: list[tuple[int, list[int]]] = []

    class Counting:
        def update(self, n: int, /) -> None:
            bars[-1][1].append(n)

    @contextlib.contextmanager
    def bar(size: int, name: str) -> Iterator[Any]:
        bars.append((size, []))
        yield Counting()

    commit, settings, told = stream.Journal.commit, _settings(corpus, "given"), []

    def once(journal: Any, state: Any, ends: Any = None) -> None:
        commit(journal, state, ends)
        if state["place"][0] == 1:
            monkeypatch.setattr(stream.Journal, "commit", commit)
            raise Killed

    monkeypatch.setattr(stream.Journal, "commit", once)
    with pytest.raises(Killed):
        build_corpus(_fresh(tmp_path / "a"), settings, told.append, bar)
    build_corpus(tmp_path / "a", settings, told.append, bar)
    assert sum("going on behind b.jsonl:" in line for line in told) == 1
    # Bars count all bytes of the source, those that are passed over too.
    assert bars[1][0] == sum(bars[1][1]) == total


_JOB = """
import sys
from synpro_engine.cycle.steps import stream
stream._MARK_CHARS, stream.BATCH_CHARS = 300_000, 20_000
from synpro_engine.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_stage_that_is_killed_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, number: signal.Signals) -> None:
    settings = ["corpus.max_held_out_tokens=null", "tokenizer.threads=2", "tokenizer.vocab_size=400"]

    def start(name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", _JOB, "tokenize", "smoke", *settings, "--dir", str(tmp_path / name)]
        return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)

    def committed() -> int:
        ledgers = (tmp_path / "broken" / "tokenize.partial" / "work").glob("*.ledger")
        return sum(path.stat().st_size for path in ledgers)

    whole, rng, ends = start("whole"), random.Random(0), []
    assert whole.wait() == 0, whole.stderr
    for _ in range(6):
        job, before = start("broken"), committed()
        # Wherever it is a little after it came further than the one before.
        while job.poll() is None and committed() == before:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.4))
        job.send_signal(number)
        ends.append(job.wait())
    last = start("broken")
    assert last.wait() == 0, last.stderr
    assert sum(end != 0 for end in ends) >= 3  # it was broken off indeed
    whole_files, broken_files = (_made(tmp_path / name / "tokenize") for name in ("whole", "broken"))
    assert whole_files.keys() == broken_files.keys()
    assert {name for name in whole_files if whole_files[name] != broken_files[name]} <= {"manifest.json"}
