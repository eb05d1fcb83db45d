"""What a rank saves and loads is its own memory, cut into rectangles; files are hashed once, by all ranks together."""

import itertools
import math
from pathlib import Path

import pytest
import torch

from synpro_engine.config import sha256_file, verification
from synpro_engine.config.artifact import MANIFEST, read_manifest
from synpro_engine.config.integrity import content_files
from synpro_engine.data import Batch
from synpro_engine.dist import ParallelConfig, hashing, launched
from synpro_engine.dist.testing import free_ports, job, run_ranks
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.train.checkpoint import STATE, load_checkpoint, save_checkpoint
from synpro_engine.train.checkpoint_files import read_pieces
from synpro_engine.train.checkpoint_pieces import model_pieces, optimizer_pieces
from synpro_engine.train.engine import Engine
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.optimizer_config import OptimizerConfig
from synpro_engine.train.owned import rectangles

SHAPE = ModelConfig(family="llama", layers=2, d_model=32, heads=4, kv_heads=2, ffn=48, vocab_size=64, seq_len=16)


@pytest.mark.parametrize("shape", [(7,), (1,), (3, 5), (1, 4), (4, 1), (3, 4, 5), (2, 1, 3, 2)])
def test_rectangles_cover_a_range_once_and_in_order(shape: tuple[int, ...]) -> None:
    numbers = torch.arange(math.prod(shape)).view(shape)
    for start, stop in itertools.combinations(range(numbers.numel() + 1), 2):
        found: list[int] = []
        pieces = list(rectangles(shape, start, stop))
        for corner, extent, first in pieces:
            inside = numbers[tuple(slice(a, a + n) for a, n in zip(corner, extent, strict=True))].flatten().tolist()
            assert inside[0] == first and len(inside) == math.prod(extent)
            found += inside
        assert found == list(range(start, stop))
        assert len(pieces) <= 2 * len(shape) - 1


def test_an_empty_range_has_no_rectangle() -> None:
    assert not list(rectangles((3, 4), 5, 5)) and not list(rectangles((3, 4), 6, 2))


def test_two_pieces_of_one_place_are_refused_and_not_one_of_them_left_unread(tmp_path: Path) -> None:
    with launched(ParallelConfig()) as topology:
        model = build_model(SHAPE, topology)
        save_checkpoint(tmp_path / "c", model)
        pieces = model_pieces(model)
        read_pieces(tmp_path / "c" / STATE, pieces, [pieces[0]])
        with pytest.raises(AssertionError, match="two pieces of one place"):
            read_pieces(tmp_path / "c" / STATE, [*pieces, pieces[0]])


def share_of_work(directory: Path, port: int, tp: int) -> dict[str, int]:
    """Elements that a rank offers, and files that it hashes when loading: again what it saved itself, and all."""
    with job(ParallelConfig(tp=tp), port) as topology:
        engine = Engine(build_model(SHAPE, topology), OptimizerConfig(lr=1e-2))
        ids = torch.randint(64, (2, 17), generator=torch.Generator().manual_seed(0))
        engine.step([Batch(ids[:, :-1], ids[:, 1:])], LanguageModelLoss(0.0), denominator=64.0)
        state = optimizer_pieces(engine.model, engine.optimizer)
        part = engine.optimizer.chained_optimizers[0].optimizer
        own = [t for main, held in part.state.items() for t in (main, held["exp_avg"], held["exp_avg_sq"])]
        memory = {t.untyped_storage().data_ptr() for t in own}
        assert {piece.data.untyped_storage().data_ptr() for piece in state} == memory, "a copy was made"
        assert sum(piece.data.numel() for piece in state) == sum(t.numel() for t in own)
        save_checkpoint(directory, engine)

        hashed: list[Path] = []
        digest = hashing._sha256
        hashing._sha256 = lambda path, read: (hashed.append(path), digest(path, read))[1]
        load_checkpoint(directory, engine.model, engine)
        after_saving = len(hashed)
        with verification("always"):
            load_checkpoint(directory, engine.model, engine)
        return {
            "offered": sum(piece.data.numel() for piece in state if piece.saves),
            "weights": sum(piece.data.numel() for piece in model_pieces(engine.model)),
            "again": after_saving,
            "hashed": len(hashed) - after_saving,
        }


@pytest.mark.parametrize("tp", [1, 2])
def test_no_rank_holds_or_hashes_more_than_its_share(tmp_path: Path, tp: int) -> None:
    ranks = run_ranks(share_of_work, 2, directory=tmp_path / "c", port=free_ports(1)[0], tp=tp)
    files = [path for path in content_files(tmp_path / "c") if path.name != MANIFEST]
    sizes = [path.stat().st_size for path in files if path.suffix == ".distcp"]
    assert len(sizes) == 2 and max(sizes) < 1.3 * min(sizes)
    assert sum(rank["hashed"] for rank in ranks) == len(files) and all(rank["hashed"] for rank in ranks)
    assert not any(rank["again"] for rank in ranks), "what was hashed when it was written was hashed again"
    whole = sum(parameter.numel() for parameter in parameters())
    assert sum(rank["offered"] for rank in ranks) == 3 * whole
    assert max(rank["offered"] for rank in ranks) < 0.6 * 3 * whole
    hashes = {str(path.relative_to(tmp_path / "c")): sha256_file(path) for path in files}
    assert hashes == read_manifest(tmp_path / "c").files


def parameters() -> list[torch.nn.Parameter]:
    """Of the whole model."""
    with launched(ParallelConfig()) as topology:
        return list(build_model(SHAPE, topology).parameters())
