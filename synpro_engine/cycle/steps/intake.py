"""What is noted of the records of a corpus while they are read, so that a pass that was broken off can go on.

Held in memory are 24 bytes a document at the most for its text, where duplicates are looked for, and as many for its
id.
"""

from __future__ import annotations

from array import array
from collections import Counter
from pathlib import Path

import numpy as np

from synpro_engine.config import Config
from synpro_engine.config.journal import GrowingFile, Journal
from synpro_engine.cycle.run_layout import LEFT_OUT
from synpro_engine.cycle.sections import CorpusConfig
from synpro_engine.cycle.steps.left_out import LeftOut
from synpro_engine.cycle.steps.stream import Mark
from synpro_engine.data import SeenKeys, Split, split_of, text_key
from synpro_engine.data.records import Place

SPLITS: tuple[Split, ...] = ("train", "reference", "validation")
_FLUSHED = 1 << 12  # hashes put into a file together


class CorpusAccount(Config):
    """What became of the records of a source."""

    documents: dict[Split, int]
    """Whole documents taken into each split, before they are cut and capped."""
    left_out: dict[str, int]
    """Records left out, by reason; each is a line of `left_out.jsonl`."""
    files: int
    """Read."""
    files_not_read: tuple[str, ...]
    """Paths below the source that are no corpus files, or hidden."""


class KnownKeys:
    """The keys that were met, whose hashes lie in a file for a pass that goes on."""

    def __init__(self, file: GrowingFile) -> None:
        self.file, self._fresh = file, array("Q")
        self.seen = SeenKeys(np.fromfile(file.path, np.uint64, file.size // 8))

    def add(self, key: bytes) -> bool:
        """Add a key; False when it was there."""
        new = self.seen.add(key)
        if new:
            self.note()
        return new

    def note(self) -> None:
        """Have the key that was added to `seen` last be among those of the file."""
        self._fresh.append(self.seen.last)
        if len(self._fresh) >= _FLUSHED:
            self.flush()

    def flush(self) -> None:
        """Put all hashes into the file."""
        self.file.write(self._fresh.tobytes())
        self._fresh = array("Q")


class Intake:
    """Which records were taken, into which split, and which were left out; how far reading is."""

    def __init__(self, journal: Journal, into: Path, work: Path, corpus: CorpusConfig, seed: int) -> None:
        """into: the stage, where what is left out is listed; work: where hashes lie meanwhile."""
        self._shares, self._seed = corpus.split, seed
        so_far = journal.state.get("account", {"documents": {}, "left_out": {}})
        self._taken: Counter[Split] = Counter(so_far["documents"])
        self._listed = journal.open(into / LEFT_OUT)
        self.left_out = LeftOut(lambda line: self._listed.write(line.encode("ascii")), so_far["left_out"])
        """Takes the records that are left out."""
        self._texts = KnownKeys(journal.open(work / "texts.keys")) if corpus.deduplicate == "exact" else None
        self.ids = KnownKeys(journal.open(work / "ids.keys"))
        """For readers that look for an id that comes again."""
        self.place = Place(*journal.state.get("place", (0, 0)))
        """Of the last record that was dealt with."""

    def split_of(self, text: str) -> Split | None:
        """The split of a document; None for one that is left out, whose text came before.

        Of texts that differ in white space at most, the first is taken where duplicates are dropped; the same split
        takes them all in any case.
        """
        key = text_key(text)
        if self._texts is not None and not self._texts.add(key):
            return None
        # By the whole text, before it is cut: pieces of one document in two splits would
        # let training see held-out text.
        split = split_of(key, self._shares, self._seed)
        self._taken[split] += 1
        return split

    def take(self, split: Split) -> None:
        """Count a document that comes with its split; whether its text came before does not matter."""
        self._taken[split] += 1

    def mark(self, done: bool) -> Mark:
        """What a pass needs to go on from here."""
        keys = [self.ids, *([] if self._texts is None else [self._texts])]
        for each in keys:
            each.flush()
        account = {
            "documents": {split: self._taken[split] for split in SPLITS},
            "left_out": dict(sorted(self.left_out.counts.items())),
        }
        state = {"place": [self.place.file, self.place.line], "account": account, "done": done}
        return Mark(state, {file: file.size for file in (self._listed, *(each.file for each in keys))})
