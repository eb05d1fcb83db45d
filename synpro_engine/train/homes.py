"""Which rank works on which whole matrix, and how its pieces get there and back.

Optimizer states are cut over tensor- and data-parallel ranks and layers over the pipeline, but a matrix is
orthogonalised as a whole. Each has one home rank among all of the job, so that no rank does another's work; the pieces
go there by an all-to-all, and what is made of them goes back the same way. Matrices are dealt by cost and sent in
rounds, so that a rank holds a bounded number of whole ones at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from synpro_engine.dist import Topology
from synpro_engine.train.owned import Rectangle, Shape

ROUND_ENTRIES = 1 << 26
"""Entries of the whole matrices that one rank works on in a round, unless a single one is larger."""

Place = tuple[Shape, Shape]
"""(offset, extent) of a rectangle in a matrix."""
Taken = dict[str, tuple[Shape, list[Place]]]
"""What one rank owns of each matrix, by key: its whole shape and the rank's rectangles."""
Work = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Whole matrices by key to others of the same shapes."""


@dataclass(frozen=True)
class Homes:
    """The rank that each matrix is worked on at, the same plan on every rank.

    rounds: keys in the order in which they are sent, round by round. owned: by rank, what it owns of each key.
    """

    home: dict[str, int]
    rounds: list[list[str]]
    owned: list[Taken]

    def bring(
        self, keys: Sequence[str], pieces: dict[str, list[Tensor]], dtype: torch.dtype, topology: Topology
    ) -> dict[str, Tensor]:
        """Send a round's pieces home; the whole matrices of this rank, by key.

        keys: one of `rounds`. pieces: by key, this rank's rectangles in the order of `owned`. dtype: what is sent.
        Collective over the job.
        """
        here = topology.rank
        outward, inward = self._sizes(keys, topology)
        ordered = [piece for key in self._by_home(keys) for piece in pieces.get(key, ())]
        received = _all_to_all(_joined(ordered, dtype, topology.device), outward, inward)
        whole = {
            key: torch.empty(self._shape(key), dtype=dtype, device=topology.device)
            for key in keys
            if self.home[key] == here
        }
        places = list(self._places(keys, whole))
        for place, run in zip(places, _runs(received, [tuple(place.shape) for place in places]), strict=True):
            place.copy_(run)
        return whole

    def hand_back(
        self, keys: Sequence[str], whole: dict[str, Tensor], dtype: torch.dtype, topology: Topology
    ) -> dict[str, list[Tensor]]:
        """The way back of `bring`: by key, this rank's rectangles of matrices that are whole at home. Collective."""
        here = topology.rank
        outward, inward = self._sizes(keys, topology)
        returned = _all_to_all(_joined(list(self._places(keys, whole)), dtype, topology.device), inward, outward)
        names = [key for key in self._by_home(keys) for _ in self._taken(key, here)]
        extents = [extent for key in self._by_home(keys) for _, extent in self._taken(key, here)]
        found: dict[str, list[Tensor]] = {}
        for key, run in zip(names, _runs(returned, extents), strict=True):
            found.setdefault(key, []).append(run)
        return found

    def _by_home(self, keys: Sequence[str]) -> list[str]:
        """In the order of a message to all homes: by rank, then as in the round."""
        return sorted(keys, key=self.home.__getitem__)

    def _taken(self, key: str, rank: int) -> list[Place]:
        return self.owned[rank][key][1] if key in self.owned[rank] else []

    def _sizes(self, keys: Sequence[str], topology: Topology) -> tuple[list[int], list[int]]:
        """Entries on the way home: (to each rank, from each rank)."""
        here, ranks = topology.rank, range(topology.world_size)
        outward = [self._size(keys, owner=here, home=rank) for rank in ranks]
        return outward, [self._size(keys, owner=rank, home=here) for rank in ranks]

    def _size(self, keys: Sequence[str], *, owner: int, home: int) -> int:
        at_home = [key for key in keys if self.home[key] == home]
        return sum(math.prod(extent) for key in at_home for _, extent in self._taken(key, owner))

    def _shape(self, key: str) -> Shape:
        return next(taken[key][0] for taken in self.owned if key in taken)

    def _places(self, keys: Sequence[str], whole: dict[str, Tensor]) -> Iterator[Tensor]:
        """Views of every rank's rectangles of the whole matrices here, as messages from or to all ranks have them."""
        for rank in range(len(self.owned)):
            for key in keys:
                for offset, extent in self._taken(key, rank) if key in whole else ():
                    yield whole[key][tuple(slice(o, o + e) for o, e in zip(offset, extent, strict=True))]


def plan_homes(rectangles: Sequence[Rectangle], cost: Callable[[str, Shape], float], topology: Topology) -> Homes:
    """Deal the matrices that all ranks own rectangles of over the ranks, the costliest first. Collective.

    cost: of a key and its shape, in any unit. Each entry of a matrix must be owned by exactly one rank.
    """
    here: Taken = {}
    for r in rectangles:
        assert r.saves, f"{r.key}: a copy of another rank's"
        here.setdefault(r.key, (r.shape, []))[1].append((r.offset, r.extent))
    owned: list[Taken] = [here]
    if topology.world_size > 1:
        owned = [{} for _ in range(topology.world_size)]
        dist.all_gather_object(owned, here)
    shapes = {key: shape for taken in owned for key, (shape, _) in taken.items()}
    for key, shape in shapes.items():
        entries = sum(math.prod(e) for taken in owned if key in taken for _, e in taken[key][1])
        assert entries == math.prod(shape), f"{key}: {entries} of {math.prod(shape)} entries are owned"
    return _dealt(shapes, owned, cost)


def _dealt(shapes: dict[str, Shape], owned: list[Taken], cost: Callable[[str, Shape], float]) -> Homes:
    order = sorted(shapes, key=lambda key: (-cost(key, shapes[key]), key))
    loads, home = [0.0] * len(owned), {}
    rounds: list[list[str]] = []
    held = [0] * len(owned)
    for key in order:
        rank = loads.index(min(loads))
        home[key], entries = rank, math.prod(shapes[key])
        loads[rank] += cost(key, shapes[key])
        if not rounds or (held[rank] and held[rank] + entries > ROUND_ENTRIES):
            rounds.append([])
            held = [0] * len(owned)
        rounds[-1].append(key)
        held[rank] += entries
    return Homes(home, rounds, owned)


def _joined(pieces: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    """One message of all pieces, each row by row."""
    message = torch.empty(sum(piece.numel() for piece in pieces), dtype=dtype, device=device)
    for piece, run in zip(pieces, _runs(message, [tuple(piece.shape) for piece in pieces]), strict=True):
        run.copy_(piece)
    return message


def _runs(message: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """Consecutive runs of a message, as views of these shapes."""
    sizes = [math.prod(shape) for shape in shapes]
    return [run.view(shape) for run, shape in zip(message.split(sizes), shapes, strict=True)]


def _all_to_all(message: Tensor, outward: list[int], inward: list[int]) -> Tensor:
    if len(outward) == 1:
        return message
    received = message.new_empty(sum(inward))
    dist.all_to_all_single(received, message, inward, outward)
    return received
