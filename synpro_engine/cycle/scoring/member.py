"""Several models that are to be of one kind: checkpoints, stages and Hugging Face directories, and what they read."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from synpro_engine.backend import platform
from synpro_engine.config import UserError, first_difference, read_manifest
from synpro_engine.cycle.steps.weights import find_tokenizer, load_model, recorded_tokenizer, stage_checkpoint
from synpro_engine.data import PublishedTokenizer, check_rows, load_tokenizer
from synpro_engine.dist import Topology, on_main, verify_shared
from synpro_engine.model.canonical import canonical_shapes
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.hf import import_hf, stored_shape
from synpro_engine.model.model import Model
from synpro_engine.model.state import check_shapes
from synpro_engine.storage import all_at_hand
from synpro_engine.train.checkpoint import checkpoint_extra, checkpoint_model_config
from synpro_engine.train.config import WeightsOf


@dataclass(frozen=True, kw_only=True)
class Member:
    """One model among several, as it lies on disk.

    place: the path or address that the user gave. path: where that is at hand. weights: the checkpoint or, where it is
    `published`, the Hugging Face directory.
    """

    place: str
    path: Path
    weights: Path
    published: bool
    config: ModelConfig
    tokenizer: PublishedTokenizer
    apart: bool
    """Whether it was trained on documents that do not see each other within a window, as far as that is recorded."""

    def load(self, topology: Topology, which: WeightsOf | None, dtype: torch.dtype | None = None) -> Model:
        """The model, frozen; what an earlier one took of memory is given back first. Collective.

        which: of a checkpoint with averages; None: those that it hands on. dtype: None takes the checkpoint's own, and
        for a published model the machine's.
        """
        gc.collect()  # Megatron's modules refer to each other in rings, which would keep a model that nobody uses
        if self.published:
            model = import_hf(self.weights, topology, dtype=dtype or platform.resolve_dtype("auto")).model
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            return model
        saved = on_main(topology, lambda: read_manifest(self.weights).config["dtype"])
        return load_model(self.weights, topology, dtype or platform.resolve_dtype(saved), weights=which)


def open_members(places: Sequence[str], tokenizer: Path | None, topology: Topology) -> list[Member]:
    """The models at `places`, paths or addresses, which read the same tokens. Collective.

    tokenizer: of those that none is recorded with. Raises UserError, in one line, for a place without a model or
    without a tokenizer, and for a model whose vocabulary or tokenizer is not the first one's.
    """
    paths = all_at_hand(places, topology)
    members = [_open(place, path, tokenizer, topology) for place, path in zip(places, paths, strict=True)]
    first = members[0]
    for other in members[1:]:
        ours, theirs = first.tokenizer, other.tokenizer
        if (ours.encoding, ours.eos_id, ours.bos_id) != (theirs.encoding, theirs.eos_id, theirs.bos_id):
            raise UserError(f"{other.place}: reads text with another tokenizer than {first.place}")
        sizes = other.config.vocab_size, first.config.vocab_size
        if sizes[0] != sizes[1]:
            raise UserError(f"{other.place}: has a vocabulary of {sizes[0]}, {first.place} one of {sizes[1]}")
    return members


def check_same_model(members: Sequence[Member]) -> None:
    """UserError for the first tensor, or else setting, in which a model is not of the first one's shape."""
    first = members[0]
    for other in members[1:]:
        if other.published != first.published:
            kinds = "a Hugging Face directory" if other.published else "a checkpoint"
            raise UserError(f"{other.place}: is {kinds}, and {first.place} is none; give models of one form")
        check_shapes(canonical_shapes(first.config), canonical_shapes(other.config), other.place)
        # Tensors that fit may mean something else, as under another rotary base.
        stored, given = (member.config.model_dump(mode="json") for member in (first, other))
        difference = first_difference(stored, given, ("seq_len", "published_seq_len", "init_std"))
        if difference is not None:
            raise UserError(f"{other.place}: is another model than {first.place}: {difference}")


def _open(place: str, path: Path, tokenizer: Path | None, topology: Topology) -> Member:
    if on_main(topology, lambda: (path / "config.json").is_file()):
        config = on_main(topology, lambda: stored_shape(path))
        weights, read, published, apart = path, path, True, False
    else:
        weights, published = stage_checkpoint(path, topology), False
        config = on_main(topology, lambda: checkpoint_model_config(weights))
        # Of a run's own checkpoints, which hold its settings.
        trained = on_main(topology, lambda: checkpoint_extra(weights).get("config") or {})
        apart = bool(trained.get("separate_documents", False))
        recorded = on_main(topology, lambda: find_tokenizer(path))
        if recorded is None and tokenizer is None:
            on_main(topology, lambda: recorded_tokenizer(path))  # says that there is none
        if recorded is not None:
            verify_shared(recorded.parent, topology)
        read = recorded or tokenizer
        assert read is not None
    loaded = on_main(topology, lambda: load_tokenizer(read))
    check_rows(loaded, config.vocab_size, place, "; see --tokenizer")
    return Member(
        place=place,
        path=path,
        weights=weights,
        published=published,
        config=config,
        tokenizer=loaded,
        apart=apart,
    )
