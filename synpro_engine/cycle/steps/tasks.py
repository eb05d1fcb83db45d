"""The stages that bring tasks from files into tokens: references that say what helps, held-out ones, and questions.

Rank 0 does it alone. What held-out text has in common with other text is measured here, where a leak can still be
mended: before anything is trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from synpro_engine.config import Record, UserError, atomic_write_text
from synpro_engine.cycle.run_layout import (
    QUESTIONS,
    TASKS,
    TASKS_LEFT_OUT,
    TOKENIZER,
    documents_path,
    measured_path,
    questions_path,
    shards_path,
    task_key,
)
from synpro_engine.cycle.sections import TaskConfig
from synpro_engine.cycle.settings import TasksSettings
from synpro_engine.cycle.steps.intake import SPLITS
from synpro_engine.cycle.steps.left_out import LeftOut
from synpro_engine.data import (
    Task,
    Tokenizer,
    cap_documents,
    find_source,
    load_tokenizer,
    open_shards,
    read_documents,
    read_tasks,
    text_key,
    write_task_shards,
)
from synpro_engine.data.choices import with_questions, write_questions
from synpro_engine.data.encoding import usable_cpus
from synpro_engine.evaluate import Overlap, measure_overlap

_TOLD = 0.01  # share of a held-out text's n-grams that are found, above which the user is told


class TaskSet(Record):
    """What was read of one source, as `TASKS` says it. `tokens` are all of them, `learnt` those that are targets."""

    tasks: int
    tokens: int
    learnt: int
    left_out: dict[str, int]
    """Records left out, by reason; each is a line of `left_out.jsonl` below the name of the set."""


class Shared(Record):
    """What of a held-out text stands in another text."""

    ngrams: Overlap
    documents: int
    """Held-out texts or tasks that stand there whole, word for word."""


class TaskAccount(Record):
    """What a stage of tasks made, by the names of its shards."""

    sets: dict[str, TaskSet]
    shared: dict[str, dict[str, Shared]]
    """By held-out text, and by the text in which it was looked for."""


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Have errors inside begin with the key of the tasks whose shards are called `name`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"`{task_key(name)}`: {error}") from None


def tasks_stage(
    into: Path, settings: TasksSettings, tokens: Path, tell: Callable[[str], object] = lambda line: None
) -> None:
    """Tokenise the sets of tasks that `settings` name, and look for held-out text where it must not be.

    tokens: the `tokenize` stage. `tell` gets lines for the user. UserError names set and file.
    """
    tokenizer = load_tokenizer(tokens / TOKENIZER)
    writer = TaskWriter(into, tokenizer, settings.seq_len, settings.seed, tell)
    sets: dict[str, TaskSet] = {}
    for name, config in settings.sets.items():
        with naming(name):
            sets[name] = writer.write(name, config, settings.cap(name))

    def texts(name: str) -> Iterator[str]:
        return measured_texts(tokens, name, tokenizer, shards_path(into, name) if name in sets else None)

    shared: dict[str, dict[str, Shared]] = {name: {} for name in settings.held_out}
    for place in settings.searched:
        found = _shared({name: partial(texts, name) for name in settings.held_out}, texts(place))
        for name, one in found.items():
            shared[name][place] = one
            if one.documents or (one.ngrams.share or 0.0) > _TOLD:
                tell(f"{name}: {one.documents} of its texts and {one.ngrams.share or 0.0:.1%} of its"
                     f" {one.ngrams.n}-grams also stand in {place}")  # fmt: skip
    atomic_write_text(into / TASKS, TaskAccount(sets=sets, shared=shared).model_dump_json(indent=2) + "\n")


def asked_stage(
    into: Path, settings: TasksSettings, tokens: Path, tell: Callable[[str], object] = lambda line: None
) -> None:
    """Write the questions of the sets that `settings` name, which are those of the same sets among held-out tasks.

    They are what training is made from, so that held-out text which is not asked leaves it as it is. Arguments and
    errors are `tasks_stage`'s.
    """
    writer = TaskWriter(into, load_tokenizer(tokens / TOKENIZER), settings.seq_len, settings.seed, tell)
    (into / QUESTIONS).mkdir(exist_ok=True)
    for name, config in settings.sets.items():
        with naming(name):
            writer.write_questions(name, config, settings.cap(name))


def measured_texts(tokens: Path, name: str, tokenizer: Tokenizer, shards: Path | None = None) -> Iterator[str]:
    """The texts of a split, a reference or held-out tasks by the name of their shards, which lie at `shards` if given.

    tokens: the `tokenize` stage, whose tokenizer this is.
    """
    if name in SPLITS:
        return (document.text for document in read_documents(documents_path(tokens, name)))
    corpus = open_shards(shards or measured_path(tokens, name), tokenizer)
    return (tokenizer.decode(corpus.document_tokens(at).tolist()) for at in range(corpus.num_documents))


@dataclass(frozen=True)
class TaskWriter:
    """Brings sources of tasks into a directory, and lists what is left out.

    Each method takes the name of a source's shards, and the most tokens of it, taken in an order by hash; None: all.
    """

    into: Path
    tokenizer: Tokenizer
    seq_len: int
    """Most tokens of a task: whole ones have to fit a window."""
    seed: int
    tell: Callable[[str], object]
    """Gets lines for the user."""

    def write(self, name: str, config: TaskConfig, max_tokens: int | None) -> TaskSet:
        """Tokenise a source to `shards_path(into, name)`. Raises UserError as `read_tasks` and `write_task_shards`."""
        shards = shards_path(self.into, name)
        with self._reading(name, config, max_tokens) as (tasks, left_out, on_long):
            if config.choices_field is not None:  # those alone that can be asked
                tasks = (task for task, _ in with_questions(tasks, self.tokenizer, self.seq_len, on_long))
            stats = write_task_shards(tasks, self.tokenizer, shards, self.seq_len, seed=self.seed, on_long=on_long)
        learnt = open_shards(shards, self.tokenizer).num_learnt
        return TaskSet(tasks=stats.documents, tokens=stats.tokens, learnt=learnt, left_out=dict(left_out.counts))

    def write_questions(self, name: str, config: TaskConfig, max_tokens: int | None) -> None:
        """Write the questions of a source that has choices to `questions_path(into, name)`. Errors are `write`'s."""
        with self._reading(name, config, max_tokens) as (tasks, _, on_long):
            asked = with_questions(tasks, self.tokenizer, self.seq_len, on_long)
            write_questions((question for _, question in asked), questions_path(self.into, name))

    @contextmanager
    def _reading(
        self, name: str, config: TaskConfig, max_tokens: int | None
    ) -> Iterator[tuple[Iterable[Task], LeftOut, Callable[[Task], None] | None]]:
        """The tasks of a source, the list of what is left out, and what is to be called with one that is too long."""
        listed = self.into / TASKS_LEFT_OUT / f"{name}.jsonl"
        assert config.source is not None
        source = find_source(config.source)
        if source.remark:
            self.tell(source.remark)
        listed.parent.mkdir(exist_ok=True)
        with listed.open("w", encoding="ascii") as file:
            left_out = LeftOut(file.write)
            tasks: Iterable[Task] = read_tasks(source, config, partial(left_out.bad, source))
            if max_tokens is not None:
                tasks = cap_documents(tasks, max_tokens, self.seed, lambda task: task.count(self.tokenizer))
            yield tasks, left_out, left_out.task if config.on_bad == "skip" else None
        if left_out.counts:
            place = listed.relative_to(self.into)
            self.tell(f"{config.source}: records left out: {left_out}; listed in {place} of the stage")


def _shared(held_out: Mapping[str, Callable[[], Iterator[str]]], place: Iterator[str]) -> dict[str, Shared]:
    """What of each held-out text stands in `place`, which is read once."""
    # Whole texts too, for short questions have no 13 words in a row.
    keys = {name: Counter(map(text_key, texts())) for name, texts in held_out.items()}
    found: dict[str, set[bytes]] = {name: set() for name in held_out}

    def passing() -> Iterator[str]:
        for text in place:
            key = text_key(text)
            for name, known in keys.items():
                if key in known:
                    found[name].add(key)
            yield text

    return {
        name: Shared(ngrams=ngrams, documents=sum(keys[name][key] for key in found[name]))
        for name, ngrams in measure_overlap(held_out, passing(), threads=usable_cpus()).items()
    }
