"""Batches of token windows to train on, from a mixture of sources.

The seed and the position alone decide the order. The position is kept to the sample, so that a run goes on exactly. The
data-parallel rank only picks its rows: the global order is the same for every layout, micro-batch size and number of
steps.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from synpro_engine.config import UserError
from synpro_engine.data.batch import Batch
from synpro_engine.data.corpus import TokenCorpus
from synpro_engine.data.curriculum import Curriculum
from synpro_engine.data.mixture import Blend
from synpro_engine.data.task_windows import TaskWindows
from synpro_engine.data.windows import WindowSource, repetition_mask
from synpro_kernels import IGNORE

Key = TypeVar("Key", bound=Hashable)
Span = tuple[int, int, int]
"""A document's number in its source, and which of its tokens: the first, and the first behind the last."""


@dataclass(frozen=True, kw_only=True)
class TokenOrigin:
    """Where one token of a batch is from."""

    source: str
    window: int
    """Of the source, from 0 without end."""
    document: int
    """Its number in the source."""
    offset: int
    """Among the document's tokens, from 0."""


class TokenLoader:
    """Deals global batches of windows from weighted sources; each data-parallel rank gets its rows of them.

    Sample n of the run comes from the source that the blend names, and is that source's next window. Documents
    are put end to end: the loss crosses their borders, where an EOS stands, and attention does unless they are kept
    apart.
    """

    def __init__(
        self,
        corpora: Mapping[str, TokenCorpus],
        weights: Mapping[str, float],
        seq_len: int,
        global_batch: int,
        seed: int,
        *,
        dp_rank: int = 0,
        dp_size: int = 1,
        mask_repetitions: bool = False,
        separate_documents: bool = False,
        curricula: Mapping[str, Curriculum] | None = None,
        order_before: int | None = None,
    ) -> None:
        """`weights` (any sum; 0 deals nothing more of a source) has the names of `corpora`; `global_batch` counts
        windows over all ranks. `order_before`: another seed whose positions are gone on from, as many windows of each
        source on, in this one's order.

        `mask_repetitions` drops the loss of windows in which a short phrase repeats (see `repetition_mask`);
        `separate_documents` marks batches as such whose documents do not see each other. `curricula`: of those sources
        that are not simply shuffled in every epoch.
        Raises UserError when a corpus is smaller than a window, corpora were tokenised with different
        tokenizers, or `dp_size` does not divide `global_batch`.
        """
        assert corpora and set(corpora) == set(weights) and 0 <= dp_rank < dp_size
        # Ids of two tokenizers would train one embedding on two meanings, without an error.
        if len({corpus.fingerprint for corpus in corpora.values()}) > 1:
            raise UserError(f"sources {', '.join(corpora)} are not all tokenised with the same tokenizer")
        # Equal rows on every rank: the step's micro-batches are collective, and a rank with fewer
        # would leave the others waiting.
        if global_batch % dp_size:
            raise UserError(f"a global batch of {global_batch} does not divide over {dp_size} data-parallel ranks")
        self.seq_len, self.global_batch, self.seed = seq_len, global_batch, seed
        self._order_before = seed if order_before is None else order_before
        self.mask_repetitions, self.separate_documents = mask_repetitions, separate_documents
        local = global_batch // dp_size
        self._rows = range(dp_rank * local, (dp_rank + 1) * local)
        # Each shuffles by its own name, so that a source added later leaves the order of the others as it was.
        of = curricula or {}
        self._sources = {name: _windows(name, corpus, seq_len, seed, of.get(name)) for name, corpus in corpora.items()}
        self._weights = {name: float(weights[name]) for name in corpora}
        self._blend = Blend(self._weights)
        self._dealt = dict.fromkeys(corpora, 0)
        # Windows that a source gave before its curriculum: a run may take one up where it trains on.
        self._before = dict.fromkeys(corpora, 0)
        # Documents are numbered through all sources, so that a number names one of them in a mixture too.
        before = itertools.accumulate((corpus.num_documents for corpus in corpora.values()), initial=0)
        self._first_document = dict(zip(corpora, before, strict=False))

    @property
    def first_row(self) -> int:
        """Number in the global batch of the first row that this rank is dealt."""
        return self._rows.start

    @property
    def samples_by_source(self) -> dict[str, int]:
        """Windows given to all ranks together since the first batch; times seq_len it is the tokens trained on."""
        return dict(self._dealt)

    def next_batch(self) -> Batch:
        """Return this rank's rows of the next global batch, B = global_batch / dp_size, and move on."""
        rows, documents, targets, streams = [], [], [], []
        # Every rank draws for all rows and gathers its own: so the position is the same everywhere, and in any layout.
        for row in range(self.global_batch):
            name = self._blend.next()
            if row in self._rows:
                tokens, numbers, learnt = self._sources[name].window(self._dealt[name] - self._before[name])
                rows.append(tokens)
                targets.append(np.ones(self.seq_len, bool) if learnt is None else learnt[1:])
                streams.append(learnt is None)
                documents.append(self._first_document[name] + numbers[1:])
            self._dealt[name] += 1
        windows_BS1 = np.stack(rows)
        # Copies: the two overlap, and labels are written to.
        tokens_BS, labels_BS = windows_BS1[:, :-1].copy(), windows_BS1[:, 1:].copy()
        labels_BS[~np.stack(targets)] = IGNORE
        if self.mask_repetitions:
            # Not of tasks, whose windows are filled up with one token.
            labels_BS[repetition_mask(windows_BS1) & np.array(streams)] = IGNORE
        arrays = (torch.from_numpy(each) for each in (tokens_BS, labels_BS, np.stack(documents)))
        return Batch(*arrays, apart=self.separate_documents)

    def skip(self, batches: int) -> None:
        """Move on by so many batches, and make none of them."""
        before = dict(self._blend.drawn)
        self._blend.skip(batches * self.global_batch)
        self._dealt = {name: dealt + self._blend.drawn[name] - before[name] for name, dealt in self._dealt.items()}

    def check_supply(self, batches: int) -> None:
        """UserError where a source has not text enough for the next `batches`: its documents may not be read again."""
        limited = [
            source
            for source in self._sources.values()
            if isinstance(source, WindowSource)
            and source.curriculum is not None
            and (source.curriculum.config.max_epochs is not None or source.curriculum.config.late_from is not None)
        ]
        if limited:
            blend = Blend(self._weights, self._blend.drawn)
            blend.skip(batches * self.global_batch)
            for source in limited:
                taken = blend.drawn[source.name] - self._blend.drawn[source.name]
                last = self._dealt[source.name] - self._before[source.name] + taken - 1
                if taken:
                    source.epoch_of(last)

    def origin(self, row: int, token: int) -> TokenOrigin:
        """Where input `token` in row `row` of the next global batch is from; the position stays."""
        name, window = self._window(row)
        document, offset = self._stream(name).place(window - self._before[name], token)
        return TokenOrigin(source=name, window=window, document=document, offset=offset)

    def row_sources(self) -> list[str]:
        """Of which source each row of the next global batch is; the position stays."""
        blend = Blend(self._weights, self._blend.drawn)
        return [blend.next() for _ in range(self.global_batch)]

    def row_spans(self, row: int) -> list[Span]:
        """Which tokens of which documents of its source the inputs of a row of the next global batch are, in order."""
        name, window = self._window(row)
        return self._stream(name).stretches(window - self._before[name])

    def _window(self, row: int) -> tuple[str, int]:
        """Of a row of the next global batch: the source, and its window."""
        blend = Blend(self._weights, self._blend.drawn)
        blend.skip(row)
        name = blend.next()
        return name, self._dealt[name] + blend.drawn[name] - self._blend.drawn[name] - 1

    def readings(self, name: str, spans: Mapping[Key, Span], batches: int) -> dict[Key, list[tuple[int, int, int]]]:
        """What the next `batches` read of a source's spans: batch (from 0 for the next one), row, input tokens."""
        source, blend = self._stream(name), Blend(self._weights, self._blend.drawn)
        begin = self._dealt[name] - self._before[name]
        samples = range(batches * self.global_batch)
        # Which of them are the source's; alone it has all, of which pretraining may deal billions.
        own = samples if len(self._sources) == 1 else array("q", (n for n in samples if blend.next() == name))
        end = begin + len(own)
        found: dict[Key, list[tuple[int, int, int]]] = {key: [] for key in spans}
        within: dict[int, list[tuple[Key, int, int]]] = {}
        for key, (document, first, stop) in spans.items():
            within.setdefault(document, []).append((key, first, stop))
        epochs = range(source.epoch_of(begin)[0], source.epoch_of(end - 1)[0] + 1) if len(own) else ()
        for epoch in epochs:
            for document, window, first, stop in source.reading(within.keys(), epoch):
                if begin <= window < end:
                    for key, low, high in within[document]:
                        if (tokens := min(stop, high) - max(first, low)) > 0:
                            found[key].append((*divmod(own[window - begin], self.global_batch), tokens))
        return {key: sorted(places) for key, places in found.items()}

    def _stream(self, name: str) -> WindowSource:
        source = self._sources[name]
        assert isinstance(source, WindowSource), "tasks are measured on, and not trained on"
        return source

    def document_id(self, number: int) -> str:
        """Id of the document that batches call `number`, unique within its source."""
        name = [name for name, first in self._first_document.items() if first <= number][-1]
        return self._sources[name].corpus.document_id(number - self._first_document[name])

    def documents_at(self, position: Mapping[str, Any]) -> dict[str, list[str]]:
        """Ids by source of the documents in the batch that was dealt from `position`, over all ranks, each once."""
        # The batch is dealt again from its position, so that no step pays for names that are
        # only wanted when one is skipped.
        here = self.state_dict()
        self.load_state_dict(position)
        numbers: dict[str, dict[int, None]] = {}
        for _ in range(self.global_batch):
            name = self._blend.next()
            window = self._dealt[name] - self._before[name]
            numbers.setdefault(name, {}).update(dict.fromkeys(self._sources[name].documents(window)))
            self._dealt[name] += 1
        self.load_state_dict(here)
        return {name: [self._sources[name].corpus.document_id(n) for n in each] for name, each in numbers.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the position as plain JSON data, the same on every rank."""
        sources = {
            name: {"samples": self._dealt[name], "tokens": s.corpus.num_tokens, "documents": s.corpus.num_documents}
            | self._curriculum_of(name)
            for name, s in self._sources.items()
        }
        # Apart from the windows dealt: after a change of weights the two counts part, for a new blend begins at 0.
        blend = {"weights": dict(self._weights), "drawn": dict(self._blend.drawn)}
        return {"seed": self.seed, "seq_len": self.seq_len, "sources": sources, "blend": blend}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. Sources that it lacks start at their first window, the others where they were.

        With the same sources and weights the sequence of batches is that of a run never stopped. With others the
        new shares hold from here on; they do not make up for the past. Raises UserError when the position has
        no meaning here: another seed or sequence length, a source gone or changed.
        """
        for key, ours in (("seed", {self.seed, self._order_before}), ("seq_len", {self.seq_len})):
            if state[key] not in ours:
                told = " or ".join(map(str, sorted(ours)))
                raise UserError(f"the checkpoint's data position has {key} {state[key]}, this run {told}")
        dealt, before = dict.fromkeys(self._sources, 0), dict.fromkeys(self._sources, 0)
        for name, old in state["sources"].items():
            dealt[name], before[name] = self._position(name, old)
        self._dealt, self._before = dealt, before
        for name, source in self._sources.items():
            if isinstance(source, WindowSource) and source.curriculum is not None:
                source.take_up(before[name])
        # Compared as they are, not as shares: weights are written by the same code, and JSON keeps a float's digits.
        drawn = state["blend"]["drawn"] if state["blend"]["weights"] == self._weights else None
        self._blend = Blend(self._weights, drawn)

    def _curriculum_of(self, name: str) -> dict[str, Any]:
        """What a position says of a source that has one."""
        source = self._sources[name]
        if not isinstance(source, WindowSource) or source.curriculum is None:
            return {}
        return {"curriculum": source.curriculum.fingerprint, "before": self._before[name]}

    def _position(self, name: str, old: Mapping[str, Any]) -> tuple[int, int]:
        """Windows that a source has given, and those of them that it gave before its curriculum."""
        if name not in self._sources:
            raise UserError(f"the checkpoint's data position has source `{name}`, this run does not")
        corpus = self._sources[name].corpus
        # Sizes alone: within a run the stages that corpora come from are compared by content.
        if (corpus.num_tokens, corpus.num_documents) != (old["tokens"], old["documents"]):
            raise UserError(f"source `{name}` is not the corpus of the checkpoint: its size has changed")
        ours, theirs = self._curriculum_of(name).get("curriculum"), old.get("curriculum")
        if theirs is not None and theirs != ours:
            raise UserError(
                f"source `{name}` was read by another curriculum before; its settings or scores have changed"
            )
        # One that is new begins with its first pass.
        return old["samples"], old["before"] if theirs is not None else old["samples"] if ours is not None else 0


def _windows(
    name: str, corpus: TokenCorpus, seq_len: int, seed: int, curriculum: Curriculum | None
) -> WindowSource | TaskWindows:
    if corpus.learnt is None:
        return WindowSource(name, corpus, seq_len, seed, curriculum)
    assert curriculum is None, "tasks are measured on, and not trained on"
    return TaskWindows(name, corpus, seq_len, seed=seed)
