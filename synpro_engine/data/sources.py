"""Which files a source of documents stands for, in the order in which they are read, and what of it is left out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from synpro_engine.config import UserError
from synpro_engine.data.compressed import COMPRESSED
from synpro_engine.data.embedded import EMBEDDED_NAMES, EMBEDDED_PREFIX, embedded_files
from synpro_engine.data.file_names import check_names, path_below
from synpro_engine.data.saved_datasets import DESCRIPTIONS, arrow_files_apart
from synpro_engine.data.walking import CorpusFile, Walked, names_each, not_read, walk_place
from synpro_engine.storage import is_remote
from synpro_engine.storage.places import joined, split_pattern
from synpro_engine.storage.stores import find_file

_LINES = (".jsonl", ".ndjson", ".json")
_TABLES = (".parquet", ".arrow")
KNOWN = (
    ".jsonl, .ndjson or .json (one JSON object a line; plain or .zst, .zstd, .gz, .bz2, .xz), .parquet, .arrow (as"
    " Hugging Face's datasets has it)"
)
# What tools put beside the data that they describe.
_DESCRIPTIONS = ("manifest.json", "dataset_infos.json", *DESCRIPTIONS)


@dataclass(frozen=True, kw_only=True)
class Source:
    """The files of a source in reading order: by path below its root, name by name, in the order of code points."""

    name: str
    """As the user gave it."""
    walked: Walked
    files: tuple[CorpusFile, ...]
    left_out: tuple[str, ...] = ()
    """Paths below the root that are not read (a folder ends in `/`): hidden ones, and what is no corpus file."""

    def path_of(self, file: CorpusFile) -> str:
        """The path of one of its files below the root, as text that any encoding can hold."""
        return self.walked.path_of(file)

    @property
    def is_remote(self) -> bool:
        """Whether it lies in an object store, where looking through it once more costs as much as reading it."""
        return is_remote(self.walked.root)

    @property
    def remark(self) -> str:
        """What is left out, in a line for the user; "" for nothing."""
        return not_read(self.name, self.left_out)


def find_source(name: str | Path) -> Source:
    """The files of `name`: one of `EMBEDDED_NAMES`, a corpus file, a directory, searched through all its folders, or a
    pattern (`*`, `**`, `{000..099}`) of files; on this machine or in an object store.

    A name that begins with a dot or an underscore is hidden. A folder that links lead to twice is read once. Raises
    UserError for a source that is not there, a file of an unknown kind, a directory without a corpus file, and for
    files of a directory or of `*` among which a set's or a saved dataset's are missing, or one split is to be named.
    """
    name = str(name)
    if name.startswith(EMBEDDED_PREFIX):
        files = embedded_files(name)
        return Source(name=name, walked=Walked(root=str(files[0].parent), files=files), files=files)
    walked = walk_place(name)
    if walked is None:
        raise UserError(f"{name or '(no name)'}: no such file or directory (built in: {EMBEDDED_NAMES})")
    if walked.single:
        [file] = walked.files
        if not _is_corpus_file(file.name):
            raise UserError(f"{name}: unknown kind of corpus file; known: {KNOWN}")
        return Source(name=name, walked=walked, files=walked.files)
    named = {walked.path_of(file): file for file in walked.files}
    read = {path: file for path, file in named.items() if _is_corpus_file(file.name)}
    if not names_each(walked.pattern):
        apart = arrow_files_apart(walked.root, {**named, **_descriptions(walked, named)}, walked.pattern)
        read = {path: file for path, file in read.items() if path not in apart}
        check_names(walked.root, read, walked.pattern)
    left_out = tuple(sorted([*walked.left_out, *(named.keys() - read.keys())]))
    source = Source(name=name, walked=walked, files=tuple(read.values()), left_out=left_out)
    if not source.files:
        where = "matches" if split_pattern(name)[1] else "is in this directory"
        raise UserError(f"{source.remark or name}: no corpus file {where}; known: {KNOWN}")
    return source


def _descriptions(walked: Walked, paths: Iterable[str]) -> dict[str, CorpusFile]:
    """What describes saved datasets beside and above the `.arrow` files of a pattern, which need not match it."""
    if not walked.pattern:
        return {}  # among the files
    folders = {folder for path in paths if path.endswith(".arrow") for folder in map(str, PurePosixPath(path).parents)}
    beside = [path_below("" if folder == "." else folder, name) for folder in sorted(folders) for name in DESCRIPTIONS]
    if is_remote(walked.root):
        asked = {path: find_file(joined(walked.root, path)) for path in beside}
        return {path: file for path, file in asked.items() if file is not None}
    return {path: file for path in beside if (file := Path(walked.root, path)).is_file()}


def _is_corpus_file(name: str) -> bool:
    name = name.lower()
    stem, packed = next(((name.removesuffix(s), True) for s in COMPRESSED if name.endswith(s)), (name, False))
    # They end in .json and hold one object over many lines, which would be taken for a broken corpus file.
    if name in _DESCRIPTIONS:
        return False
    # A packed file without another suffix (`RC_2023-01.zst`) can hold nothing but lines either.
    return stem.endswith(_LINES) or (not packed and name.endswith(_TABLES)) or (packed and "." not in stem)
