"""Token sequences of any length as micro-batches of windows: each token is a target exactly once.

Shape suffixes: B rows, S positions.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synpro_engine.data import IGNORE


@dataclass(frozen=True, kw_only=True)
class Window:
    """A piece of one sequence that fits the model: the inputs and the targets they predict, equally many."""

    sequence: int
    start: int
    """Place of its first target in the sequence."""
    inputs: Sequence[int]
    targets: Sequence[int]
    last: bool
    """Whether its sequence ends with it."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a window stands in a micro-batch: its row and the column of its first token."""

    window: Window
    row: int
    column: int

    @property
    def columns(self) -> slice:
        """The columns it fills."""
        return slice(self.column, self.column + len(self.window.targets))


@dataclass(frozen=True, kw_only=True)
class WindowBatch:
    """tokens_BS and labels_BS, int64 on the CPU; columns that no place fills are padding and labelled -100."""

    tokens_BS: Tensor
    labels_BS: Tensor
    places: tuple[Place, ...]

    @property
    def packed(self) -> bool:
        """Whether some row holds more than one window."""
        return len({place.row for place in self.places}) < len(self.places)

    @property
    def ends(self) -> bool:
        """Whether its last window is the last of a sequence."""
        return self.places[-1].window.last

    def padded(self, rows: int, columns: int) -> WindowBatch:
        """The same with rows and columns of padding behind, up to this many."""
        sides = (0, columns - self.tokens_BS.size(1), 0, rows - self.tokens_BS.size(0))
        tokens_BS = torch.nn.functional.pad(self.tokens_BS, sides)
        labels_BS = torch.nn.functional.pad(self.labels_BS, sides, value=IGNORE)
        return WindowBatch(tokens_BS=tokens_BS, labels_BS=labels_BS, places=self.places)


def window_batches(
    sequences: Sequence[Sequence[int]], *, start_id: int, seq_len: int, micro_batch: int, packed: bool = False
) -> list[WindowBatch]:
    """Cut sequences into windows of at most `seq_len` tokens and lay them into micro-batches of `micro_batch` rows.

    A sequence's first token has `start_id` (the separator of documents) as its context; each window has its own.
    One window a row, of similar lengths in a batch; or, `packed`, as many windows a row as fit `seq_len`, which the
    model must then be kept from mixing (`separate_documents`).
    """
    # In the order of sequences, then sorted stably: every rank cuts alike without a word between them.
    windows = [w for i, ids in enumerate(sequences) for w in _windows(i, ids, start_id, seq_len)]
    windows.sort(key=lambda window: len(window.targets))  # little padding
    rows = _packed(windows, seq_len) if packed else [[window] for window in windows]
    return [_lay(rows[at : at + micro_batch]) for at in range(0, len(rows), micro_batch)]


def batches_by_sequence(
    sequences: Sequence[Sequence[int]], *, start_id: int, seq_len: int, micro_batch: int
) -> list[WindowBatch]:
    """The windows of one sequence in a micro-batch, or in several in a row where it has more than `micro_batch`.

    Sequences without tokens have none; those of similar lengths are neighbours. Cut as by `window_batches`.
    """
    batches = []
    for index in sorted(range(len(sequences)), key=lambda index: len(sequences[index])):
        # A micro-batch of one text: its weight gradients are then the text's own, whose norm clipping asks for.
        rows = [[window] for window in _windows(index, sequences[index], start_id, seq_len)]
        batches += [_lay(rows[at : at + micro_batch]) for at in range(0, len(rows), micro_batch)]
    return batches


def _windows(sequence: int, ids: Sequence[int], start_id: int, length: int) -> Iterator[Window]:
    # A later window begins with its predecessor's last token: every token has a context, and is a target once.
    inputs = [start_id, *ids[:-1]]
    for at in range(0, len(ids), length):
        stop = at + length
        last = stop >= len(ids)
        yield Window(sequence=sequence, start=at, inputs=inputs[at:stop], targets=ids[at:stop], last=last)


def _packed(windows: Sequence[Window], capacity: int) -> list[list[Window]]:
    """Best fit, longest first (Johnson 1973); rows in the order of their fill."""
    rows: list[list[Window]] = []
    room: list[tuple[int, int]] = []  # (free columns, row), sorted
    # Longest first into the tightest row that fits: within about 11/9 of the fewest rows.
    for window in reversed(windows):
        need = len(window.targets)
        at = bisect.bisect_left(room, (need, -1))
        if at == len(room):
            rows.append([])
            free, row = capacity, len(rows) - 1
        else:
            free, row = room.pop(at)
        rows[row].append(window)
        bisect.insort(room, (free - need, row))
    # By fill, because a micro-batch is as wide as its fullest row.
    return [rows[row] for _, row in reversed(room)]


def _lay(rows: Sequence[Sequence[Window]]) -> WindowBatch:
    width = max(sum(len(window.targets) for window in row) for row in rows)
    # Padding is id 0, which every vocabulary has; it stands behind all labels, where causal attention hides it.
    tokens_BS = torch.zeros((len(rows), width), dtype=torch.int64)
    labels_BS = torch.full((len(rows), width), IGNORE, dtype=torch.int64)
    places = []
    for number, row in enumerate(rows):
        column = 0
        for window in row:
            place = Place(window=window, row=number, column=column)
            tokens_BS[number, place.columns] = torch.as_tensor(window.inputs)
            labels_BS[number, place.columns] = torch.as_tensor(window.targets)
            places.append(place)
            column += len(window.targets)
    return WindowBatch(tokens_BS=tokens_BS, labels_BS=labels_BS, places=tuple(places))


def by_sequence(
    lengths: Sequence[int], batches: Iterable[WindowBatch], values: Iterable[Tensor], *, lead: tuple[int, ...] = ()
) -> list[Tensor]:
    """Take values [*lead, B, S] of micro-batches apart: [*lead, length] of each sequence, float64 on the CPU."""
    # fp64: sums over a text's tokens and differences of two models follow.
    parted = [torch.zeros((*lead, length), dtype=torch.float64) for length in lengths]
    for batch, value in zip(batches, values, strict=True):
        value = value.to("cpu", torch.float64)
        for place in batch.places:
            window = place.window
            stop = window.start + len(window.targets)
            parted[window.sequence][..., window.start : stop] = value[..., place.row, place.columns]
    return parted
